"""Puts the program `asmg` together: its commands, and those that other packages add.

Commands import the training library and other slow modules inside their functions, so that `asmg --help` is quick.
"""

from importlib.metadata import entry_points
from typing import Annotated

import typer

from service import __version__
from service.cli.alerts import alerts
from service.cli.audit import audit_command
from service.cli.backup import backup_command, restore_command, verify_command
from service.cli.deletions import deletions
from service.cli.demo import demo_command
from service.cli.errors import plain_errors
from service.cli.experiment import experiment
from service.cli.export import export_command
from service.cli.features import features
from service.cli.import_log.command import import_command
from service.cli.keys import keys
from service.cli.migrate import migrate_command
from service.cli.models import models
from service.cli.periods import periods
from service.cli.serve import serve_command
from service.cli.webhooks import webhooks
from service.cli.worker import worker_command
from service.processes.logs import configure_logging
from service.telemetry.settings import TelemetrySettings

__all__ = ["COMMANDS", "app"]

COMMANDS = "asmg.commands"
"""Entry-point group of further commands: functions and `typer.Typer` objects that other packages add to `asmg`."""

app = typer.Typer(
    name="asmg",
    help="A click-through-rate service that learns period by period.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo_command)
app.command("serve")(serve_command)
app.command("worker")(worker_command)
app.command("migrate")(migrate_command)
app.command("import")(import_command)
app.command("audit")(audit_command)
app.command("backup")(backup_command)
app.command("restore")(restore_command)
app.command("verify")(verify_command)
app.command("export")(export_command)
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.add_typer(periods, name="periods")
app.add_typer(deletions, name="deletions")
app.add_typer(alerts, name="alerts")
app.add_typer(webhooks, name="webhooks")
app.add_typer(experiment, name="experiment")
app.add_typer(features, name="features")
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
    with plain_errors():
        configure_logging(TelemetrySettings())
