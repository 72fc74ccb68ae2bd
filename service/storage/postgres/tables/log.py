"""Tables of the event log: interactions, impressions and clicks, their ids and their counters."""

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    desc,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.tables.base import BYTEWISE, TIMESTAMP, metadata

__all__ = ["LOG", "clicks", "event_ids", "impressions", "interactions", "log_counters", "unresolved_positives"]

CONTENT_COMMENT = "XXH64 of the rest of the event; null where it is not known"

interactions = Table(
    "interactions",
    metadata,
    # One partition a period, created when the period opens and dropped as a whole. Postgres has no unique key over all
    # partitions without the partition's column in it. So this key makes an id unique within its period; `event_ids`,
    # which gets the ids of a period once it is closed, makes it unique among closed periods. There is no foreign key to
    # `periods`, since a period without a partition takes no rows anyway.
    Column("event_id", BYTEWISE, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("user_id", BYTEWISE, nullable=False),
    Column("item_id", BYTEWISE, nullable=False),
    Column("label", SmallInteger, nullable=False),
    Column("occurred_at", TIMESTAMP, nullable=False),
    Column("request_id", Text),
    Column("content", BigInteger, comment=CONTENT_COMMENT),
    Column("received_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("sampled", Boolean, nullable=False, server_default=false(), comment="a negative that nobody was shown"),
    Column("context", JSONB, comment="values of the fields of the context, as sent"),
    Column("weight", REAL, comment="null for 1"),
    CheckConstraint("label IN (0, 1)", name="label"),
    Index(
        "ix_interactions_positives",
        "user_id",
        desc("occurred_at"),
        desc("event_id"),
        postgresql_where=text("label = 1"),
    ),
    Index(
        "ix_interactions_passes",
        "user_id",
        desc("occurred_at"),
        desc("event_id"),
        postgresql_where=text("label = 0 AND NOT sampled"),
    ),
    postgresql_partition_by="LIST (period)",
)

event_ids = Table(
    "event_ids",
    metadata,
    Column(
        "kind", SmallInteger, primary_key=True, autoincrement=False, comment="0: interaction, 1: impression, 2: click"
    ),
    Column("event_id", BYTEWISE, primary_key=True),
    Column("period", Integer, nullable=False),
    Column("content", BigInteger, comment=CONTENT_COMMENT),
    Index("ix_event_ids_period", "period"),
)

# Impressions and clicks have one partition a period too. Those that cannot be resolved with their period yet move to
# the partition of the next one.
impressions = Table(
    "impressions",
    metadata,
    Column("request_id", BYTEWISE, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("user_id", BYTEWISE, nullable=False),
    Column("item_ids", ARRAY(BYTEWISE), nullable=False),
    Column("positions", ARRAY(Integer), comment="null for 0, 1, 2, …"),
    Column("shown_at", TIMESTAMP, nullable=False),
    Column("received_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("context", JSONB, comment="of all items"),
    Column("item_contexts", JSONB, comment="of each item, in their order; null for none"),
    Column("model_version", Integer, comment="that scored the items; null where a client reports the impression"),
    Column("scores", ARRAY(REAL), comment="of each item, in their order; null where a client reports the impression"),
    Index("ix_impressions_user_id", "user_id", desc("shown_at")),
    Index("ix_impressions_served", "shown_at", postgresql_where=text("model_version IS NOT NULL")),
    postgresql_partition_by="LIST (period)",
)

clicks = Table(
    "clicks",
    metadata,
    Column("event_id", BYTEWISE, nullable=False),
    Column("period", Integer, nullable=False),
    Column("request_id", BYTEWISE, nullable=False),
    Column("item_id", BYTEWISE, nullable=False),
    Column("clicked_at", TIMESTAMP, nullable=False),
    Column("interaction_id", BYTEWISE, nullable=False, comment="event id of the interaction that it makes a click"),
    Column("received_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Index("ix_clicks_request_id", "request_id"),
    postgresql_partition_by="LIST (period)",
)

LOG = (interactions, impressions, clicks)
"""Tables with one partition a period."""

log_counters = Table(
    "log_counters",
    metadata,
    # The number of interactions of the open period is the sum over its slots. Each writer of the log has its own slot,
    # so that writers do not wait for each other, and changes it after a while (see `LogWriter`).
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("slot", BigInteger, primary_key=True, autoincrement=False),
    Column("events", BigInteger, nullable=False),
)

unresolved_positives = Table(
    "unresolved_positives",
    metadata,
    # Interactions that clicks will become when their period is resolved. Histories include them before the log does.
    Column("interaction_id", BYTEWISE, primary_key=True),
    Column("period", Integer, nullable=False, comment="of the click"),
    Column("user_id", BYTEWISE, nullable=False),
    Column("item_id", BYTEWISE, nullable=False),
    Column("shown_at", TIMESTAMP, nullable=False),
    Index("ix_unresolved_positives_user_id", "user_id", desc("shown_at"), desc("interaction_id")),
)
