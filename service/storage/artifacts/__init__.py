"""Content-addressed files: parameters, hidden states, serving snapshots."""
