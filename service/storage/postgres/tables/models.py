"""Tables of artifacts, model versions, aliases, what is served from when on, and evaluations."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = [
    "aliases",
    "artifact_chunks",
    "artifacts",
    "breakdowns",
    "canaries",
    "evaluations",
    "model_versions",
    "takeovers",
]

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", Text, primary_key=True, comment="SHA-256 of the content, in hex"),
    Column("kind", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("key", Text, unique=True, comment="of its object in the object store; null for the chunks"),
)

artifact_chunks = Table(
    "artifact_chunks",
    metadata,
    Column("digest", ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    # The migration sets STORAGE EXTERNAL, since compressing weights costs time and saves nothing.
    Column("data", LargeBinary, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("period", Integer, nullable=False, unique=True, comment="the period it learned last; 0 for the prior"),
    Column("kind", Text, nullable=False),
    Column("parent_version", ForeignKey("model_versions.version")),
    Column("serving_digest", ForeignKey("artifacts.digest")),
    Column("state", JSONB, nullable=False, comment="training state: name to artifact digest or value"),
    Column("scores", JSONB, nullable=False),
    Column("gate", JSONB, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("created_by", Text, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false(), comment="an operator wants it kept whole"),
    CheckConstraint("version >= 0", name="version"),
    CheckConstraint("kind IN ('prior', 'generated', 'incremental', 'previous')", name="kind"),
)

canaries = Table(
    "canaries",
    metadata,
    # Versions that have begun, or begin, with a share of the users.
    Column("version", ForeignKey("model_versions.version"), primary_key=True, autoincrement=False),
    Column("champion_version", ForeignKey("model_versions.version"), nullable=False, comment="answers the others"),
    Column("share", Double, nullable=False, comment="of the users"),
    Column("salt", Integer, nullable=False, comment="which users; a canary takes it over from the one it replaces"),
    Column("minutes", Double, nullable=False, comment="after which it is decided at the latest"),
    Column("state", Text, nullable=False, server_default=text("'running'")),
    Column("announced_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("ended_at", TIMESTAMP, comment="null while it runs"),
    Column("ended_by", Text),
    Column("reason", Text, comment="of its end"),
    Column("numbers", JSONB, comment="by which it was decided"),
    CheckConstraint("state IN ('running', 'promoted', 'reverted', 'replaced')", name="state"),
    CheckConstraint(
        "num_nulls(ended_at, ended_by, reason) = CASE state WHEN 'running' THEN 3 ELSE 0 END", name="ended"
    ),
    Index("uq_canaries_running", "state", unique=True, postgresql_where=text("state = 'running'")),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", ForeignKey("model_versions.version"), nullable=False),
    Column("previous_version", ForeignKey("model_versions.version"), comment="what it named before"),
    Column("active_from", TIMESTAMP, comment="null while the api processes are still loading the champion"),
    Column("move", BigInteger, nullable=False, server_default=text("1"), comment="how often it was moved"),
    Column("announced_at", TIMESTAMP, comment="since when a champion waits for the api processes, or last waited"),
    Column("updated_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("updated_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column(
        "canary_version", ForeignKey("canaries.version"), comment="answers a share of the users beside the champion"
    ),
    CheckConstraint("name IN ('champion', 'head', 'baseline')", name="name"),
)

takeovers = Table(
    "takeovers",
    metadata,
    # The moves of the champion that are served: the last one whose moment has passed, and those with a moment to come.
    Column("move", BigInteger, primary_key=True, autoincrement=False, comment="of the alias champion"),
    Column("version", ForeignKey("model_versions.version"), nullable=False),
    Column("active_from", TIMESTAMP, nullable=False),
    Column("canary_version", ForeignKey("canaries.version")),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("period", ForeignKey("periods.number"), primary_key=True, autoincrement=False),
    Column("model", Text, primary_key=True),
    Column("version", Integer),
    Column("events", BigInteger, nullable=False),
    Column("auc", Double, comment="null where all labels of the period are equal"),
    Column("logloss", Double, nullable=False),
    Column("calibration", Double),
    CheckConstraint(
        "model IN ('generated', 'incremental', 'previous', 'baseline') OR model LIKE 'shadow:%'", name="model"
    ),
)

breakdowns = Table(
    "breakdowns",
    metadata,
    Column("period", ForeignKey("periods.number"), primary_key=True, autoincrement=False),
    # Nothing looks into it, and as text its numbers take half the bytes that they take in JSONB.
    Column("parts", JSON, nullable=False, comment="scores of all models by parts of the log"),
)
