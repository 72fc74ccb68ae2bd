"""Rename the status `failed` to `quarantined`, add `skipped`, and count workers that crash during an update.

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

# `conv`, and not `op.f`, which fails where the module is only imported to read its revision.
CONSTRAINT = conv("ck_periods_status")
FIRST_NAME = conv("ck_periods_ck_periods_status")
"""Name of the constraint that 0001 made. The naming convention added the prefix a second time."""


def upgrade() -> None:
    """Rename the status, allow the new one, add the worker of the update and the counter of crashes."""
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
    """Undo `upgrade`. Skipped periods become failed ones."""
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
