"""`python -m service.cli` is the program `asmg`."""

from service.cli.program import app

app()
