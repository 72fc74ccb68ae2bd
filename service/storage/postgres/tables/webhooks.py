"""Tables of webhooks: the endpoints that are told of events, and what they are told."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Identity, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["webhook_deliveries", "webhooks"]

webhooks = Table(
    "webhooks",
    metadata,
    Column("number", Integer, Identity(always=True), primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), comment="null for all, also those of later releases"),
    Column("secret", Text, nullable=False, comment="signs; it cannot be a hash"),
    Column("old_secret", Text, comment="signs too, until its time is over"),
    Column("old_secret_until", TIMESTAMP),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("created_by", Text, nullable=False),
    Column("off_at", TIMESTAMP, comment="null while it is on"),
    Column("off_reason", Text),
    CheckConstraint("(off_at IS NULL) = (off_reason IS NULL)", name="off"),
    CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", name="old_secret"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    # The outbox: rows are added in the transaction of what they tell of, and the leading worker sends them.
    Column("number", Integer, Identity(always=True), primary_key=True),
    Column("webhook", ForeignKey("webhooks.number", ondelete="CASCADE"), nullable=False),
    Column("message", Text, nullable=False, comment="id of what is told, the same at every attempt"),
    Column("event", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    Column("occurred_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("status", Text, nullable=False, server_default=text("'waiting'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("queued_at", TIMESTAMP, nullable=False, server_default=func.now(), comment="since when it is to be sent"),
    Column("due_at", TIMESTAMP, server_default=func.now(), comment="time of the next attempt; null if there is none"),
    Column("attempted_at", TIMESTAMP),
    Column("answer", Integer, comment="status of the last HTTP response"),
    Column("error", Text, comment="of the last attempt"),
    CheckConstraint("status IN ('waiting', 'delivered', 'failed')", name="status"),
    CheckConstraint("(status = 'waiting') = (due_at IS NOT NULL)", name="due_at"),
    Index("ix_webhook_deliveries_webhook", "webhook"),
    Index("ix_webhook_deliveries_due_at", "due_at", postgresql_where=text("status = 'waiting'")),
)
