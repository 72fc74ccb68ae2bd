"""What serving costs: the real service beside other servers of the same model, asked by one load generator."""
