"""Keep the last interactions without a click of each user: indexes by user, and a table for dropped logs.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from service.storage.postgres.migrations.indexes import build_index_of_parts
from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
BYTEWISE = sa.Text(collation="C")

FOLDED = "when its log was added to user_histories and user_passes"
FOLDED_BEFORE = "when the clicks of its log were added to user_histories"


def upgrade() -> None:
    """Create the indexes and the table. Of logs that are dropped already only the clicks are known."""
    with op.get_context().autocommit_block():  # a log may have millions of rows
        build_index_of_parts(
            "ix_interactions_passes",
            "interactions",
            "(user_id, occurred_at DESC, event_id DESC) WHERE label = 0 AND NOT sampled",
        )
        build_index_of_parts("ix_impressions_user_id", "impressions", "(user_id, shown_at DESC)")
    op.create_table(
        "user_passes",
        sa.Column("user_id", BYTEWISE, nullable=False),
        sa.Column("item_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("event_ids", ARRAY(sa.Text()), nullable=False),
        sa.Column("times", ARRAY(TIMESTAMP), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_user_passes"),
    )
    op.alter_column("periods", "log_folded_at", comment=FOLDED, existing_comment=FOLDED_BEFORE)


def downgrade() -> None:
    """Drop the last interactions without a click of dropped logs."""
    refuse_losses({"user_passes": "user_passes"})
    op.alter_column("periods", "log_folded_at", comment=FOLDED_BEFORE, existing_comment=FOLDED)
    op.drop_table("user_passes")
    op.drop_index("ix_impressions_user_id", "impressions")
    op.drop_index("ix_interactions_passes", "interactions")
