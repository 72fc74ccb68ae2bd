"""Many hosts: the api processes that run, and from when on which move of the champion is served.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)
WAITING = "null while the api processes are still loading the champion"


def upgrade() -> None:
    """Add the columns and tables. The champion of before is served since its moment."""
    op.alter_column("aliases", "active_from", nullable=True, comment=WAITING)
    op.add_column(
        "aliases",
        sa.Column(
            "move", sa.BigInteger(), nullable=False, server_default=sa.text("1"), comment="how often it was moved"
        ),
    )
    op.add_column(
        "aliases",
        sa.Column(
            "announced_at", TIMESTAMP, comment="since when a champion waits for the api processes, or last waited"
        ),
    )
    op.create_table(
        "takeovers",
        sa.Column("move", sa.BigInteger(), autoincrement=False, nullable=False, comment="of the alias champion"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active_from", TIMESTAMP, nullable=False),
        sa.ForeignKeyConstraint(["version"], ["model_versions.version"], name="fk_takeovers_version_model_versions"),
        sa.PrimaryKeyConstraint("move", name="pk_takeovers"),
    )
    op.execute("UPDATE aliases SET announced_at = updated_at WHERE name = 'champion'")
    op.execute(
        "INSERT INTO takeovers (move, version, active_from) "
        "SELECT move, version, active_from FROM aliases WHERE name = 'champion'"
    )
    op.create_table(
        "api_processes",
        sa.Column("process", sa.Text(), nullable=False, comment="a random id, made when the process starts"),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False, server_default=sa.func.now()),
        sa.Column("seen_at", TIMESTAMP, nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False, comment="from then on it counts as ended"),
        sa.Column("refuses", sa.Boolean(), nullable=False, comment="whether it answers nothing when it may be behind"),
        sa.Column(
            "ready_move", sa.BigInteger(), nullable=False, comment="newest move of the champion that it has loaded"
        ),
        sa.Column("ready_version", sa.Integer(), nullable=False),
        sa.Column("served_move", sa.BigInteger(), nullable=False, comment="the move that it serves"),
        sa.Column("served_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("process", name="pk_api_processes"),
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Drop the tables, once no api process runs. A champion that is still waited for is served at once."""
    refuse_losses({"api_processes": "api_processes WHERE expires_at > now()"})
    op.drop_table("api_processes")
    op.drop_table("takeovers")
    op.execute("UPDATE aliases SET active_from = announced_at WHERE active_from IS NULL")
    op.drop_column("aliases", "announced_at")
    op.drop_column("aliases", "move")
    op.alter_column("aliases", "active_from", nullable=False, comment=None, existing_comment=WAITING)
