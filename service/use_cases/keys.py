"""Management of API keys: create, list, limit and revoke. The API, the commands `asmg keys …` and the demo call it.

A key is `asmg_<key id>_<secret>`. Only the SHA-256 of the whole key is stored. A slow hash would add nothing, since the
secret has 256 random bits. The key id finds the stored row and is no secret.
"""

import re
import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from service.errors import InvalidInput
from service.limits import MAX_KEY_DAYS, MAX_KEY_NAME_LENGTH, MAX_RATE, MIN_RATE
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.use_cases.audit import command_line

__all__ = ["KEY_FORMAT", "SCOPES", "create_key", "hash_key", "limit_key", "list_keys", "revoke_key"]

SCOPES = ("predict", "ingest", "admin")
"""What a key can be allowed to do."""

KEY_FORMAT = re.compile(r"asmg_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
"""A key; the group is its id."""


def hash_key(key: bytes) -> str:
    """What is stored of a key: its SHA-256, in hex."""
    return sha256(key).hexdigest()


async def create_key(
    database: Database,
    name: str,
    scopes: Collection[str],
    *,
    rate_limit: float | None = None,
    expires_at: datetime | None = None,
    reason: str | None = None,
    actor: str | None = None,
) -> tuple[str, str]:
    """Create a key; return its id and the key itself, which nobody can read again later.

    Args:
        database: stores it.
        name: what the key is for, or whose it is: up to `MAX_KEY_NAME_LENGTH` printable characters.
        scopes: some of `SCOPES`.
        rate_limit: requests a second, 0 for no limit; None for `Settings.rate_limit`.
        expires_at: when it becomes invalid, at most `MAX_KEY_DAYS` from now; None for never.
        reason: for the audit.
        actor: for the audit; None for the user of the operating system.

    Raises:
        InvalidInput: an argument is not as described.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidInput(
            f"expected one or more of {', '.join(SCOPES)} as scopes; received {', '.join(unknown) or 'none'}"
        )
    if not name.strip() or len(name) > MAX_KEY_NAME_LENGTH or not name.isprintable():
        raise InvalidInput(
            f"expected 1 to {MAX_KEY_NAME_LENGTH} printable characters as the key's name; received {name[:100]!r}"
        )
    now = datetime.now(UTC)
    if expires_at is not None and not now < expires_at <= now + timedelta(days=MAX_KEY_DAYS):
        raise InvalidInput(
            f"expected a key to expire later than now and within {MAX_KEY_DAYS} days; received {expires_at.isoformat()}"
        )
    _check_rate(rate_limit)
    key_id = secrets.token_hex(6)
    key = f"asmg_{key_id}_{secrets.token_urlsafe(32)}"
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    detail: dict[str, object] = {"key_id": key_id, "name": name, "scopes": list(ordered)}
    if rate_limit is not None:
        detail["rate_limit"] = rate_limit
    if expires_at is not None:
        detail["expires_at"] = expires_at.isoformat()
    created = ApiKey(
        key_id=key_id,
        name=name,
        secret_hash=hash_key(key.encode()),
        scopes=ordered,
        rate_limit=rate_limit,
        expires_at=expires_at,
    )
    async with database.unit_of_work() as work:
        await work.keys.insert(created)
        await work.audit.add(actor or command_line(), "create_key", detail, reason=reason)
        await work.commit()
    return key_id, key


async def list_keys(database: Database) -> Sequence[ApiKey]:
    """All keys ever created, oldest first; also revoked and expired ones."""
    async with database.read() as session:
        return await session.keys.list()


async def revoke_key(database: Database, key_id: str, *, reason: str | None = None, actor: str | None = None) -> bool:
    """Revoke a key for ever; False if there is no such key, or it is revoked already. `actor` is as in `create_key`."""
    async with database.unit_of_work() as work:
        revoked = await work.keys.revoke(key_id)
        if revoked:
            await work.audit.add(actor or command_line(), "revoke_key", {"key_id": key_id}, reason=reason)
            await work.commit()
    return revoked


async def limit_key(
    database: Database,
    key_id: str,
    rate_limit: float | None,
    *,
    reason: str | None = None,
    actor: str | None = None,
) -> bool:
    """Change the rate limit of a key; False if there is no such key, or it is revoked.

    The api processes apply the new limit within a second.

    `actor` is as in `create_key`.

    Raises:
        InvalidInput: `rate_limit` is not as `create_key` expects it.
    """
    _check_rate(rate_limit)
    async with database.unit_of_work() as work:
        changed = await work.keys.limit(key_id, rate_limit)
        if changed:
            detail = {"key_id": key_id, "rate_limit": rate_limit}
            await work.audit.add(actor or command_line(), "limit_key", detail, reason=reason)
            await work.commit()
    return changed


def _check_rate(rate_limit: float | None) -> None:
    if rate_limit and not MIN_RATE <= rate_limit <= MAX_RATE:
        raise InvalidInput(
            f"expected a rate of {MIN_RATE} to {MAX_RATE} requests a second, or 0; received {rate_limit}"
        )
