"""Tables about the rows of the embedding tables: the id that has a row, and the periods that used it."""

from sqlalchemy import CheckConstraint, Column, Index, Integer, Table, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY

from service.storage.postgres.tables.base import metadata

__all__ = ["entity_rows", "seen_rows"]

entity_rows = Table(
    "entity_rows",
    metadata,
    # Each embedding table has rows 1, 2, 3, … here, without gaps; row 0, the cold row, is left out.
    Column("kind", Text, primary_key=True),
    Column(
        "row",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="row of the embedding table; row 0 is the cold row",
    ),
    Column("id", Text, comment="null where the row is free: its id was evicted"),
    Column("first_period", Integer, nullable=False),
    Column("allocation", Integer, nullable=False, comment="number of the one that gave the row to its id, or freed it"),
    # It ascends with the row, so the rows that were added after an allocation are found by bisection, without an index.
    Column("appended", Integer, nullable=False, comment="number of the allocation that added the row"),
    UniqueConstraint("kind", "id"),
    Index("ix_entity_rows_allocation", "kind", "allocation", postgresql_where=text("allocation <> appended")),
    Index("ix_entity_rows_free", "kind", "row", postgresql_where=text("id IS NULL")),
    CheckConstraint("kind IN ('user', 'item', 'category', 'field')", name="kind"),
    CheckConstraint("row >= 1", name="row"),
)

seen_rows = Table(
    "seen_rows",
    metadata,
    # A table of its own: a "last seen" column of `entity_rows` would rewrite each row that a period used, and its index
    # entries.
    Column("kind", Text, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("rows", ARRAY(Integer), nullable=False),
)
