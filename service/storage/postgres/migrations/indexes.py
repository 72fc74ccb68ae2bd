"""Builds indexes of large tables while the service works. Migrations call it."""

from alembic import op

__all__ = ["build_index", "build_index_of_parts"]

WAIT_SECONDS = 3600
"""How long a concurrent build waits for older transactions to end. Nobody waits for the build meanwhile."""


def build_index(name: str, definition: str) -> None:
    """Build an index concurrently, from scratch if an interrupted migration left a part of it.

    It has to be called in an `autocommit_block`.

    Args:
        name: of the index.
        definition: the statement after `CREATE`, with `{}` in place of the name: `INDEX CONCURRENTLY {} ON …`.
    """
    op.execute(f"SET lock_timeout = '{WAIT_SECONDS}s'")
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.execute(f"CREATE {definition.format(name)}")
    op.execute("RESET lock_timeout")


# Partitions of the table without a partition of the index. Those that are dropped meanwhile are no longer listed.
WITHOUT_PART = """
    SELECT part.relname FROM pg_inherits AS of_table JOIN pg_class AS part ON part.oid = of_table.inhrelid
    WHERE of_table.inhparent = to_regclass('{table}') AND NOT EXISTS (
        SELECT FROM pg_index JOIN pg_inherits AS of_index ON of_index.inhrelid = indexrelid
        WHERE indrelid = part.oid AND of_index.inhparent = to_regclass('{name}')
    )
    ORDER BY part.oid
"""


def build_index_of_parts(name: str, table: str, definition: str) -> None:
    """Build an index of a partitioned table: one for each partition, one after the other, attached to a common one.

    The common index is created first, so that partitions created meanwhile get theirs at once. Only the builds wait for
    other transactions for long.

    Args:
        name: of the common index.
        table: the partitioned table.
        definition: the end of the statement, after `ON` and the name of the table.
    """
    op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {definition}")
    for part in op.get_bind().exec_driver_sql(WITHOUT_PART.format(table=table, name=name)).scalars().all():
        build_index(f"{part}_{name}", f"INDEX CONCURRENTLY {{}} ON {part} {definition}")
        op.execute(f"ALTER INDEX {name} ATTACH PARTITION {part}_{name}")
