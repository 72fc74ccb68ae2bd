"""`python -m service.cli` is the program `asmg`."""

from service.cli import app

app()
