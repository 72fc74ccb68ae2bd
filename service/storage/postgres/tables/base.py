"""The metadata that all tables register with, and column types that several of them use."""

from sqlalchemy import DateTime, MetaData, Text

__all__ = ["BYTEWISE", "TIMESTAMP", "metadata"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

TIMESTAMP = DateTime(timezone=True)

BYTEWISE = Text(collation="C")
"""Text that is compared by its bytes, as Python compares strings. So a log has the same order on every server."""
