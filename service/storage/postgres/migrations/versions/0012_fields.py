"""Fields: contexts and weights of interactions, contexts of impressions, features of users and items.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import conv

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
BYTEWISE = sa.Text(collation="C")

# `conv`, and not `op.f`, which fails where the module is only imported to read its revision.
CONSTRAINT = conv("ck_entity_rows_kind")
FIRST_NAME = conv("ck_entity_rows_ck_entity_rows_kind")
"""Name of the constraint that 0001 made. The naming convention added the prefix a second time."""

OWNERS = ("user", "item")


def upgrade() -> None:
    """Add the columns and tables, which are empty so far."""
    op.add_column("interactions", sa.Column("context", JSONB(), comment="values of the fields of the context, as sent"))
    op.add_column("interactions", sa.Column("weight", sa.REAL(), comment="null for 1"))
    op.add_column("impressions", sa.Column("context", JSONB(), comment="of all items"))
    op.add_column(
        "impressions", sa.Column("item_contexts", JSONB(), comment="of each item, in their order; null for none")
    )
    for owner in OWNERS:
        op.create_table(
            f"{owner}_features",
            sa.Column(f"{owner}_id", BYTEWISE, nullable=False),
            sa.Column("at", TIMESTAMP, nullable=False, comment="from when on they hold"),
            sa.Column("features", JSONB(), nullable=False),
            sa.PrimaryKeyConstraint(f"{owner}_id", "at", name=f"pk_{owner}_features"),
        )
    op.drop_constraint(FIRST_NAME, "entity_rows", type_="check")
    op.create_check_constraint(CONSTRAINT, "entity_rows", "kind IN ('user', 'item', 'category', 'field')")


def downgrade() -> None:
    """Drop all values of fields."""
    refuse_losses(
        {
            "interactions.context": "interactions WHERE context IS NOT NULL",
            "interactions.weight": "interactions WHERE weight IS NOT NULL",
            "impressions.context": "impressions WHERE context IS NOT NULL",
            "impressions.item_contexts": "impressions WHERE item_contexts IS NOT NULL",
            "user_features": "user_features",
            "item_features": "item_features",
            "entity_rows": "entity_rows WHERE kind = 'field'",
            "seen_rows": "seen_rows WHERE kind = 'field'",
        }
    )
    op.execute("DELETE FROM seen_rows WHERE kind = 'field'")
    op.execute("DELETE FROM entity_rows WHERE kind = 'field'")
    op.drop_constraint(CONSTRAINT, "entity_rows", type_="check")
    op.create_check_constraint(FIRST_NAME, "entity_rows", "kind IN ('user', 'item', 'category')")
    for owner in OWNERS:
        op.drop_table(f"{owner}_features")
    op.drop_column("impressions", "item_contexts")
    op.drop_column("impressions", "context")
    op.drop_column("interactions", "weight")
    op.drop_column("interactions", "context")
