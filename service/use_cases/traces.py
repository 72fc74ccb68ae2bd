"""What is stored about one user or one item.

The documents are the API's as they stand.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asmg.layout import COLD_ROW
from service.errors import NothingStored
from service.limits import MAX_HISTORY
from service.serving.id_index import IdIndex, hash_ids
from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import Deletable, EntityKind, PeriodTraces
from service.storage.redis.histories import StoredPast

__all__ = ["ItemDocument", "LogDocument", "RecentDocument", "UserDocument", "get_item", "get_user"]


@dataclass(frozen=True, slots=True)
class LogDocument:
    """What all logs that are kept have about a user or an item."""

    interactions: int
    """Sampled negatives among them."""
    positives: int
    """Those of them that are clicks."""
    impressions: int
    clicks: int
    """On impressions, which may have become interactions since."""
    first: datetime | None
    """The earliest time that one of these names; null where there is none."""
    last: datetime | None
    periods: list[PeriodTraces]
    """The same by period, newest first."""
    next: int | None
    """`before` of the page of periods that follows; null on the last."""


@dataclass(frozen=True, slots=True)
class RecentDocument:
    """What the user did last, of what it was shown: the newest interactions, clicks or not."""

    interactions: int
    """How many there are, at most `RECENT`."""
    clicks_of_newest: int
    """Clicks among the newest `RECENT_SHORT`."""
    clicks: int
    """Clicks among all of them."""


@dataclass(frozen=True, slots=True)
class UserDocument:
    """What is stored about a user."""

    user_id: str
    row: int | None
    """Of the embedding table, from the first update on that saw the user; null where there is none."""
    known_to_model: bool
    """Whether the version that is served now has an embedding of the user."""
    history: list[str]
    """The items clicked last, newest first."""
    recent: RecentDocument
    features: dict[str, Any] | None
    """The newest values of its fields; null where none were sent."""
    feature_versions: int
    """How many versions of them are stored, the newest among them."""
    log: LogDocument


@dataclass(frozen=True, slots=True)
class ItemDocument:
    """What is stored about an item."""

    item_id: str
    row: int | None
    """Of the embedding table, from the first update on that saw the item; null where there is none."""
    known_to_model: bool
    """Whether the version that is served now has an embedding of the item."""
    categories: list[str] | None
    """Of the catalogue; null where it is not in it."""
    features: dict[str, Any] | None
    """The newest values of its fields; null where none were sent."""
    feature_versions: int
    """How many versions of them are stored, the newest among them."""
    histories: int
    """Users in whose history the item is by a click whose log is dropped."""
    passes: int
    """Users among whose last interactions without a click the item is, whose log is dropped."""
    unresolved: int
    """Clicks on impressions whose period is not resolved yet; they are in the histories of their users all the same."""
    log: LogDocument


async def get_user(
    database: Database, snapshot: Snapshot, user_id: str, *, limit: int, before: int | None
) -> UserDocument:
    """What is stored about a user, with at most `limit` periods, of those below `before`.

    Raises:
        NothingStored: nothing is.
    """
    known = _known(snapshot, "user", user_id)
    async with database.read() as session:
        row, traces = await _row(session, "user", user_id), await session.traces.by_period("user", user_id)
        past = StoredPast.of(await session.past.recent(user_id), MAX_HISTORY)
        features, versions = await _features(session, "user", user_id)
    if not (known or row or traces or past.recent[0] or versions):
        raise NothingStored("user")
    history, recent = [str(item) for item in past.items], RecentDocument(*past.recent)
    return UserDocument(user_id, row, known, history, recent, features, versions, _log(traces, limit, before))


async def get_item(
    database: Database, snapshot: Snapshot, item_id: str, *, limit: int, before: int | None
) -> ItemDocument:
    """The same for an item.

    Raises:
        NothingStored: nothing is.
    """
    known = _known(snapshot, "item", item_id)
    async with database.read() as session:
        row, traces = await _row(session, "item", item_id), await session.traces.by_period("item", item_id)
        names = (await session.items.categories([item_id])).get(item_id)
        beside = await session.traces.beside_logs(item_id)
        features, versions = await _features(session, "item", item_id)
    if not (known or row or traces or versions or any(beside.values())) and names is None:
        raise NothingStored("item")
    categories = None if names is None else list(names)
    log = _log(traces, limit, before)
    return ItemDocument(item_id, row, known, categories, features, versions, **beside, log=log)


def _known(snapshot: Snapshot, kind: Deletable, id_: str) -> bool:
    index = IdIndex(snapshot.tensors[f"{kind}s.hashes"], snapshot.tensors[f"{kind}s.starts"])
    return bool(index.lookup(hash_ids([id_]))[0] != COLD_ROW)


async def _features(session: ReadSession, kind: Deletable, id_: str) -> tuple[dict[str, Any] | None, int]:
    """The newest features, and how many versions of them there are."""
    versions = await session.features.of(kind, id_)
    return dict(versions.features[-1]) if len(versions) else None, len(versions)


async def _row(session: ReadSession, kind: Deletable, id_: str) -> int | None:
    row = int((await session.entities.find(EntityKind(kind), [id_]))[0])
    return None if row == COLD_ROW else row


def _log(traces: list[PeriodTraces], limit: int, before: int | None) -> LogDocument:
    below = [period for period in traces if before is None or period.period < before]
    page = below[:limit]
    return LogDocument(
        interactions=sum(period.interactions for period in traces),
        positives=sum(period.positives for period in traces),
        impressions=sum(period.impressions for period in traces),
        clicks=sum(period.clicks for period in traces),
        first=min((period.first for period in traces), default=None),
        last=max((period.last for period in traces), default=None),
        periods=page,
        next=page[-1].period if len(below) > limit else None,
    )
