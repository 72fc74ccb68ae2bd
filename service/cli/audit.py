"""`asmg audit`."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.console import make_console
from service.cli.errors import plain_errors
from service.cli.installation import DataDir, with_database
from service.storage.postgres.database import Database
from service.use_cases.audit import AuditPage, list_audit

__all__ = ["audit_command"]


def audit_command(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of entries.")] = 50,
    actor: Annotated[str | None, typer.Option(help="Only entries of this actor, by the full name.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as rollback.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List who did what, when and why, newest first."""

    async def entries(database: Database) -> AuditPage:
        return await list_audit(database, limit=limit, actor=actor, action=action)

    with plain_errors():
        table = Table("at (UTC)", "actor", "action", "detail", "reason", "request")
        for entry in with_database(data_dir, entries).entries:
            detail = " ".join(f"{name}={value}" for name, value in entry.detail.items())
            cells = (f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor, entry.action, detail)
            # As Text: rich must not take what callers wrote for markup.
            table.add_row(*(Text(cell) for cell in (*cells, entry.reason or "", entry.request_id or "")))
        make_console().print(table)
