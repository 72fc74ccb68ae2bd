"""Artifacts whose content is an object in an object store.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import conv

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: None = None
depends_on: None = None

CONSTRAINT = conv("uq_artifacts_key")


def upgrade() -> None:
    """Add the column; all contents are in Postgres so far. The table has some hundred rows."""
    comment = "of its object in the object store; null for the chunks"
    op.add_column("artifacts", sa.Column("key", sa.Text(), comment=comment))
    op.create_unique_constraint(CONSTRAINT, "artifacts", ["key"])


def downgrade() -> None:
    """Drop the column; an artifact whose content is an object cannot be read any more."""
    refuse_losses({"artifacts.key": "artifacts WHERE key IS NOT NULL"})
    op.drop_constraint(CONSTRAINT, "artifacts")
    op.drop_column("artifacts", "key")
