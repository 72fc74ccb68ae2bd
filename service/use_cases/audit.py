"""The audit: who did what, when and why. Rows are only added, which Postgres sees to."""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AuditEntry

__all__ = ["AuditPage", "command_line", "list_audit"]

MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries of the audit, newest first."""

    entries: Sequence[AuditEntry]
    next: int | None
    """`before` of the next page; null on the last."""


async def list_audit(
    database: Database, *, limit: int, before: int | None = None, actor: str | None = None, action: str | None = None
) -> AuditPage:
    """At most `limit` entries, newest first, of those with an id below `before`, this actor and this action."""
    before = None if before is None or before > MAX_ID else before
    async with database.read() as session:
        entries = await session.audit.list(limit + 1, before, actor=actor, action=action)
    page = entries[:limit]
    return AuditPage(page, next=page[-1].id if len(entries) > limit else None)


def command_line() -> str:
    """The actor of a command: the user that the operating system runs it for."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"command line ({user})"
