"""Loads the files of a backup into an empty database. `service.use_cases.backup.restore` calls it."""

import re
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import BackupError
from service.storage.backup.copy_protocol import binary_copy, copied_rows, refusals
from service.storage.backup.manifest import Manifest, TableFile
from service.storage.postgres.structure import Partition, lock_all, restart, stored_tables, table_names

__all__ = ["load", "require_empty"]

SEEDS = {"periods": "number = 1 AND status = 'open'"}
"""Rows that the migrations insert, by table, as conditions. An empty database has them too."""

INDEX = re.compile(r"CREATE (UNIQUE )?INDEX ")
"""The beginning of every definition of an index."""


async def require_empty(connection: AsyncConnection) -> None:
    """Return if a backup can be restored: the service's tables do not exist, or have no rows but those of migrations.

    Raises:
        BackupError: there are rows, or tables of another program.
    """
    query = (
        "SELECT relname::text FROM pg_class WHERE relname = ANY(CAST(:names AS text[])) AND pg_table_is_visible(oid)"
    )
    wanted = [*table_names(), "alembic_version"]
    there = set((await connection.execute(text(query), {"names": wanted})).scalars())
    if there and "alembic_version" not in there:
        raise BackupError(f"expected an empty database; received one with tables of another program: {min(there)}")
    found = []
    for name in sorted(there - {"alembic_version"}):
        rows = (await connection.execute(text(f"SELECT count(*) FROM {name} {_not_seeded(name)}"))).scalar_one()
        if rows:
            found.append(f"{name} ({rows:,})")
    if found:
        raise BackupError(f"expected an empty database; received one with rows in {', '.join(found)}")


def _not_seeded(table: str) -> str:
    return f"WHERE NOT ({SEEDS[table]})" if table in SEEDS else ""


async def load(connection: AsyncConnection, folder: Path, manifest: Manifest) -> None:
    """Load all rows, in the caller's transaction, during which nobody else can read or change a table.

    Foreign keys, checks and triggers are enforced as usual. A partition is attached after it was filled, so that each
    index is built once over all rows.

    Args:
        connection: to a database with the schema of the backup, and no rows.
        folder: of the backup.
        manifest: of the backup.

    Raises:
        BackupError: the database is not empty, or refuses the rows.
        NotReady: others use the database, or Postgres does not answer.
    """
    with refusals("Postgres does not take the backup"):
        await lock_all(connection, "ACCESS EXCLUSIVE")
        await require_empty(connection)
        for table in await stored_tables(connection):
            if table.partition is not None:
                await connection.exec_driver_sql(f"DROP TABLE {table.name}")
        for name in SEEDS:
            await connection.exec_driver_sql(f"DELETE FROM {name}")
        for file in manifest.tables:
            await _load_table(connection, folder, file)
        for counter in manifest.counters:
            await restart(connection, counter)
        expected, found = ({table.name for table in t} for t in (manifest.stored, await stored_tables(connection)))
        if found != expected:
            raise BackupError(f"expected the tables {', '.join(sorted(expected))}; received {', '.join(sorted(found))}")
        await connection.exec_driver_sql(f"ANALYZE {', '.join(table_names())}")


async def _load_table(connection: AsyncConnection, folder: Path, file: TableFile) -> None:
    table, part = file.table, file.table.partition
    if part is not None:
        await connection.exec_driver_sql(f"CREATE TABLE {table.name} (LIKE {part.of} INCLUDING ALL EXCLUDING INDEXES)")
    async with binary_copy(connection, file.name) as driver:
        copied = await driver.copy_to_table(
            table.name, source=folder / file.name, columns=table.columns, format="binary"
        )
    if copied_rows(copied) != file.rows:
        raise BackupError(f"{file.name}: expected {file.rows} rows; received {copied_rows(copied)}")
    if part is not None:
        await _attach(connection, table.name, part)


async def _attach(connection: AsyncConnection, name: str, partition: Partition) -> None:
    await connection.exec_driver_sql(
        f"ALTER TABLE {partition.of} ATTACH PARTITION {name} FOR VALUES IN ({partition.period})"
    )
    # From the manifest. The driver sends one statement at a time, so a forged definition cannot contain a second one.
    for constraint in partition.constraints:
        await connection.exec_driver_sql(f"ALTER TABLE {name} ADD CONSTRAINT {constraint}")
    for index in partition.indexes:
        if INDEX.match(index) is None:
            raise BackupError(f"{name}: expected the definition of an index; received {index}")
        await connection.exec_driver_sql(index)
