"""`asmg import`."""
