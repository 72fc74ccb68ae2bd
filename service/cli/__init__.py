"""The program `asmg`: one module for each command or group of commands, put together here.

Commands import the training library and other slow modules inside their functions, so that `asmg --help` is quick.
"""

from importlib.metadata import entry_points
from typing import Annotated

import typer

from service import __version__
from service.cli.audit import audit_command
from service.cli.backup import backup_command, restore_command, verify_command
from service.cli.deletions import deletions
from service.cli.demo import demo_command
from service.cli.experiment import experiment
from service.cli.features import features
from service.cli.import_log.command import import_command
from service.cli.keys import keys
from service.cli.migrate import migrate_command
from service.cli.models import models
from service.cli.periods import periods
from service.cli.serve import serve_command
from service.cli.worker import worker_command
from service.processes.logs import configure_logging

__all__ = ["COMMANDS", "app"]

COMMANDS = "asmg.commands"
"""Entry-point group of further commands: functions and `typer.Typer` objects that other packages add to `asmg`."""

app = typer.Typer(
    name="asmg",
    help="A click-through-rate service that learns period by period.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in {
    "demo": demo_command,
    "serve": serve_command,
    "worker": worker_command,
    "migrate": migrate_command,
    "import": import_command,
    "audit": audit_command,
    "backup": backup_command,
    "restore": restore_command,
    "verify": verify_command,
}.items():
    app.command(name)(command)
for name, group in {
    "keys": keys,
    "models": models,
    "periods": periods,
    "deletions": deletions,
    "experiment": experiment,
    "features": features,
}.items():
    app.add_typer(group, name=name)
for entry in entry_points(group=COMMANDS):
    added = entry.load()
    if isinstance(added, typer.Typer):
        app.add_typer(added, name=entry.name)
    else:
        app.command(entry.name)(added)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def asmg(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """A click-through-rate service that learns period by period."""
    configure_logging()
