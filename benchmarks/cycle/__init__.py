"""`asmg bench cycle`: what one period costs, from its close to the served version, with tables of any size."""
