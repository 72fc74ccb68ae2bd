"""Tables about users and items outside of the log: last interactions of dropped logs, categories, features."""

from typing import Any

from sqlalchemy import Column, Index, Integer, Table, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.tables.base import BYTEWISE, TIMESTAMP, metadata

__all__ = ["item_features", "items", "user_features", "user_histories", "user_passes"]


def _last_interactions(name: str) -> Table:
    """A table of the last interactions of each user in the periods whose log is dropped, newest first."""
    return Table(
        name,
        metadata,
        Column("user_id", BYTEWISE, primary_key=True),
        Column("item_ids", ARRAY(Text), nullable=False),
        Column("event_ids", ARRAY(Text), nullable=False),
        Column("times", ARRAY(TIMESTAMP), nullable=False),
    )


user_histories = _last_interactions("user_histories")
"""Of the interactions with label 1."""
user_passes = _last_interactions("user_passes")
"""Of the others."""

items = Table(
    "items",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("categories", ARRAY(Text), nullable=False),
    Column("period", Integer, nullable=False, comment="the one that was open when the categories were stored"),
    Column("updated_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Index("ix_items_period", "period"),
)


def _features(owner: str, *others: Column[Any] | Index) -> Table:
    """The table of the features of users or items, with some columns and indexes of its own."""
    return Table(
        f"{owner}_features",
        metadata,
        # One row a version. An interaction is learned with the features that were valid at its time.
        Column(f"{owner}_id", BYTEWISE, primary_key=True),
        Column("at", TIMESTAMP, primary_key=True, comment="from when on they hold"),
        Column("features", JSONB, nullable=False),
        *others,
    )


user_features = _features("user")
item_features = _features(
    "item",
    Column("period", Integer, nullable=False, comment="the one that was open when the version was stored"),
    Index("ix_item_features_period", "period"),
)
