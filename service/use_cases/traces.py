"""What is stored about one user or one item. The API returns these documents as they are."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asmg.layout import COLD_ROW
from service.errors import NothingStored
from service.limits import MAX_HISTORY
from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import Deletable, EntityKind, PeriodTraces
from service.storage.redis.histories import StoredPast

__all__ = ["ItemDocument", "LogDocument", "RecentDocument", "UserDocument", "get_item", "get_user"]


@dataclass(frozen=True, slots=True)
class LogDocument:
    """What all kept logs contain about a user or an item."""

    interactions: int
    """Number of interactions, sampled negatives included."""
    positives: int
    """Number of interactions that are clicks."""
    impressions: int
    clicks: int
    """Number of clicks on impressions; they may have become interactions since."""
    first: datetime | None
    """Earliest time of any of these events; null where there is none."""
    last: datetime | None
    periods: list[PeriodTraces]
    """The same for each period, newest first."""
    next: int | None
    """`before` of the page of periods that follows; null on the last."""


@dataclass(frozen=True, slots=True)
class RecentDocument:
    """The newest interactions of a user with what it was shown, clicks or not."""

    interactions: int
    """Number of interactions, at most `RECENT`."""
    clicks_of_newest: int
    """Clicks among the newest `RECENT_SHORT`."""
    clicks: int
    """Clicks among all of them."""


@dataclass(frozen=True, slots=True)
class UserDocument:
    """What is stored about a user."""

    user_id: str
    row: int | None
    """Row of the embedding table, from the first update that saw the user; null where there is none."""
    known_to_model: bool
    """Whether the version that is served now has an embedding of the user."""
    history: list[str]
    """The items that the user clicked last, newest first."""
    recent: RecentDocument
    features: dict[str, Any] | None
    """The newest values of its fields; null where none were sent."""
    feature_versions: int
    """Number of stored versions of the features, the newest included."""
    log: LogDocument


@dataclass(frozen=True, slots=True)
class ItemDocument:
    """What is stored about an item."""

    item_id: str
    row: int | None
    """Row of the embedding table, from the first update that saw the item; null where there is none."""
    known_to_model: bool
    """Whether the version that is served now has an embedding of the item."""
    categories: list[str] | None
    """Categories of the item in the catalogue; null where it is not in it."""
    features: dict[str, Any] | None
    """The newest values of its fields; null where none were sent."""
    feature_versions: int
    """Number of stored versions of the features, the newest included."""
    histories: int
    """Number of users in whose history the item is by a click whose log is dropped."""
    passes: int
    """Number of users whose last interactions without a click include the item, where the log is dropped."""
    unresolved: int
    """Number of clicks on impressions whose period is not resolved yet; they are in the histories of users already."""
    log: LogDocument


async def get_user(
    database: Database, snapshot: Snapshot, user_id: str, *, limit: int, before: int | None
) -> UserDocument:
    """What is stored about a user, with at most `limit` periods, of those below `before`.

    Raises:
        NothingStored: nothing is stored about the id.
    """
    known = snapshot.knows("user", user_id)
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
    """What is stored about an item, with at most `limit` periods, of those below `before`.

    Raises:
        NothingStored: nothing is stored about the id.
    """
    known = snapshot.knows("item", item_id)
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
