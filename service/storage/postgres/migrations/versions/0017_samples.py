"""What is kept of each period, and what model versions say about it.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables. Of periods that were learned before nothing is kept."""
    op.create_table(
        "period_samples",
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "profile", JSONB, nullable=False, comment="of the whole period: how its inputs and scores are distributed"
        ),
        sa.Column(
            "digest", sa.Text(), comment="artifact of the interactions that are kept; null once they are too old"
        ),
        sa.Column("served_version", sa.Integer(), comment="which was served when the period was closed"),
        sa.Column("served_logits", sa.LargeBinary(), comment="float32: what it said of each interaction"),
        sa.Column(
            "allocations",
            JSONB,
            nullable=False,
            comment="kind → number of the latest allocation of rows they know",
        ),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_period_samples_period_periods"),
        sa.PrimaryKeyConstraint("period", name="pk_period_samples"),
    )
    op.create_table(
        "sample_scores",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("requested_at", TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.Column("scored_at", TIMESTAMP, comment="null while nobody has scored it yet"),
        sa.Column("events", sa.BigInteger()),
        sa.Column("auc", sa.Double(), comment="null where all labels are equal"),
        sa.Column("logloss", sa.Double()),
        sa.Column("served_logloss", sa.Double(), comment="of what was served, on the same interactions"),
        sa.Column("error", sa.Double(), comment="standard error of logloss - served_logloss"),
        sa.Column("failure", sa.Text(), comment="why the version could not score the period"),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.version"], name="fk_sample_scores_version_model_versions"
        ),
        sa.ForeignKeyConstraint(["period"], ["period_samples.period"], name="fk_sample_scores_period_period_samples"),
        sa.PrimaryKeyConstraint("version", "period", name="pk_sample_scores"),
    )
    op.create_index(
        "ix_sample_scores_waiting", "sample_scores", ["version"], postgresql_where=sa.text("scored_at IS NULL")
    )


def downgrade() -> None:
    """Drop the tables, if they are empty or may be lost."""
    refuse_losses({"period_samples": "period_samples", "sample_scores": "sample_scores"})
    op.drop_table("sample_scores")
    op.drop_table("period_samples")
