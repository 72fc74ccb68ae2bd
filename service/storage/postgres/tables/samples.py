"""Tables of the interactions that are kept of each period, and of what model versions say about them."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, LargeBinary, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["period_samples", "sample_scores"]

period_samples = Table(
    "period_samples",
    metadata,
    Column("period", ForeignKey("periods.number"), primary_key=True, autoincrement=False),
    Column("profile", JSONB, nullable=False, comment="of the whole period: how its inputs and scores are distributed"),
    Column("digest", Text, comment="artifact of the interactions that are kept; null once they are too old"),
    Column("served_version", Integer, comment="which was served when the period was closed"),
    Column("served_logits", LargeBinary, comment="float32: what it said of each interaction"),
    Column("allocations", JSONB, nullable=False, comment="kind → number of the latest allocation of rows they know"),
)

sample_scores = Table(
    "sample_scores",
    metadata,
    Column("version", ForeignKey("model_versions.version"), primary_key=True, autoincrement=False),
    Column("period", ForeignKey("period_samples.period"), primary_key=True, autoincrement=False),
    Column("requested_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("scored_at", TIMESTAMP, comment="null while nobody has scored it yet"),
    Column("events", BigInteger),
    Column("auc", Double, comment="null where all labels are equal"),
    Column("logloss", Double),
    Column("served_logloss", Double, comment="of what was served, on the same interactions"),
    Column("error", Double, comment="standard error of logloss - served_logloss"),
    Column("failure", Text, comment="why the version could not score the period"),
    Index("ix_sample_scores_waiting", "version", postgresql_where=text("scored_at IS NULL")),
)
