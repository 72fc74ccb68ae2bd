"""Alerts, and webhooks with their outbox.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "alerts",
        sa.Column("number", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "subject", sa.Text(), nullable=False, comment="what it is about, of a kind that can be wrong with several"
        ),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer()),
        sa.Column("version", sa.Integer()),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("numbers", JSONB(), nullable=False),
        sa.Column("opened_at", TIMESTAMP, nullable=False, server_default=NOW),
        sa.Column("raised_at", TIMESTAMP, nullable=False, server_default=NOW, comment="the last time"),
        sa.Column(
            "times", sa.Integer(), nullable=False, server_default=sa.text("1"), comment="how often it was raised"
        ),
        sa.Column("acknowledged_at", TIMESTAMP),
        sa.Column("acknowledged_by", sa.Text()),
        sa.Column("closed_at", TIMESTAMP, comment="null while it is open"),
        sa.Column("closed_by", sa.Text()),
        sa.Column("closed_reason", sa.Text()),
        sa.PrimaryKeyConstraint("number", name="pk_alerts"),
        sa.CheckConstraint("severity IN ('warning', 'critical')", name="ck_alerts_severity"),
        sa.CheckConstraint("num_nulls(closed_at, closed_by, closed_reason) IN (0, 3)", name="ck_alerts_closed"),
        sa.CheckConstraint("(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name="ck_alerts_acknowledged"),
    )
    op.create_index(
        "uq_alerts_open", "alerts", ["kind", "subject"], unique=True, postgresql_where=sa.text("closed_at IS NULL")
    )
    op.create_table(
        "webhooks",
        sa.Column("number", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text()), comment="null for all, also those of later releases"),
        sa.Column("secret", sa.Text(), nullable=False, comment="signs; it cannot be a hash"),
        sa.Column("old_secret", sa.Text(), comment="signs too, until its time is over"),
        sa.Column("old_secret_until", TIMESTAMP),
        sa.Column("created_at", TIMESTAMP, nullable=False, server_default=NOW),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("off_at", TIMESTAMP, comment="null while it is on"),
        sa.Column("off_reason", sa.Text()),
        sa.PrimaryKeyConstraint("number", name="pk_webhooks"),
        sa.CheckConstraint("(off_at IS NULL) = (off_reason IS NULL)", name="ck_webhooks_off"),
        sa.CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", name="ck_webhooks_old_secret"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("number", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("webhook", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False, comment="id of what is told, the same at every attempt"),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        sa.Column("occurred_at", TIMESTAMP, nullable=False, server_default=NOW),
        sa.Column("status", sa.Text(), nullable=False, server_default=sa.text("'waiting'")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("queued_at", TIMESTAMP, nullable=False, server_default=NOW, comment="since when it is to be sent"),
        sa.Column("due_at", TIMESTAMP, server_default=NOW, comment="time of the next attempt; null if there is none"),
        sa.Column("attempted_at", TIMESTAMP),
        sa.Column("answer", sa.Integer(), comment="status of the last HTTP response"),
        sa.Column("error", sa.Text(), comment="of the last attempt"),
        sa.PrimaryKeyConstraint("number", name="pk_webhook_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook"], ["webhooks.number"], name="fk_webhook_deliveries_webhook_webhooks", ondelete="CASCADE"
        ),
        sa.CheckConstraint("status IN ('waiting', 'delivered', 'failed')", name="ck_webhook_deliveries_status"),
        sa.CheckConstraint("(status = 'waiting') = (due_at IS NOT NULL)", name="ck_webhook_deliveries_due_at"),
    )
    op.create_index("ix_webhook_deliveries_webhook", "webhook_deliveries", ["webhook"])
    op.create_index(
        "ix_webhook_deliveries_due_at",
        "webhook_deliveries",
        ["due_at"],
        postgresql_where=sa.text("status = 'waiting'"),
    )


def downgrade() -> None:
    """Drop the tables."""
    refuse_losses({name: name for name in ("alerts", "webhooks", "webhook_deliveries")})
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")
    op.drop_table("alerts")
