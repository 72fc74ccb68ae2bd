"""Update methods that run beside the served one.

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
SERVED = "model IN ('generated', 'incremental', 'previous', 'baseline')"


def upgrade() -> None:
    """Add the tables, and let evaluations be of shadows."""
    op.create_table(
        "shadows",
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="it has learned what this one has"),
        sa.Column(
            "state",
            JSONB,
            nullable=False,
            comment="its training state: name to artifact digest; {} for the version's own",
        ),
        sa.Column(
            "attempts",
            sa.Integer(),
            nullable=False,
            server_default=sa.text("0"),
            comment="at the next period, so far",
        ),
        sa.Column("updated_at", TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.ForeignKeyConstraint(["version"], ["model_versions.version"], name="fk_shadows_version_model_versions"),
        sa.PrimaryKeyConstraint("method", name="pk_shadows"),
    )
    op.create_table(
        "shadow_periods",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("learned", JSONB, comment="artifacts of the prepared period; null where there was nothing to learn"),
        sa.Column("late", sa.Boolean(), nullable=False, comment="whether a later period was learned before this one"),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.version"], name="fk_shadow_periods_version_model_versions"
        ),
        sa.PrimaryKeyConstraint("version", name="pk_shadow_periods"),
    )
    op.drop_constraint("ck_evaluations_model", "evaluations", type_="check")
    op.create_check_constraint("ck_evaluations_model", "evaluations", f"{SERVED} OR model LIKE 'shadow:%'")


def downgrade() -> None:
    """Drop the tables and the scores of shadows, if there are none or they may be lost."""
    refuse_losses(
        {
            "shadows": "shadows",
            "shadow_periods": "shadow_periods",
            "evaluations": "evaluations WHERE model LIKE 'shadow:%'",
        }
    )
    op.execute("DELETE FROM evaluations WHERE model LIKE 'shadow:%'")
    op.drop_constraint("ck_evaluations_model", "evaluations", type_="check")
    op.create_check_constraint("ck_evaluations_model", "evaluations", SERVED)
    op.drop_table("shadow_periods")
    op.drop_table("shadows")
