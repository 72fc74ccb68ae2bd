"""The tables, partitions, counters and foreign keys of a database, read from the catalogue of Postgres.

Backups, restores and `asmg verify` use it. Only the names of the tables and their order come from `tables.metadata`, so
columns and keys that a migration adds need no change here.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.tables import metadata

__all__ = [
    "LOCK_SECONDS",
    "Counter",
    "Partition",
    "Reference",
    "StoredTable",
    "counters",
    "frozen",
    "lock_all",
    "references",
    "restart",
    "stored_tables",
    "table_names",
]

LOCK_SECONDS = 10.0
"""How long to wait for the locks on all tables. Nothing but a migration may hold one for longer."""

ATTEMPTS = 10
"""Tries to take a snapshot while no partition is created. Partitions are created a few times each period."""

Name = Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]

BOUND = re.compile(r"FOR VALUES IN \('?(\d+)'?\)")
"""The definition of a partition, with its period."""

LOCK_NOT_AVAILABLE = "55P03"


class Partition(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a table is attached to a partitioned table."""

    of: Name
    """The partitioned table."""
    period: int
    """The period whose rows it holds."""
    indexes: tuple[str, ...] = ()
    """Definitions of its indexes that do not belong to an index of the partitioned table."""
    constraints: tuple[str, ...] = ()
    """Names and definitions of its constraints that the partitioned table does not have."""


class StoredTable(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A table that holds rows: an ordinary table or a partition, not a partitioned table."""

    name: Name
    columns: tuple[Name, ...]
    """All columns except generated ones, in their order."""
    partition: Partition | None = None


class Counter(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A column whose values come from a sequence."""

    table: Name
    column: Name
    next: int
    """The value of the next row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A foreign key."""

    table: str
    columns: Sequence[str]
    referred: str
    referred_columns: Sequence[str]

    def dangling(self) -> str:
        """A query for the values that refer to no row, with the columns of a `verify.Finding`."""
        own = ", ".join(self.columns)
        given = " AND ".join(f"{column} IS NOT NULL" for column in self.columns)
        referring, referred = _qualified("referring", self.columns), _qualified("referred", self.referred_columns)
        return (
            f"SELECT DISTINCT '{self.table} ({own})', 'a row of {self.referred}', 'none with ' || ROW({own})::text "
            f"FROM {self.table} AS referring WHERE {given} AND NOT EXISTS "
            f"(SELECT FROM {self.referred} AS referred WHERE ROW({referred}) = ROW({referring}))"
        )


def _qualified(table: str, columns: Sequence[str]) -> str:
    return ", ".join(f"{table}.{column}" for column in columns)


# The indexes and constraints that have a parent are created with the partitioned table.
TABLES = text("""
    SELECT part.relname AS name, whole.relname AS whole, pg_get_expr(part.relpartbound, part.oid) AS bound,
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = part.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                 ORDER BY attnum) AS columns,
           ARRAY(SELECT pg_get_indexdef(indexrelid, 0, true) FROM pg_index
                 WHERE indrelid = part.oid AND indisvalid
                   AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)
                   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
                 ORDER BY 1) AS indexes,
           ARRAY(SELECT format('%I %s', conname, pg_get_constraintdef(oid, true)) FROM pg_constraint
                 WHERE conrelid = part.oid AND contype IN ('c', 'f', 'p', 'u', 'x')
                   AND conparentid = 0 AND coninhcount = 0
                 ORDER BY conname) AS constraints,
           EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
                   WHERE datname = current_database() AND relation = part.oid AND pid = pg_backend_pid() AND granted
           ) AS locked
    FROM pg_class AS part
    JOIN pg_namespace ON pg_namespace.oid = part.relnamespace
    LEFT JOIN pg_inherits ON inhrelid = part.oid
    LEFT JOIN pg_class AS whole ON whole.oid = inhparent
    WHERE part.relkind = 'r' AND nspname = current_schema()
      AND coalesce(whole.relname, part.relname) = ANY(CAST(:names AS text[]))
""")

COUNTERS = text("""
    SELECT table_name, column_name, pg_get_serial_sequence(quote_ident(table_name), column_name) AS sequence
    FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = ANY(CAST(:names AS text[]))
      AND pg_get_serial_sequence(quote_ident(table_name), column_name) IS NOT NULL
    ORDER BY table_name, column_name
""")


REFERENCES = text("""
    SELECT referring.relname AS table, referred.relname AS referred,
           ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS key (number, place)
                 JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY place) AS columns,
           ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS key (number, place)
                 JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY place) AS referred_columns
    FROM pg_constraint
    JOIN pg_class AS referring ON referring.oid = conrelid
    JOIN pg_class AS referred ON referred.oid = confrelid
    JOIN pg_namespace ON pg_namespace.oid = referring.relnamespace
    WHERE contype = 'f' AND conparentid = 0 AND nspname = current_schema()
      AND referring.relname = ANY(CAST(:names AS text[]))
    ORDER BY conname
""")


def table_names() -> list[str]:
    """Names of the service's tables, each before those that refer to it."""
    return [table.name for table in metadata.sorted_tables]


@asynccontextmanager
async def frozen(database: Database) -> AsyncIterator[tuple[ReadSession, Sequence[StoredTable]]]:
    """A snapshot of all tables, and their descriptions. The service keeps working meanwhile.

    All tables are locked against being dropped, and artifacts against the removal of their objects
    (`Artifacts.lock_names`), before the snapshot is taken. If a table was created between the two, it is not locked,
    and both are done again. Nothing after that waits for a lock, so there is no deadlock.

    Raises:
        NotReady: a table was locked by others for `LOCK_SECONDS`.
    """
    for _ in range(ATTEMPTS):
        async with database.read() as session:
            await lock_all(session.connection, "ACCESS SHARE")
            await session.artifacts.keep_objects()
            found = await _tables_and_locks(session.connection)
            if all(locked for _, locked in found):
                yield session, [table for table, _ in found]
                return
    raise NotReady(f"the tables changed {ATTEMPTS} times while they were to be read")


async def lock_all(connection: AsyncConnection, mode: str) -> None:
    """Lock all tables and their partitions until the transaction ends. It has to be its first statement.

    It switches off the server's time limits for this transaction, except `LOCK_SECONDS` for a lock.

    Args:
        connection: in a new transaction.
        mode: of the lock, as in `LOCK TABLE … IN … MODE`.

    Raises:
        NotReady: a table was locked by others for `LOCK_SECONDS`.
    """
    for setting in (
        f"lock_timeout = {int(LOCK_SECONDS * 1000)}",
        "statement_timeout = 0",
        "idle_in_transaction_session_timeout = 0",
    ):
        await connection.execute(text(f"SET LOCAL {setting}"))
    try:
        await connection.execute(text(f"LOCK TABLE {', '.join(table_names())} IN {mode} MODE"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise NotReady(f"a table was locked by others for {LOCK_SECONDS:g} s") from error


async def stored_tables(connection: AsyncConnection) -> list[StoredTable]:
    """The tables that hold rows, each before those that refer to it; partitions in the order of their periods."""
    return [table for table, _ in await _tables_and_locks(connection)]


async def _tables_and_locks(connection: AsyncConnection) -> list[tuple[StoredTable, bool]]:
    """The tables that hold rows, and for each whether this transaction has a lock on it."""
    names = table_names()
    found = []
    for row in await connection.execute(TABLES, {"names": names}):
        partition = None
        if row.whole is not None:
            bound = BOUND.fullmatch(row.bound)
            assert bound is not None, f"{row.name}: expected the partition of one period; received {row.bound}"
            partition = Partition(
                of=row.whole,
                period=int(bound[1]),
                indexes=tuple(row.indexes),
                constraints=tuple(row.constraints),
            )
        found.append((StoredTable(name=row.name, columns=tuple(row.columns), partition=partition), row.locked))
    return sorted(found, key=lambda pair: _sort_key(pair[0], names))


def _sort_key(table: StoredTable, names: Sequence[str]) -> tuple[int, int]:
    if table.partition is None:
        return names.index(table.name), 0
    return names.index(table.partition.of), table.partition.period


async def counters(connection: AsyncConnection) -> list[Counter]:
    """The next values of all counters. Sequences do not belong to a snapshot: they may be ahead of it, never behind."""
    found = []
    for row in (await connection.execute(COUNTERS, {"names": table_names()})).all():
        query = f"SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END FROM {row.sequence}"
        value = (await connection.execute(text(query))).scalar_one()
        found.append(Counter(table=row.table_name, column=row.column_name, next=int(value)))
    return found


async def references(connection: AsyncConnection) -> list[Reference]:
    """The foreign keys between the tables."""
    rows = await connection.execute(REFERENCES, {"names": table_names()})
    return [Reference(**row) for row in rows.mappings()]


async def restart(connection: AsyncConnection, counter: Counter) -> None:
    """Set the next value of a counter. Unlike `setval`, this is undone when the transaction is rolled back."""
    query = text("SELECT pg_get_serial_sequence(:table, :column)")
    sequence = (await connection.execute(query, {"table": counter.table, "column": counter.column})).scalar_one()
    await connection.execute(text(f"ALTER SEQUENCE {sequence} RESTART WITH {counter.next}"))
