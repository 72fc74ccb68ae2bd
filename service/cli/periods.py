"""`asmg periods …`."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.console import make_console
from service.cli.errors import plain_errors
from service.cli.installation import DataDir, with_database
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.audit import command_line
from service.use_cases.quarantine import find_periods, retry_period, skip_period

__all__ = ["periods"]

periods = typer.Typer(
    help="Periods: what became of them, and what to do about one in quarantine.", no_args_is_help=True
)

Number = Annotated[int, typer.Argument(metavar="PERIOD", help="Its number.")]
Reason = Annotated[str, typer.Option(help="Why; the audit keeps it.")]


@periods.command("list")
def list_periods_command(
    status: Annotated[PeriodStatus | None, typer.Option(help="Those with this status only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """List the newest periods."""
    with plain_errors():
        found = with_database(data_dir, lambda database: find_periods(database, limit=limit, status=status))
        table = Table("period", "status", "sealed", "ended", "events", "attempts", "version", "error")
        for period in found:
            counts = ("" if n is None else str(n) for n in (period.events, period.attempts, period.version))
            times = _minute(period.sealed_at), _minute(period.finished_at)
            table.add_row(str(period.number), period.status, *times, *counts, Text(period.error or ""))
        make_console().print(table)


@periods.command("retry")
def retry_period_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Have the worker learn a period in quarantine after all; it is learned now, after what was learned meanwhile."""
    with plain_errors():
        with_database(data_dir, lambda d: retry_period(d, number, reason=reason, actor=command_line()))
        print(f"asmg: period {number} waits for its update again")


@periods.command("skip")
def skip_period_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Have no model ever learn a closed period; this cannot be undone."""
    with plain_errors():
        with_database(data_dir, lambda d: skip_period(d, number, reason=reason, actor=command_line()))
        print(f"asmg: period {number} is skipped; no model will learn it")


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else ""
