"""Periods that cannot be learned: `failed` becomes `quarantined`, one may be skipped, and dead workers are counted.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import conv

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: None = None
depends_on: None = None

# Not `op.f`, which is there while migrations run and not where their order alone is asked for.
CONSTRAINT = conv("ck_periods_status")
FIRST_NAME = conv("ck_periods_ck_periods_status")
"""Of the same constraint in 0001, whose names got their beginning twice."""


def upgrade() -> None:
    """Rename the status, allow the new one, add who is at the update and the counter."""
    op.drop_constraint(FIRST_NAME, "periods", type_="check")
    op.execute("UPDATE periods SET status = 'quarantined' WHERE status = 'failed'")
    op.create_check_constraint(
        CONSTRAINT,
        "periods",
        "status IN ('open', 'sealed', 'updating', 'updated', 'quarantined', 'skipped')",
    )
    op.add_column(
        "periods",
        sa.Column(
            "worker", sa.Text(), comment="the process that is at the update; one that never let go of it has died"
        ),
    )
    op.add_column(
        "periods",
        sa.Column(
            "crashes",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="workers that died in a row at the update without a stage done",
        ),
    )


def downgrade() -> None:
    """Undo `upgrade`; that a period was skipped is lost, it counts as failed."""
    refuse_losses(
        {
            "periods.status": "periods WHERE status = 'skipped'",
            "periods.worker": "periods WHERE worker IS NOT NULL",
            "periods.crashes": "periods WHERE crashes <> 0",
        }
    )
    op.drop_column("periods", "crashes")
    op.drop_column("periods", "worker")
    op.drop_constraint(CONSTRAINT, "periods", type_="check")
    op.execute("UPDATE periods SET status = 'failed' WHERE status IN ('quarantined', 'skipped')")
    op.create_check_constraint(FIRST_NAME, "periods", "status IN ('open', 'sealed', 'updating', 'updated', 'failed')")
