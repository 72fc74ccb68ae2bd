"""What one update costs: `asmg bench update` by method and against a plain implementation, `asmg bench scaling` by table size."""
