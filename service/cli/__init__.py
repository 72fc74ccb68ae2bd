"""The program `asmg`: one module for each command or group of commands; `program` puts them together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.cli.program import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """`app`, when it is asked for: modules that `program` loads by their entry points import others of this package."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service.cli import program

    return program.app
