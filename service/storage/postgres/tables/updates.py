"""Tables of periods and of the stages of their updates.

Comments of columns are stored in the database, so only a migration can change them.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, ForeignKey, Index, Integer, Table, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["period_stages", "periods"]

periods = Table(
    "periods",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("opened_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("sealed_at", TIMESTAMP),
    Column("finished_at", TIMESTAMP),
    Column("events", BigInteger, comment="interactions of the period, counted when it was sealed"),
    Column("idempotency_key", Text, unique=True),
    Column("idempotency_fingerprint", Text),
    Column("error", Text),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("version", Integer, comment="the model version that the period produced"),
    Column("log_folded_at", TIMESTAMP, comment="when its log was added to user_histories and user_passes"),
    Column("log_dropped_at", TIMESTAMP),
    Column("ids_merged_at", TIMESTAMP, comment="when the ids of its events were noted in event_ids"),
    Column("labels", JSONB, comment="what became of its impressions and clicks; null until they are resolved"),
    # Worker that runs this update; a stale name means that it crashed.
    Column("worker", Text, comment="the process that is at the update; one that never let go of it has died"),
    # Workers in a row that crashed during this update before another stage was done.
    Column(
        "crashes",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="workers that died in a row at the update without a stage done",
    ),
    Column(
        "forgotten",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="interactions that deletions have removed since they were counted",
    ),
    Column("exported_at", TIMESTAMP, comment="when its log was exported last"),
    CheckConstraint("status IN ('open', 'sealed', 'updating', 'updated', 'quarantined', 'skipped')", name="status"),
    # At most one period is open, even if two transactions close one at the same time.
    Index("uq_periods_open", "status", unique=True, postgresql_where=text("status = 'open'")),
)

period_stages = Table(
    "period_stages",
    metadata,
    Column("period", ForeignKey("periods.number"), primary_key=True, autoincrement=False),
    Column("stage", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("started_at", TIMESTAMP, nullable=False),
    Column("finished_at", TIMESTAMP),
    Column("seconds", Double),
    Column("result", JSONB),
    CheckConstraint("status IN ('running', 'done')", name="status"),
)
