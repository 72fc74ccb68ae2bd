"""Index what has changed: rows by their allocation, free rows, items and their features by the period they came in.

Revision ID: 0013
Revises: 0012
"""

from alembic import op

from service.storage.postgres.migrations.indexes import build_index
from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: None = None
depends_on: None = None

INDEXES = {
    "ix_entity_rows_allocation": "entity_rows (kind, allocation) WHERE allocation <> appended",
    "ix_entity_rows_free": "entity_rows (kind, row) WHERE id IS NULL",
    "ix_items_period": "items (period)",
    "ix_item_features_period": "item_features (period)",
}

BEFORE = "number of the one that gave the id its row"
AFTER = "number of the one that gave the row to its id, or freed it"


def upgrade() -> None:
    """Let free rows count as freed now, so that models of before know of nobody in them."""
    with op.get_context().autocommit_block():  # there may be millions of rows
        # As if one allocation had added all rows there are; those of later ones are in the index, where they are found.
        op.execute("ALTER TABLE entity_rows ADD COLUMN IF NOT EXISTS appended integer NOT NULL DEFAULT 0")
        # All versions count as stored in the open period. A constant default: Postgres rewrites no row for it.
        number = op.get_bind().exec_driver_sql("SELECT number FROM periods WHERE status = 'open'").scalar_one()
        op.execute(f"ALTER TABLE item_features ADD COLUMN IF NOT EXISTS period integer NOT NULL DEFAULT {int(number)}")
        for name, columns in INDEXES.items():
            build_index(name, f"INDEX CONCURRENTLY {{}} ON {columns}")
        # When it is repeated they count as freed once more, which is as good.
        op.execute("""
            UPDATE entity_rows AS free SET allocation = latest + 1
            FROM (SELECT kind, max(allocation) AS latest FROM entity_rows GROUP BY kind) AS known
            WHERE free.id IS NULL AND free.kind = known.kind
        """)
    op.alter_column(
        "entity_rows", "appended", server_default=None, comment="number of the allocation that added the row"
    )
    op.alter_column("entity_rows", "allocation", existing_comment=BEFORE, comment=AFTER)
    op.alter_column(
        "item_features", "period", server_default=None, comment="the one that was open when the version was stored"
    )


def downgrade() -> None:
    """Drop the indexes. When free rows were freed is lost; the older release needs to know only that they are free."""
    refuse_losses(
        {
            "entity_rows.allocation": "entity_rows WHERE id IS NULL",
            "entity_rows.appended": "entity_rows WHERE appended <> 0",
            "item_features.period": "item_features WHERE period <> (SELECT number FROM periods WHERE status = 'open')",
        }
    )
    for name in INDEXES:
        op.drop_index(name)
    op.drop_column("entity_rows", "appended")
    op.drop_column("item_features", "period")
    op.alter_column("entity_rows", "allocation", existing_comment=AFTER, comment=BEFORE)
