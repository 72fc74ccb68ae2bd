"""Rows of the tables can be free: which rows a period has seen, and which allocation gave an id its row.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Every catalogue entry counts as stored in the open period."""
    op.drop_constraint("pk_entity_rows", "entity_rows")
    op.drop_constraint("uq_entity_rows_kind_row", "entity_rows")
    op.alter_column("entity_rows", "id", nullable=True, comment="null where the row is free: its id was evicted")
    op.create_primary_key("pk_entity_rows", "entity_rows", ["kind", "row"])
    op.create_unique_constraint("uq_entity_rows_kind_id", "entity_rows", ["kind", "id"])
    op.add_column(
        "entity_rows",
        sa.Column(
            "allocation",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="number of the one that gave the id its row",
        ),
    )
    op.alter_column("entity_rows", "allocation", server_default=None)
    op.create_table(
        "seen_rows",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rows", ARRAY(sa.Integer()), nullable=False),
        sa.PrimaryKeyConstraint("kind", "period", name="pk_seen_rows"),
    )
    op.add_column(
        "items", sa.Column("period", sa.Integer(), comment="the one that was open when the categories were stored")
    )
    op.execute("UPDATE items SET period = (SELECT number FROM periods WHERE status = 'open')")
    op.alter_column("items", "period", nullable=False)


def downgrade() -> None:
    """Give free rows to ids that no client has: the release before knows none without.

    Nor does it know that a row was somebody else's in a model from before: rolling back to such a model, or measuring
    it, gives what ids it took for new the row of the id that was there.
    """
    op.drop_column("items", "period")
    op.drop_table("seen_rows")
    op.execute("UPDATE entity_rows SET id = chr(127) || 'evicted ' || row WHERE id IS NULL")
    op.drop_column("entity_rows", "allocation")
    op.drop_constraint("uq_entity_rows_kind_id", "entity_rows")
    op.drop_constraint("pk_entity_rows", "entity_rows")
    op.alter_column("entity_rows", "id", nullable=False, comment=None)
    op.create_primary_key("pk_entity_rows", "entity_rows", ["kind", "id"])
    op.create_unique_constraint("uq_entity_rows_kind_row", "entity_rows", ["kind", "row"])
