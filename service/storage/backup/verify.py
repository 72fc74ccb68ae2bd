"""Finds what is wrong in a database, also if its constraints were circumvented. `service.use_cases.verify` calls it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.backup.checks import CHECKS
from service.storage.postgres import tables
from service.storage.postgres.migrate import head_revision, is_described
from service.storage.postgres.structure import StoredTable, counters, references

__all__ = ["Finding", "find_faults", "find_faults_of_rows"]

MOST_LISTED = 20
"""Findings of one check that are listed. Further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault in the database."""

    object: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.object}: expected {self.expected}; found {self.found}"


async def find_faults(connection: AsyncConnection, stored: Sequence[StoredTable]) -> list[Finding]:
    """All faults in the tables. The content of artifacts is not checked here.

    Args:
        connection: in a transaction with one snapshot.
        stored: the tables that hold rows, of the same snapshot.
    """
    revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    if revision != head_revision():  # the checks are written for this schema
        return [Finding("schema", f"revision {head_revision()}, that of this release", str(revision))]
    return [*await _schema(connection), *await find_faults_of_rows(connection, stored)]


async def find_faults_of_rows(connection: AsyncConnection, stored: Sequence[StoredTable]) -> list[Finding]:
    """The faults of `find_faults` that are no difference of the schema: rows, references, counters and partitions."""
    findings = await _partitions(connection, stored)
    for reference in await references(connection):
        findings += await _find(connection, reference.dangling())
    for query in CHECKS.values():
        findings += await _find(connection, query)
    for counter in await counters(connection):
        findings += await _find(
            connection,
            f"SELECT '{counter.table}.{counter.column}', 'values below the next, {counter.next}', max::text "
            f"FROM (SELECT max({counter.column}) FROM {counter.table}) AS counted WHERE max >= {counter.next}",
        )
    return findings


async def _schema(connection: AsyncConnection) -> list[Finding]:
    """Compare the tables with those of this release, whatever revision the database claims to have."""

    def compare(sync: Connection) -> list[Any]:
        context = MigrationContext.configure(sync, opts={"include_name": is_described, "compare_type": True})
        return list(compare_metadata(context, tables.metadata))

    return [
        Finding("schema", "the tables of this release", f"a difference: {_described(difference)}")
        for difference in await connection.run_sync(compare)
    ]


def _described(difference: Any) -> str:
    """One difference that Alembic found, as text."""
    if isinstance(difference, list):
        return "; ".join(_described(part) for part in difference)
    action, *objects = difference
    return f"{action} {' '.join(str(part) for part in objects if part is not None)}"


async def _find(connection: AsyncConnection, query: str) -> list[Finding]:
    listed = f"""
        SELECT object, expected, found, count(*) OVER () AS total FROM ({query}) AS fault (object, expected, found)
        ORDER BY 1, 3 LIMIT {MOST_LISTED}
    """
    rows = (await connection.exec_driver_sql(listed)).all()
    findings = [Finding(row.object, row.expected, row.found) for row in rows]
    if rows and rows[0].total > MOST_LISTED:
        findings.append(Finding(f"{rows[0].total - MOST_LISTED:,} more", rows[0].expected, "others"))
    return findings


async def _partitions(connection: AsyncConnection, stored: Sequence[StoredTable]) -> list[Finding]:
    """Check that each period has its partitions until its log is dropped, and each partition has a period."""
    dropped = {
        number: log_dropped_at is not None
        for number, log_dropped_at in await connection.execute(text("SELECT number, log_dropped_at FROM periods"))
    }
    parts = [table.partition for table in stored if table.partition is not None]
    findings = [
        Finding(f"partition of {part.of} for period {part.period}", "a period that is there", "none")
        for part in parts
        if part.period not in dropped
    ]
    for table in tables.LOG:
        there = {part.period for part in parts if part.of == table.name}
        for number, gone in sorted(dropped.items()):
            if gone == (number in there):
                expected, found = ("no partition, for it was dropped", "one") if gone else ("a partition", "none")
                findings.append(Finding(f"{table.name} of period {number}", expected, found))
    return findings
