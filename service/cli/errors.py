"""Errors that a user can correct: one line on the standard error and an exit code, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from asmg.features import SchemaError
from asmg.log_format import LogFormatError
from service.errors import ServiceError

__all__ = ["plain_errors", "unusable_files"]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn wrong settings (exit code 2) and errors of the service (1) into one line; others keep their traceback."""
    try:
        yield
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            name = "_".join(("ASMG", *(str(part).upper() for part in fault["loc"])))
            print(f"asmg: {name if fault['loc'] else 'settings'}: {fault['msg']}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (ServiceError, ValueError) as error:
        print(f"asmg: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def unusable_files() -> Iterator[None]:
    """Turn a file that is missing or malformed into one line (exit code 2)."""
    try:
        yield
    except LogFormatError as error:
        print(f"asmg: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except SchemaError as error:
        for fault in error.faults:
            print(f"asmg: {fault}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        print(f"asmg: {error.filename}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(2) from None
