"""Which periods the worker has exported.

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the column; nothing is exported so far."""
    op.add_column("periods", sa.Column("exported_at", TIMESTAMP, comment="when its log was exported last"))


def downgrade() -> None:
    """Drop the column; a worker of a later release would export everything again."""
    refuse_losses({"periods.exported_at": "periods WHERE exported_at IS NOT NULL"})
    op.drop_column("periods", "exported_at")
