"""Indexes of tables that can be large, built while the service works."""

from alembic import op

__all__ = ["build_index", "build_index_of_parts"]

WAIT_SECONDS = 3600
"""How long transactions that are older than the index may take to end; nobody waits for the build meanwhile."""


def build_index(name: str, definition: str) -> None:
    """Build an index, in an `autocommit_block`; begun anew where an interrupted migration has left it.

    Args:
        name: of the index.
        definition: from `INDEX CONCURRENTLY {} …` on, `{}` for the name.
    """
    op.execute(f"SET lock_timeout = '{WAIT_SECONDS}s'")
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.execute(f"CREATE {definition.format(name)}")
    op.execute("RESET lock_timeout")


# Partitions whose log is dropped meanwhile are none any more.
WITHOUT_PART = """
    SELECT part.relname FROM pg_inherits AS of_table JOIN pg_class AS part ON part.oid = of_table.inhrelid
    WHERE of_table.inhparent = to_regclass('{table}') AND NOT EXISTS (
        SELECT FROM pg_index JOIN pg_inherits AS of_index ON of_index.inhrelid = indexrelid
        WHERE indrelid = part.oid AND of_index.inhparent = to_regclass('{name}')
    )
    ORDER BY part.oid
"""


def build_index_of_parts(name: str, table: str, definition: str) -> None:
    """The same for a partitioned table: an index of each partition, one after the other, and one that holds them.

    Partitions that come meanwhile have theirs from the beginning, for the whole has it first. Only the builds wait for
    others for long.

    Args:
        name: of the index of the whole.
        table: the whole.
        definition: what stands behind the name of the table.
    """
    op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {definition}")
    for part in op.get_bind().exec_driver_sql(WITHOUT_PART.format(table=table, name=name)).scalars().all():
        build_index(f"{part}_{name}", f"INDEX CONCURRENTLY {{}} ON {part} {definition}")
        op.execute(f"ALTER INDEX {name} ATTACH PARTITION {part}_{name}")
