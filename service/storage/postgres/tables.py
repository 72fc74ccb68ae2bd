"""The schema, as SQLAlchemy Core tables; `migrations/` is the only way it changes, `alembic check` compares the two."""

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    desc,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

__all__ = [
    "LOG",
    "aliases",
    "api_keys",
    "artifact_chunks",
    "artifacts",
    "audit",
    "clicks",
    "deletions",
    "entity_rows",
    "evaluations",
    "event_ids",
    "impressions",
    "interactions",
    "item_features",
    "items",
    "log_counters",
    "metadata",
    "model_versions",
    "period_stages",
    "periods",
    "seen_rows",
    "unresolved_positives",
    "user_features",
    "user_histories",
    "user_passes",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

TIMESTAMP = DateTime(timezone=True)

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
    Column("worker", Text, comment="the process that is at the update; one that never let go of it has died"),
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
    CheckConstraint("status IN ('open', 'sealed', 'updating', 'updated', 'quarantined', 'skipped')", name="status"),
    # The log has one end: at most one period is open, whatever two closing transactions attempt.
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

# Bytewise, and so by code point, as Python sorts: the order of a log is the same on every server.
BYTEWISE = Text(collation="C")

CONTENT = "XXH64 of the rest of the event; null where it is not known"

interactions = Table(
    "interactions",
    metadata,
    # One partition a period, made when the period opens and dropped as a whole. A partitioned table cannot hold a key
    # over all of its partitions: that an id comes once is held by this key for one period, and for those before it by
    # `event_ids`, where ids go when their period is closed. A period without a partition takes no rows, which does the
    # work of a foreign key.
    Column("event_id", BYTEWISE, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("user_id", BYTEWISE, nullable=False),
    Column("item_id", BYTEWISE, nullable=False),
    Column("label", SmallInteger, nullable=False),
    Column("occurred_at", TIMESTAMP, nullable=False),
    Column("request_id", Text),
    Column("content", BigInteger, comment=CONTENT),
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
    Column("content", BigInteger, comment=CONTENT),
    Index("ix_event_ids_period", "period"),
)

# Both have a partition a period too. What waits when its period is resolved moves to the partition of the next one.
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
    Index("ix_impressions_user_id", "user_id", desc("shown_at")),
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
"""What has a partition a period."""

log_counters = Table(
    "log_counters",
    metadata,
    # Interactions of the open period: their number is the sum over the slots. Each writer of the log has a slot of its
    # own, so that no two wait for each other, and takes another one after a while (see `EventWriter`).
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("slot", BigInteger, primary_key=True, autoincrement=False),
    Column("events", BigInteger, nullable=False),
)

unresolved_positives = Table(
    "unresolved_positives",
    metadata,
    # Interactions that will be, for clicks that came in time: histories have them before the log has.
    Column("interaction_id", BYTEWISE, primary_key=True),
    Column("period", Integer, nullable=False, comment="of the click"),
    Column("user_id", BYTEWISE, nullable=False),
    Column("item_id", BYTEWISE, nullable=False),
    Column("shown_at", TIMESTAMP, nullable=False),
    Index("ix_unresolved_positives_user_id", "user_id", desc("shown_at"), desc("interaction_id")),
)


def _folded(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("user_id", BYTEWISE, primary_key=True),
        Column("item_ids", ARRAY(Text), nullable=False),
        Column("event_ids", ARRAY(Text), nullable=False),
        Column("times", ARRAY(TIMESTAMP), nullable=False),
    )


# The last positives of each user in the periods whose log is dropped, newest first; and its last other interactions.
user_histories = _folded("user_histories")
user_passes = _folded("user_passes")

items = Table(
    "items",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("categories", ARRAY(Text), nullable=False),
    Column("period", Integer, nullable=False, comment="the one that was open when the categories were stored"),
    Column("updated_at", TIMESTAMP, nullable=False, server_default=func.now()),
)


def _features(owner: str) -> Table:
    return Table(
        f"{owner}_features",
        metadata,
        # One row a version: what held at a moment is what an interaction of that moment is learned with.
        Column(f"{owner}_id", BYTEWISE, primary_key=True),
        Column("at", TIMESTAMP, primary_key=True, comment="from when on they hold"),
        Column("features", JSONB, nullable=False),
    )


user_features = _features("user")
item_features = _features("item")

entity_rows = Table(
    "entity_rows",
    metadata,
    # All rows of a table but the cold row, without gaps.
    Column("kind", Text, primary_key=True),
    Column(
        "row",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="row of the embedding table; row 0 is the cold row",
    ),
    Column("id", Text, comment="null where the row is free: its id was evicted"),
    Column("first_period", Integer, nullable=False),
    Column("allocation", Integer, nullable=False, comment="number of the one that gave the id its row"),
    UniqueConstraint("kind", "id"),
    CheckConstraint("kind IN ('user', 'item', 'category', 'field')", name="kind"),
    CheckConstraint("row >= 1", name="row"),
)

seen_rows = Table(
    "seen_rows",
    metadata,
    # What a column of `entity_rows` would say at the cost of writing each row of a period anew, indexes included.
    Column("kind", Text, primary_key=True),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("rows", ARRAY(Integer), nullable=False),
)

deletions = Table(
    "deletions",
    metadata,
    # What is removed for good. The id is here for only as long as something of it may be elsewhere; by the digest a
    # copy of the database from before, which has the id, can tell that it was removed since.
    Column("deletion", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("id", Text, comment="null as soon as all of it is removed"),
    Column("key", Text, nullable=False, comment="of the digest, in hex"),
    Column("digest", Text, nullable=False, comment="HMAC-SHA256 of the id, in hex"),
    Column("requested_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("finished_at", TIMESTAMP),
    Column("removed", JSONB, nullable=False, server_default=text("'{}'"), comment="rows, by what they were"),
    CheckConstraint("kind IN ('user', 'item')", name="kind"),
    CheckConstraint("(id IS NULL) = (finished_at IS NOT NULL)", name="finished"),
    Index("uq_deletions_pending", "kind", "id", unique=True, postgresql_where=text("id IS NOT NULL")),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", Text, primary_key=True, comment="SHA-256 of the content, in hex"),
    Column("kind", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
)

artifact_chunks = Table(
    "artifact_chunks",
    metadata,
    Column("digest", ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    # The migration sets STORAGE EXTERNAL: compressing random-looking weights costs time and saves nothing.
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

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", ForeignKey("model_versions.version"), nullable=False),
    Column("previous_version", ForeignKey("model_versions.version"), comment="what it named before"),
    Column("active_from", TIMESTAMP, nullable=False),
    Column("updated_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("updated_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    CheckConstraint("name IN ('champion', 'head', 'baseline')", name="name"),
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
    CheckConstraint("model IN ('generated', 'incremental', 'previous', 'baseline')", name="model"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False, comment="SHA-256 of the whole key, in hex"),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("rate_limit", Double, comment="requests a second; 0: any number, null: as ASMG_RATE_LIMIT says"),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("expires_at", TIMESTAMP),
    Column("revoked_at", TIMESTAMP),
    CheckConstraint("rate_limit >= 0", name="rate_limit"),
)

audit = Table(
    "audit",
    metadata,
    # A trigger of the migration refuses UPDATE, DELETE and TRUNCATE, whoever asks.
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Column("reason", Text),
    Column("request_id", Text),
)
