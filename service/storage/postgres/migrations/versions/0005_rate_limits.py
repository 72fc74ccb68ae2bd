"""Give each API key a rate limit of its own.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Add the column. Existing keys keep the limit of the setting."""
    comment = "requests a second; 0: any number, null: as ASMG_RATE_LIMIT says"
    op.add_column("api_keys", sa.Column("rate_limit", sa.Double(), comment=comment))
    op.create_check_constraint(op.f("ck_api_keys_rate_limit"), "api_keys", "rate_limit >= 0")


def downgrade() -> None:
    """Drop the limits of keys."""
    refuse_losses({"api_keys.rate_limit": "api_keys WHERE rate_limit IS NOT NULL"})
    op.drop_column("api_keys", "rate_limit")
