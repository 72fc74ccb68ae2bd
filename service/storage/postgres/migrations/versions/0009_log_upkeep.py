"""Count the interactions of the open period; record when the clicks of a log were added to `user_histories`.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Count the open period once. Events that the older release stores after that are counted by the update."""
    op.create_table(
        "log_counters",
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("period", "slot", name="pk_log_counters"),
    )
    op.execute("""
        INSERT INTO log_counters (period, slot, events)
        SELECT period, 0, count(*) FROM interactions
        WHERE period = (SELECT number FROM periods WHERE status = 'open') GROUP BY period
    """)
    comment = "when the clicks of its log were added to user_histories"
    op.add_column("periods", sa.Column("log_folded_at", sa.DateTime(timezone=True), comment=comment))
    op.execute("UPDATE periods SET log_folded_at = log_dropped_at")


def downgrade() -> None:
    """Drop the counters, which can be rebuilt.

    A log whose clicks are in `user_histories` and that is not dropped yet would be added a second time.
    """
    refuse_losses({"periods.log_folded_at": "periods WHERE log_folded_at IS NOT NULL AND log_dropped_at IS NULL"})
    op.drop_column("periods", "log_folded_at")
    op.drop_table("log_counters")
