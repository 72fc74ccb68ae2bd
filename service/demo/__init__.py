"""`asmg demo`: a whole service in a temporary folder learns from period to period while clients never stop asking."""
