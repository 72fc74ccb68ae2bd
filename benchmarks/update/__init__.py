"""What one period's update costs: `asmg bench update` and `asmg bench scaling`."""
