"""`asmg alerts …`."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.console import make_console
from service.cli.errors import plain_errors
from service.cli.installation import DataDir, with_database
from service.use_cases.alerts import acknowledge_alert, list_alerts
from service.use_cases.audit import command_line

__all__ = ["alerts"]

alerts = typer.Typer(help="Alerts: what is wrong now, and what was.", no_args_is_help=True)


@alerts.command("list")
def list_alerts_command(
    is_open: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of alerts, the newest.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """List the newest alerts."""
    with plain_errors():
        page = with_database(data_dir, lambda d: list_alerts(d, limit=limit, is_open=is_open or None))
        table = Table("alert", "kind", "severity", "opened (UTC)", "times", "seen by", "closed (UTC)", "message")
        for alert in page.alerts:
            opened, closed = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (alert.opened_at, alert.closed_at))
            cells = (str(alert.number), alert.kind, alert.severity, opened, str(alert.times))
            table.add_row(*(Text(cell) for cell in (*cells, alert.acknowledged_by or "", closed, alert.message)))
        make_console().print(table)


@alerts.command("acknowledge")
def acknowledge_command(
    number: Annotated[int, typer.Argument(metavar="ALERT", help="Number of the alert, see `asmg alerts list`.")],
    reason: Annotated[str, typer.Option(help="Reason that the audit log keeps.")],
    close: Annotated[bool, typer.Option("--close", help="Close it too; it opens again if it is raised again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Say that an alert was seen; it stays open until it is not wrong any more."""
    with plain_errors():
        with_database(
            data_dir, lambda d: acknowledge_alert(d, number, reason=reason, actor=command_line(), close=close)
        )
        print(f"asmg: alert {number} is {'closed' if close else 'acknowledged'}")
