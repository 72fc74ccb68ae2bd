"""Let rows of embedding tables be free; record the rows that a period used and the allocation of each row.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from service.storage.postgres.migrations.indexes import build_index
from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    """Add the columns and tables. All items count as stored in the open period."""
    with op.get_context().autocommit_block():  # there may be millions of rows
        build_index("entity_rows_kind_row", "UNIQUE INDEX CONCURRENTLY {} ON entity_rows (kind, row)")
        build_index("entity_rows_kind_id", "UNIQUE INDEX CONCURRENTLY {} ON entity_rows (kind, id)")
    op.drop_constraint("pk_entity_rows", "entity_rows")
    op.drop_constraint("uq_entity_rows_kind_row", "entity_rows")
    op.alter_column("entity_rows", "id", nullable=True, comment="null where the row is free: its id was evicted")
    op.execute("ALTER TABLE entity_rows ADD CONSTRAINT pk_entity_rows PRIMARY KEY USING INDEX entity_rows_kind_row")
    op.execute("ALTER TABLE entity_rows ADD CONSTRAINT uq_entity_rows_kind_id UNIQUE USING INDEX entity_rows_kind_id")
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
    # A constant default: Postgres rewrites no row for it.
    number = op.get_bind().exec_driver_sql("SELECT number FROM periods WHERE status = 'open'").scalar_one()
    op.add_column(
        "items",
        sa.Column(
            "period",
            sa.Integer(),
            server_default=str(number),
            nullable=False,
            comment="the one that was open when the categories were stored",
        ),
    )
    op.alter_column("items", "period", server_default=None)


def downgrade() -> None:
    """Give free rows to made-up ids, since the older release knows no row without an id.

    The older release does not know that a row had another owner in an older model. If it rolls back to such a model or
    evaluates it, an id gets the embedding that the row's former owner had learned.
    """
    refuse_losses(
        {
            "entity_rows.id": "entity_rows WHERE id IS NULL",
            "entity_rows.allocation": "entity_rows WHERE allocation <> 0",
            "seen_rows": "seen_rows",
            "items.period": "items WHERE period <> (SELECT number FROM periods WHERE status = 'open')",
        }
    )
    op.drop_column("items", "period")
    op.drop_table("seen_rows")
    op.execute("UPDATE entity_rows SET id = chr(127) || 'evicted ' || row WHERE id IS NULL")
    op.drop_column("entity_rows", "allocation")
    op.drop_constraint("uq_entity_rows_kind_id", "entity_rows")
    op.drop_constraint("pk_entity_rows", "entity_rows")
    op.alter_column("entity_rows", "id", nullable=False, comment=None)
    op.create_primary_key("pk_entity_rows", "entity_rows", ["kind", "id"])
    op.create_unique_constraint("uq_entity_rows_kind_row", "entity_rows", ["kind", "row"])
