"""Table of alerts: what is wrong now, and what was."""

from sqlalchemy import CheckConstraint, Column, Identity, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["alerts"]

alerts = Table(
    "alerts",
    metadata,
    Column("number", Integer, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False, comment="what it is about, of a kind that can be wrong with several"),
    Column("severity", Text, nullable=False),
    Column("period", Integer),
    Column("version", Integer),
    Column("message", Text, nullable=False),
    Column("numbers", JSONB, nullable=False),
    Column("opened_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("raised_at", TIMESTAMP, nullable=False, server_default=func.now(), comment="the last time"),
    Column("times", Integer, nullable=False, server_default=text("1"), comment="how often it was raised"),
    Column("acknowledged_at", TIMESTAMP),
    Column("acknowledged_by", Text),
    Column("closed_at", TIMESTAMP, comment="null while it is open"),
    Column("closed_by", Text),
    Column("closed_reason", Text),
    CheckConstraint("severity IN ('warning', 'critical')", name="severity"),
    CheckConstraint("num_nulls(closed_at, closed_by, closed_reason) IN (0, 3)", name="closed"),
    CheckConstraint("(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name="acknowledged"),
    # At most one is open of a kind and subject, even if two transactions raise it at the same time.
    Index("uq_alerts_open", "kind", "subject", unique=True, postgresql_where=text("closed_at IS NULL")),
)
