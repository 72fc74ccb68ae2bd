"""The audit: who did what, when and why. Entries are only added; a trigger in Postgres refuses changes."""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AuditEntry

__all__ = ["AuditPage", "command_line", "list_audit", "trace_of_close"]

MAX_ID = 2**63 - 1
"""Highest id of an entry: what a `bigint` of Postgres can hold."""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries of the audit, newest first."""

    entries: Sequence[AuditEntry]
    next: int | None
    """`before` of the next page; null on the last."""


async def list_audit(
    database: Database, *, limit: int, before: int | None = None, actor: str | None = None, action: str | None = None
) -> AuditPage:
    """A page of entries, newest first.

    Args:
        database: holds the audit.
        limit: most entries of the page.
        before: only entries with a lower id; None starts at the newest.
        actor: only entries of this actor.
        action: only entries of this action.
    """
    before = None if before is None or before > MAX_ID else before
    async with database.read() as session:
        entries = await session.audit.list(limit + 1, before, actor=actor, action=action)
    page = entries[:limit]
    return AuditPage(page, next=page[-1].id if len(entries) > limit else None)


async def trace_of_close(database: Database, period: int) -> str | None:
    """The `traceparent` of the call that closed a period; None where it was not traced."""
    async with database.read() as session:
        return await session.audit.trace_of_close(period)


def command_line() -> str:
    """The actor of a command: the user of the operating system who runs it."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"command line ({user})"
