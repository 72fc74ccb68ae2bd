"""Tables of API keys, the audit and deletions."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Identity, Index, Table, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["api_keys", "audit", "deletions"]

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
    # A trigger, created by the migration, refuses UPDATE, DELETE and TRUNCATE by any user.
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Column("reason", Text),
    Column("request_id", Text),
)

deletions = Table(
    "deletions",
    metadata,
    # Users and items that were deleted for good. The id is kept until all its data is removed. The digest stays, by
    # which a restored older copy of the database, which still has the id, recognises that it was deleted.
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
