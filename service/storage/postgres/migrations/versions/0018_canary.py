"""Canaries: versions that answer a share of the users first; and what was served with each impression that is logged.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.migrations.indexes import build_index_of_parts
from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)

SERVED = {
    "model_version integer": "that scored the items; null where a client reports the impression",
    "scores real[]": "of each item, in their order; null where a client reports the impression",
}
"""Columns of impressions, with their comments."""


def upgrade() -> None:
    """Add the table and the columns. Of impressions that were logged before it is not known what was served."""
    with op.get_context().autocommit_block():  # a log may have millions of rows
        for column, comment in SERVED.items():
            op.execute(f"ALTER TABLE impressions ADD COLUMN IF NOT EXISTS {column}")
            op.execute(f"COMMENT ON COLUMN impressions.{column.split()[0]} IS '{comment}'")
        build_index_of_parts("ix_impressions_served", "impressions", "(shown_at) WHERE model_version IS NOT NULL")
    op.create_table(
        "canaries",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("champion_version", sa.Integer(), nullable=False, comment="answers the others"),
        sa.Column("share", sa.Double(), nullable=False, comment="of the users"),
        sa.Column(
            "salt",
            sa.Integer(),
            nullable=False,
            comment="which users; a canary takes it over from the one it replaces",
        ),
        sa.Column("minutes", sa.Double(), nullable=False, comment="after which it is decided at the latest"),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'running'")),
        sa.Column("announced_at", TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.Column("ended_at", TIMESTAMP, comment="null while it runs"),
        sa.Column("ended_by", sa.Text()),
        sa.Column("reason", sa.Text(), comment="of its end"),
        sa.Column("numbers", JSONB, comment="by which it was decided"),
        sa.CheckConstraint("state IN ('running', 'promoted', 'reverted', 'replaced')", name="ck_canaries_state"),
        sa.CheckConstraint(
            "num_nulls(ended_at, ended_by, reason) = CASE state WHEN 'running' THEN 3 ELSE 0 END",
            name="ck_canaries_ended",
        ),
        sa.ForeignKeyConstraint(["version"], ["model_versions.version"], name="fk_canaries_version_model_versions"),
        sa.ForeignKeyConstraint(
            ["champion_version"], ["model_versions.version"], name="fk_canaries_champion_version_model_versions"
        ),
        sa.PrimaryKeyConstraint("version", name="pk_canaries"),
    )
    op.create_index(
        "uq_canaries_running", "canaries", ["state"], unique=True, postgresql_where=sa.text("state = 'running'")
    )
    op.add_column(
        "aliases",
        sa.Column("canary_version", sa.Integer(), comment="answers a share of the users beside the champion"),
    )
    op.add_column("takeovers", sa.Column("canary_version", sa.Integer()))
    for table in ("aliases", "takeovers"):
        name = f"fk_{table}_canary_version_canaries"
        op.create_foreign_key(name, table, "canaries", ["canary_version"], ["version"])


def downgrade() -> None:
    """Drop them, if they are empty or may be lost."""
    refuse_losses(
        {
            "canaries": "canaries",
            "aliases.canary_version": "aliases WHERE canary_version IS NOT NULL",
            "takeovers.canary_version": "takeovers WHERE canary_version IS NOT NULL",
            "impressions.model_version": "impressions WHERE model_version IS NOT NULL",
            "impressions.scores": "impressions WHERE scores IS NOT NULL",
        }
    )
    op.drop_index("ix_impressions_served", "impressions")
    op.drop_column("impressions", "scores")
    op.drop_column("impressions", "model_version")
    op.drop_column("takeovers", "canary_version")
    op.drop_column("aliases", "canary_version")
    op.drop_table("canaries")
