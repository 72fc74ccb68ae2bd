"""Delayed labels: tables of impressions and clicks, which are joined at the end of a period; sampled negatives.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
BYTEWISE = sa.Text(collation="C")


def upgrade() -> None:
    """Create the tables, with a partition for each period that has a log."""
    op.add_column(
        "periods",
        sa.Column("labels", JSONB(), comment="what became of its impressions and clicks; null until they are resolved"),
    )
    op.execute("UPDATE periods SET labels = '{}' WHERE status NOT IN ('open', 'sealed', 'updating')")
    op.alter_column("event_ids", "kind", comment="0: interaction, 1: impression, 2: click")
    op.add_column(
        "interactions",
        sa.Column(
            "sampled",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="a negative that nobody was shown",
        ),
    )
    op.create_table(
        "impressions",
        sa.Column("request_id", BYTEWISE, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_ids", ARRAY(BYTEWISE), nullable=False),
        sa.Column("positions", ARRAY(sa.Integer()), comment="null for 0, 1, 2, …"),
        sa.Column("shown_at", TIMESTAMP, nullable=False),
        sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "period", name="pk_impressions"),
        postgresql_partition_by="LIST (period)",
    )
    op.create_table(
        "clicks",
        sa.Column("event_id", BYTEWISE, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("request_id", BYTEWISE, nullable=False),
        sa.Column("item_id", BYTEWISE, nullable=False),
        sa.Column("clicked_at", TIMESTAMP, nullable=False),
        sa.Column(
            "interaction_id", BYTEWISE, nullable=False, comment="event id of the interaction that it makes a click"
        ),
        sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        postgresql_partition_by="LIST (period)",
    )
    op.create_index("ix_clicks_request_id", "clicks", ["request_id"])
    op.create_table(
        "unresolved_positives",
        sa.Column("interaction_id", BYTEWISE, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False, comment="of the click"),
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_id", BYTEWISE, nullable=False),
        sa.Column("shown_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("interaction_id", name="pk_unresolved_positives"),
    )
    op.create_index(
        "ix_unresolved_positives_user_id",
        "unresolved_positives",
        ["user_id", sa.literal_column("shown_at DESC"), sa.literal_column("interaction_id DESC")],
    )
    op.execute("""
        DO $$
        DECLARE number integer;
        BEGIN
            FOR number IN SELECT periods.number FROM periods WHERE log_dropped_at IS NULL LOOP
                EXECUTE format(
                    'CREATE TABLE impressions_p%1$s PARTITION OF impressions FOR VALUES IN (%1$s)', number);
                EXECUTE format('CREATE TABLE clicks_p%1$s PARTITION OF clicks FOR VALUES IN (%1$s)', number);
            END LOOP;
        END $$
    """)


def downgrade() -> None:
    """Drop unresolved impressions and clicks. Sampled negatives stay, and cannot be told from others any more."""
    refuse_losses(
        {
            "impressions": "impressions",
            "clicks": "clicks",
            "event_ids": "event_ids WHERE kind IN (1, 2)",
            "unresolved_positives": "unresolved_positives",
            "interactions.sampled": "interactions WHERE sampled",
            "periods.labels": "periods WHERE labels <> '{}'",
        }
    )
    op.drop_column("interactions", "sampled")
    op.drop_table("unresolved_positives")
    op.drop_table("clicks")
    op.drop_table("impressions")
    op.execute("DELETE FROM event_ids WHERE kind IN (1, 2)")
    op.alter_column("event_ids", "kind", comment="0: interaction")
    op.drop_column("periods", "labels")
