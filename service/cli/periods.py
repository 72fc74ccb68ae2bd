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

periods = typer.Typer(help="Periods: list them, and retry or skip one in quarantine.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="PERIOD", help="Number of the period.")]
Reason = Annotated[str, typer.Option(help="Reason that the audit log keeps.")]


@periods.command("list")
def list_periods_command(
    status: Annotated[PeriodStatus | None, typer.Option(help="Only periods with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of periods, the newest.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """List the newest periods."""
    with plain_errors():
        found = with_database(data_dir, lambda database: find_periods(database, limit=limit, status=status))
        table = Table("period", "status", "sealed", "ended", "events", "attempts", "version", "error")
        for period in found:
            counts = ("" if n is None else str(n) for n in (period.events, period.attempts, period.version))
            times = _to_minute(period.sealed_at), _to_minute(period.finished_at)
            table.add_row(str(period.number), period.status, *times, *counts, Text(period.error or ""))
        make_console().print(table)


@periods.command("retry")
def retry_period_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Let the worker learn a period in quarantine after all; it comes next, after the periods learned meanwhile."""
    with plain_errors():
        with_database(data_dir, lambda d: retry_period(d, number, reason=reason, actor=command_line()))
        print(f"asmg: period {number} waits for its update again")


@periods.command("skip")
def skip_period_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Let no model ever learn a closed period; this cannot be undone."""
    with plain_errors():
        with_database(data_dir, lambda d: skip_period(d, number, reason=reason, actor=command_line()))
        print(f"asmg: period {number} is skipped; no model will learn it")


def _to_minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else ""
