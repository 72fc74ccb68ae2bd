"""Indexes of tables that can be large, built while the service works."""

from alembic import op

__all__ = ["build_index"]

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
