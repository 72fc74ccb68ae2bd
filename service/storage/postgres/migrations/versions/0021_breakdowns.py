"""Scores of a period by parts of its log.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Add the table. Periods that were scored before have no rows in it."""
    op.create_table(
        "breakdowns",
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False, comment="scores of all models by parts of the log"),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_breakdowns_period_periods"),
        sa.PrimaryKeyConstraint("period", name="pk_breakdowns"),
    )


def downgrade() -> None:
    """Drop the table, if it is empty or may be lost."""
    refuse_losses({"breakdowns": "breakdowns"})
    op.drop_table("breakdowns")
