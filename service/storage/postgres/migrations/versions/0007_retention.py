"""Add pinned versions and the previous version of an alias; reuse the space of old versions sooner.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Pin nothing. The champion's previous version is its parent, which is right unless somebody rolled back."""
    # One of some 50 versions is removed each period. With the default of 20 % the space of ten would stay unused.
    op.execute("ALTER TABLE artifact_chunks SET (toast.autovacuum_vacuum_scale_factor = 0.05)")
    op.add_column(
        "model_versions",
        sa.Column(
            "pinned",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="an operator wants it kept whole",
        ),
    )
    op.add_column("aliases", sa.Column("previous_version", sa.Integer(), comment="what it named before"))
    op.create_foreign_key(
        "fk_aliases_previous_version_model_versions", "aliases", "model_versions", ["previous_version"], ["version"]
    )
    op.execute("""
        UPDATE aliases SET previous_version = model_versions.parent_version
        FROM model_versions WHERE model_versions.version = aliases.version AND aliases.name = 'champion'
    """)


def downgrade() -> None:
    """Drop both columns."""
    refuse_losses(
        {
            "model_versions.pinned": "model_versions WHERE pinned",
            "aliases.previous_version": (
                "aliases JOIN model_versions USING (version) WHERE previous_version IS NOT NULL "
                "AND (name <> 'champion' OR previous_version IS DISTINCT FROM parent_version)"
            ),
        }
    )
    op.execute("ALTER TABLE artifact_chunks RESET (toast.autovacuum_vacuum_scale_factor)")
    op.drop_constraint("fk_aliases_previous_version_model_versions", "aliases", type_="foreignkey")
    op.drop_column("aliases", "previous_version")
    op.drop_column("model_versions", "pinned")
