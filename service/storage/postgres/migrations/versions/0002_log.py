"""Partition the log by period; add tables of event ids and of the histories of dropped logs.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.schema import conv

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
BYTEWISE = sa.Text(collation="C")
LABEL_CHECK = conv("ck_interactions_ck_interactions_label")
CONTENT = "XXH64 of the rest of the event; null where it is not known"


COPIED = "event_id, period, user_id, item_id, label, occurred_at, request_id, received_at"

# Copies one closed period in one statement. So the table of a period exists only if it is complete. With the check
# constraint, Postgres need not scan the table when it becomes a partition.
COPY_CLOSED = f"""
    DO $$ BEGIN
        CREATE TABLE interactions_p{{number}} (LIKE interactions_parts INCLUDING ALL, CONSTRAINT one_period
            CHECK (period = {{number}}));
        INSERT INTO interactions_p{{number}} ({COPIED}) SELECT {COPIED} FROM interactions WHERE period = {{number}};
        INSERT INTO event_ids (kind, event_id, period)
        SELECT 0, event_id, period FROM interactions WHERE period = {{number}};
    END $$
"""


def upgrade() -> None:
    """Copy closed periods one by one while the service works; then copy the others and swap the tables at once."""
    with op.get_context().autocommit_block():
        op.create_table(
            "event_ids",
            sa.Column("kind", sa.SmallInteger(), nullable=False, comment="0: interaction"),
            sa.Column("event_id", BYTEWISE, nullable=False),
            sa.Column("period", sa.Integer(), nullable=False),
            sa.Column("content", sa.BigInteger(), comment=CONTENT),
            sa.PrimaryKeyConstraint("kind", "event_id", name="pk_event_ids"),
            if_not_exists=True,
        )
        op.create_index("ix_event_ids_period", "event_ids", ["period"], if_not_exists=True)
        op.create_table(
            "interactions_parts",
            sa.Column("event_id", BYTEWISE, nullable=False),
            sa.Column("period", sa.Integer(), nullable=False),
            sa.Column("user_id", BYTEWISE, nullable=False),
            sa.Column("item_id", BYTEWISE, nullable=False),
            sa.Column("label", sa.SmallInteger(), nullable=False),
            sa.Column("occurred_at", TIMESTAMP, nullable=False),
            sa.Column("request_id", sa.Text()),
            sa.Column("content", sa.BigInteger(), comment=CONTENT),
            sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
            sa.CheckConstraint("label IN (0, 1)", name=LABEL_CHECK),
            sa.PrimaryKeyConstraint("event_id", "period", name="pk_interactions_parts"),
            postgresql_partition_by="LIST (period)",
            if_not_exists=True,
        )
        op.create_index(
            "ix_interactions_parts_positives",
            "interactions_parts",
            ["user_id", sa.literal_column("occurred_at DESC"), sa.literal_column("event_id DESC")],
            postgresql_where=sa.text("label = 1"),
            if_not_exists=True,
        )
        for number in _numbers("status <> 'open' AND to_regclass('interactions_p' || number) IS NULL"):
            op.execute(COPY_CLOSED.format(number=number))
    op.add_column("periods", sa.Column("log_dropped_at", TIMESTAMP))
    op.add_column(
        "periods",
        sa.Column("ids_merged_at", TIMESTAMP, comment="when the ids of its events were noted in event_ids"),
    )
    op.create_table(
        "user_histories",
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("event_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("times", ARRAY(TIMESTAMP), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_user_histories"),
    )
    op.execute("LOCK TABLE interactions IN ACCESS EXCLUSIVE MODE")  # from here on nobody can add to the open period
    late = _numbers("to_regclass('interactions_p' || number) IS NULL")  # the open one, and those closed meanwhile
    for number in late:
        op.execute(f"CREATE TABLE interactions_p{number} (LIKE interactions_parts INCLUDING ALL)")
        op.execute(
            f"INSERT INTO interactions_p{number} ({COPIED}) SELECT {COPIED} FROM interactions WHERE period = {number}"
        )
        op.execute(f"""
            INSERT INTO event_ids (kind, event_id, period)
            SELECT 0, event_id, period FROM interactions JOIN periods ON number = period
            WHERE period = {number} AND status <> 'open'
        """)
    for number in _numbers("true"):
        part = f"interactions_p{number}"
        op.execute(f"ALTER TABLE interactions_parts ATTACH PARTITION {part} FOR VALUES IN ({number})")
        op.execute(f"ALTER TABLE {part} DROP CONSTRAINT IF EXISTS one_period")
    op.execute("UPDATE periods SET ids_merged_at = now() WHERE status <> 'open'")
    op.drop_table("interactions")
    op.execute("ALTER TABLE interactions_parts RENAME TO interactions")
    op.execute("ALTER INDEX pk_interactions_parts RENAME TO pk_interactions")
    op.execute("ALTER INDEX ix_interactions_parts_positives RENAME TO ix_interactions_positives")


def _numbers(condition: str) -> list[int]:
    """Numbers of the periods that meet an SQL condition."""
    query = f"SELECT number FROM periods WHERE {condition} ORDER BY number"
    return list(op.get_bind().exec_driver_sql(query).scalars())


def downgrade() -> None:
    """Copy the rest of the log into one table. Dropped logs and the histories made from them are lost."""
    refuse_losses(
        {
            "user_histories": "user_histories",
            "event_ids": (
                "event_ids WHERE content IS NOT NULL OR NOT EXISTS (SELECT FROM interactions "
                "WHERE (interactions.event_id, interactions.period) = (event_ids.event_id, event_ids.period))"
            ),
            "interactions.content": "interactions WHERE content IS NOT NULL",
            "periods.log_dropped_at": "periods WHERE log_dropped_at IS NOT NULL",
            "periods.ids_merged_at": "periods WHERE ids_merged_at IS NOT NULL",
        }
    )
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
