"""Add deletions of users and items, and the number of interactions that they removed from each closed period.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table and the counter. Nothing was deleted so far."""
    op.create_table(
        "deletions",
        sa.Column("deletion", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), comment="null as soon as all of it is removed"),
        sa.Column("key", sa.Text(), nullable=False, comment="of the digest, in hex"),
        sa.Column("digest", sa.Text(), nullable=False, comment="HMAC-SHA256 of the id, in hex"),
        sa.Column("requested_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", TIMESTAMP),
        sa.Column(
            "removed", JSONB(), server_default=sa.text("'{}'"), nullable=False, comment="rows, by what they were"
        ),
        sa.PrimaryKeyConstraint("deletion", name="pk_deletions"),
        sa.CheckConstraint("kind IN ('user', 'item')", name="ck_deletions_kind"),
        sa.CheckConstraint("(id IS NULL) = (finished_at IS NOT NULL)", name="ck_deletions_finished"),
    )
    op.create_index(
        "uq_deletions_pending", "deletions", ["kind", "id"], unique=True, postgresql_where=sa.text("id IS NOT NULL")
    )
    op.add_column(
        "periods",
        sa.Column(
            "forgotten",
            sa.BigInteger(),
            nullable=False,
            server_default=sa.text("0"),
            comment="interactions that deletions have removed since they were counted",
        ),
    )


def downgrade() -> None:
    """Drop the list of deletions. Restoring a backup from before a deletion then brings its data back."""
    refuse_losses({"deletions": "deletions", "periods.forgotten": "periods WHERE forgotten > 0"})
    op.drop_column("periods", "forgotten")
    op.drop_table("deletions")
