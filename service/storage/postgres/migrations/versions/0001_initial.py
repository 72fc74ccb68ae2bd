"""Create the first tables: log, periods, entities, models, artifacts, evaluations, API keys and audit.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.migrations.losses import refuse_losses

revision: str = "0001"
down_revision: str | None = None
branch_labels: None = None
depends_on: None = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create all tables and open the first period."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False, comment="SHA-256 of the whole key, in hex"),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 of the content, in hex"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_artifacts"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("detail", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_table(
        "entity_rows",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False, comment="row of the embedding table; row 0 is the cold row"),
        sa.Column("first_period", sa.Integer(), nullable=False),
        sa.CheckConstraint("kind IN ('user', 'item', 'category')", name="ck_entity_rows_kind"),
        sa.CheckConstraint("row >= 1", name="ck_entity_rows_row"),
        sa.PrimaryKeyConstraint("kind", "id", name="pk_entity_rows"),
        sa.UniqueConstraint("kind", "row", name="uq_entity_rows_kind_row"),
    )
    op.create_table(
        "items",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("categories", ARRAY(sa.Text()), nullable=False),
        sa.Column("updated_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("item_id", name="pk_items"),
    )
    op.create_table(
        "periods",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("opened_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("sealed_at", TIMESTAMP),
        sa.Column("finished_at", TIMESTAMP),
        sa.Column("events", sa.BigInteger(), comment="interactions of the period, counted when it was sealed"),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("idempotency_fingerprint", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("version", sa.Integer(), comment="the model version that the period produced"),
        sa.CheckConstraint("status IN ('open', 'sealed', 'updating', 'updated', 'failed')", name="ck_periods_status"),
        sa.PrimaryKeyConstraint("number", name="pk_periods"),
        sa.UniqueConstraint("idempotency_key", name="uq_periods_idempotency_key"),
    )
    op.create_index("uq_periods_open", "periods", ["status"], unique=True, postgresql_where=sa.text("status = 'open'"))
    op.create_table(
        "artifact_chunks",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["artifacts.digest"], name="fk_artifact_chunks_digest_artifacts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", "index", name="pk_artifact_chunks"),
    )
    op.create_table(
        "evaluations",
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer()),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("auc", sa.Double(), comment="null where all labels of the period are equal"),
        sa.Column("logloss", sa.Double(), nullable=False),
        sa.Column("calibration", sa.Double()),
        sa.CheckConstraint(
            "model IN ('generated', 'incremental', 'previous', 'baseline')", name="ck_evaluations_model"
        ),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_evaluations_period_periods"),
        sa.PrimaryKeyConstraint("period", "model", name="pk_evaluations"),
    )
    op.create_table(
        "interactions",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("label", sa.SmallInteger(), nullable=False),
        sa.Column("occurred_at", TIMESTAMP, nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.Column("received_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("label IN (0, 1)", name="ck_interactions_label"),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_interactions_period_periods"),
        sa.PrimaryKeyConstraint("event_id", name="pk_interactions"),
    )
    op.create_index("ix_interactions_log", "interactions", ["period", "occurred_at", "seq"])
    op.create_index(
        "ix_interactions_positives",
        "interactions",
        ["user_id", sa.literal_column("occurred_at DESC"), sa.literal_column("seq DESC")],
        postgresql_where=sa.text("label = 1"),
    )
    op.create_table(
        "model_versions",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("period", sa.Integer(), nullable=False, comment="the period it learned last; 0 for the prior"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("parent_version", sa.Integer()),
        sa.Column("serving_digest", sa.Text()),
        sa.Column("state", JSONB(), nullable=False, comment="training state: name to artifact digest or value"),
        sa.Column("scores", JSONB(), nullable=False),
        sa.Column("gate", JSONB(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('prior', 'generated', 'incremental', 'previous')", name="ck_model_versions_kind"),
        sa.CheckConstraint("version >= 0", name="ck_model_versions_version"),
        sa.ForeignKeyConstraint(
            ["parent_version"], ["model_versions.version"], name="fk_model_versions_parent_version_model_versions"
        ),
        sa.ForeignKeyConstraint(
            ["serving_digest"], ["artifacts.digest"], name="fk_model_versions_serving_digest_artifacts"
        ),
        sa.PrimaryKeyConstraint("version", name="pk_model_versions"),
        sa.UniqueConstraint("period", name="uq_model_versions_period"),
    )
    op.create_table(
        "period_stages",
        sa.Column("period", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("finished_at", TIMESTAMP),
        sa.Column("seconds", sa.Double()),
        sa.Column("result", JSONB()),
        sa.CheckConstraint("status IN ('running', 'done')", name="ck_period_stages_status"),
        sa.ForeignKeyConstraint(["period"], ["periods.number"], name="fk_period_stages_period_periods"),
        sa.PrimaryKeyConstraint("period", "stage", name="pk_period_stages"),
    )
    op.create_table(
        "aliases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("active_from", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("name IN ('champion', 'head', 'baseline')", name="ck_aliases_name"),
        sa.ForeignKeyConstraint(["version"], ["model_versions.version"], name="fk_aliases_version_model_versions"),
        sa.PrimaryKeyConstraint("name", name="pk_aliases"),
    )
    # Compressing weights costs time and saves nothing, and a chunk is always read whole.
    op.execute("ALTER TABLE artifact_chunks ALTER COLUMN data SET STORAGE EXTERNAL")
    op.execute("INSERT INTO periods (number, status) VALUES (1, 'open')")


def downgrade() -> None:
    """Drop all tables."""
    tables = "aliases period_stages model_versions interactions evaluations artifact_chunks items entity_rows audit"
    held = {name: name for name in (*tables.split(), "artifacts", "api_keys")}
    refuse_losses({**held, "periods": "periods WHERE (number, status) <> (1, 'open')"})
    op.drop_table("aliases")
    op.drop_table("period_stages")
    op.drop_table("model_versions")
    op.drop_table("interactions")
    op.drop_table("evaluations")
    op.drop_table("artifact_chunks")
    op.drop_table("periods")
    op.drop_table("items")
    op.drop_table("entity_rows")
    op.drop_table("audit")
    op.drop_table("artifacts")
    op.drop_table("api_keys")
