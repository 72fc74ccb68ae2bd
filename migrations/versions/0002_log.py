"""The log in one partition a period; ids of events, and folded histories, beside it.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
BYTEWISE = sa.Text(collation="C")
CONTENT = "XXH64 of the rest of the event; null where it is not known"


def upgrade() -> None:
    """Move the log over, period by period."""
    op.add_column("periods", sa.Column("log_dropped_at", TIMESTAMP))
    op.add_column(
        "periods",
        sa.Column("ids_merged_at", TIMESTAMP, comment="when the ids of its events were noted in event_ids"),
    )
    op.create_table(
        "event_ids",
        sa.Column("kind", sa.SmallInteger(), nullable=False, comment="0: interaction"),
        sa.Column("event_id", BYTEWISE, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("content", sa.BigInteger(), comment=CONTENT),
        sa.PrimaryKeyConstraint("kind", "event_id", name="pk_event_ids"),
    )
    op.create_index("ix_event_ids_period", "event_ids", ["period"])
    op.create_table(
        "user_histories",
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("event_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("times", ARRAY(TIMESTAMP), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_user_histories"),
    )
    op.execute("DROP INDEX ix_interactions_log, ix_interactions_positives")
    op.execute("ALTER TABLE interactions RENAME TO interactions_before")
    op.execute("ALTER TABLE interactions_before DROP CONSTRAINT pk_interactions")
    op.create_table(
        "interactions",
        sa.Column("event_id", BYTEWISE, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_id", BYTEWISE, nullable=False),
        sa.Column("label", sa.SmallInteger(), nullable=False),
        sa.Column("occurred_at", TIMESTAMP, nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("content", sa.BigInteger(), comment=CONTENT),
        sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("label IN (0, 1)", name="ck_interactions_label"),
        sa.PrimaryKeyConstraint("event_id", "period", name="pk_interactions"),
        postgresql_partition_by="LIST (period)",
    )
    op.create_index(
        "ix_interactions_positives",
        "interactions",
        ["user_id", sa.literal_column("occurred_at DESC"), sa.literal_column("event_id DESC")],
        postgresql_where=sa.text("label = 1"),
    )
    op.execute("""
        DO $$
        DECLARE number integer;
        BEGIN
            FOR number IN SELECT periods.number FROM periods LOOP
                EXECUTE format(
                    'CREATE TABLE interactions_p%1$s PARTITION OF interactions FOR VALUES IN (%1$s)', number);
            END LOOP;
        END $$
    """)
    op.execute("""
        INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at, request_id, received_at)
        SELECT event_id, period, user_id, item_id, label, occurred_at, request_id, received_at FROM interactions_before
    """)
    op.execute("""
        INSERT INTO event_ids (kind, event_id, period)
        SELECT 0, event_id, period FROM interactions_before JOIN periods ON number = period WHERE status <> 'open'
    """)
    op.execute("UPDATE periods SET ids_merged_at = now() WHERE status <> 'open'")
    op.drop_table("interactions_before")


def downgrade() -> None:
    """Put what is left of the log into one table again; what was dropped or folded is gone."""
    op.drop_index("ix_interactions_positives", "interactions")
    op.execute("ALTER TABLE interactions RENAME TO interactions_after")
    op.execute("ALTER TABLE interactions_after DROP CONSTRAINT pk_interactions")
    op.create_table(
        "interactions",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("label", sa.SmallInteger(), nullable=False),
        sa.Column("occurred_at", TIMESTAMP, nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("label IN (0, 1)", name="ck_interactions_label"),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_interactions_period_periods"),
        sa.PrimaryKeyConstraint("event_id", name="pk_interactions"),
    )
    op.create_index("ix_interactions_log", "interactions", ["period", "occurred_at", "seq"])
    op.create_index(
        "ix_interactions_positives",
        "interactions",
        ["user_id", sa.literal_column("occurred_at DESC"), sa.literal_column("seq DESC")],
        postgresql_where=sa.text("label = 1"),
    )
    op.execute("""
        INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at, request_id, received_at)
        SELECT event_id, period, user_id, item_id, label, occurred_at, request_id, received_at
        FROM interactions_after ORDER BY period, occurred_at, event_id
    """)
    op.drop_table("interactions_after")
    op.drop_table("user_histories")
    op.drop_table("event_ids")
    op.drop_column("periods", "ids_merged_at")
    op.drop_column("periods", "log_dropped_at")
