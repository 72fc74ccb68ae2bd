"""Tables of the update methods that run beside the served one, and of the periods that they have to learn."""

from sqlalchemy import Boolean, Column, ForeignKey, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["shadow_periods", "shadows"]

shadows = Table(
    "shadows",
    metadata,
    Column("method", Text, primary_key=True),
    Column("version", ForeignKey("model_versions.version"), nullable=False, comment="it has learned what this one has"),
    Column(
        "state", JSONB, nullable=False, comment="its training state: name to artifact digest; {} for the version's own"
    ),
    Column("attempts", Integer, nullable=False, server_default=text("0"), comment="at the next period, so far"),
    Column("updated_at", TIMESTAMP, nullable=False, server_default=func.now()),
)

shadow_periods = Table(
    "shadow_periods",
    metadata,
    # Versions that the shadows have not all come to yet.
    Column("version", ForeignKey("model_versions.version"), primary_key=True, autoincrement=False),
    Column("learned", JSONB, comment="artifacts of the prepared period; null where there was nothing to learn"),
    Column("late", Boolean, nullable=False, comment="whether a later period was learned before this one"),
)
