"""Features of users and items as they were at each time: tables `user_features` and `item_features`.

Features are stored in versions, which are never changed. A version holds from its time until that of the next version
of the same user or item; before the first one no features are known.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.events import in_milliseconds
from service.storage.postgres.repositories.deletions import Deletable
from service.storage.postgres.repositories.many_ids import joined, pages_of

__all__ = ["NOTHING_KNOWN", "FeatureVersion", "Features", "FeaturesOf"]

NOTHING_KNOWN: Mapping[str, Any] = {}
"""The features of a user or item of which no version holds yet."""

VERSIONS_PER_PAGE = 1000
"""Versions fetched from Postgres at a time; each has at most 8 KiB."""

MILLISECONDS = "floor(extract(epoch FROM at) * 1000)::bigint"

# A version equal to the one before it, which may be stored or come in the same call, is not stored. Sorted, as all
# batches are, to avoid deadlocks.
PUT = """
    INSERT INTO {kind}_features AS known ({kind}_id, at, features{noted})
    SELECT put.id, put.at, put.features{period}
    FROM (
        SELECT id, at, features, lag(at) OVER of_one AS earlier_at, lag(features) OVER of_one AS earlier
        FROM jsonb_to_recordset(CAST(:versions AS jsonb)) AS sent (id text, at timestamptz, features jsonb)
        WINDOW of_one AS (PARTITION BY id COLLATE "C" ORDER BY at)
    ) AS put LEFT JOIN LATERAL (
        SELECT at, features FROM {kind}_features AS stored
        WHERE stored.{kind}_id = put.id COLLATE "C" AND stored.at <= put.at ORDER BY stored.at DESC LIMIT 1
    ) AS before ON true
    WHERE put.features IS DISTINCT FROM CASE
        WHEN put.earlier_at >= coalesce(before.at, '-infinity') THEN put.earlier
        ELSE coalesce(before.features, '{{}}')
    END
    ORDER BY put.id COLLATE "C", put.at
    ON CONFLICT ({kind}_id, at) DO UPDATE SET features = excluded.features{again}
    RETURNING {kind}_id
"""

PERIODS: Mapping[Deletable, Mapping[str, str]] = {
    "user": {"noted": "", "period": "", "again": ""},
    "item": {
        "noted": ", period",
        "period": ", (SELECT number FROM periods WHERE status = 'open')",
        "again": ", period = excluded.period",
    },
}
"""Parts of `PUT`. Of items it is noted in which period a version was stored."""

# For each user or item of the log: the versions between its first and last interaction, and the one before these.
OF_LOG = f"""
    SELECT {{kind}}_id AS id, {MILLISECONDS} AS at_ms, features::text AS features
    FROM (
        SELECT {{kind}}_id, min(occurred_at) AS first, max(occurred_at) AS last
        FROM interactions WHERE period = :period GROUP BY {{kind}}_id
    ) AS logged JOIN {{kind}}_features USING ({{kind}}_id)
    WHERE at <= last AND NOT EXISTS (
        SELECT FROM {{kind}}_features AS newer
        WHERE newer.{{kind}}_id = logged.{{kind}}_id AND newer.at > {{kind}}_features.at AND newer.at <= first
    )
    ORDER BY {{kind}}_id, at
"""

OF_ONE = f"""
    SELECT {{kind}}_id AS id, {MILLISECONDS} AS at_ms, features::text AS features
    FROM {{kind}}_features WHERE {{kind}}_id = :id ORDER BY at
"""

# The version that holds at a time, and the time of the one that follows it.
AT = f"""
    SELECT (
        SELECT features::text FROM user_features WHERE user_id = :id AND at <= moment ORDER BY at DESC LIMIT 1
    ) AS features, (
        SELECT {MILLISECONDS} FROM user_features WHERE user_id = :id AND at > moment ORDER BY at LIMIT 1
    ) AS until_ms
    FROM (SELECT CAST(:at AS timestamptz) AS moment) AS asked
"""

LATEST = f"""
    SELECT DISTINCT ON ({{kind}}_id) {{kind}}_id AS id, {MILLISECONDS} AS at_ms, features::text AS features
    FROM {{kind}}_features
    WHERE {{which}}
    ORDER BY {{kind}}_id, at DESC
"""

PUT_SINCE = text("SELECT DISTINCT item_id FROM item_features WHERE period >= :period ORDER BY item_id")

FORGET_OLD = """
    DELETE FROM {kind}_features AS old
    WHERE EXISTS (
        SELECT FROM {kind}_features AS newer
        WHERE newer.{kind}_id = old.{kind}_id AND newer.at > old.at AND newer.at <= :moment
    )
"""

# The earliest time that features can be asked for: that of an interaction, or of an impression not resolved yet.
FIRST_MOMENT = """
    SELECT least((SELECT min(occurred_at) FROM interactions), (SELECT min(shown_at) FROM impressions), now())
"""


class FeatureVersion(NamedTuple):
    """The features of a user or an item from a moment on."""

    id: str
    at: datetime
    """Timezone-aware; precise to the millisecond."""
    features: Mapping[str, Any]
    """Name of a field → value; empty where no features hold any more."""


@dataclass(frozen=True, slots=True)
class FeaturesOf:
    """Versions of the features of users, or of items, as columns of equal length, ordered by id and time."""

    ids: list[str]
    times_ms: NDArray[np.int64]
    """From when on each version holds, in milliseconds since 1970."""
    features: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def as_of(self, ids: Sequence[str], timestamps_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each pair of id and time, the index of the version that holds then; −1 where none does."""
        if not self.ids:
            return np.full(len(ids), -1)
        first: dict[str, int] = {}
        for place, id_ in enumerate(self.ids):
            first.setdefault(id_, place)
        numbers = {id_: number for number, id_ in enumerate(first)}
        # Ids as numbers that ascend with the place, so that (id, time) can be searched for in one order.
        owner = np.fromiter((numbers[id_] for id_ in self.ids), np.int64, len(self.ids))
        asked = np.fromiter((numbers.get(id_, -1) for id_ in ids), np.int64, len(ids))
        order = np.lexsort((
            np.concatenate((np.zeros(len(owner), np.int8), np.ones(len(asked), np.int8))),  # it holds at its very time
            np.concatenate((self.times_ms, timestamps_ms)),
            np.concatenate((owner, asked)),
        ))  # fmt: skip
        is_version = order < len(owner)
        latest = np.maximum.accumulate(np.where(is_version, order, -1))
        places = np.empty(len(asked), np.int64)
        places[order[~is_version] - len(owner)] = latest[~is_version]
        found = places >= 0
        found[found] = owner[places[found]] == asked[found]
        return np.where(found, places, -1)


class Features:
    """Tables `user_features` and `item_features`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, kind: Deletable, versions: Sequence[FeatureVersion]) -> set[str]:
        """Store the versions that differ from the one before them; return the ids that have a new one.

        An id has at most one version in a millisecond: the one stored last replaces an earlier one, also of another
        call.
        """
        by_key = {(version.id, in_milliseconds(version.at)): version.features for version in versions}
        rows = [{"id": id_, "at": at.isoformat(), "features": features} for (id_, at), features in by_key.items()]
        if not rows:
            return set()
        values = {"versions": orjson.dumps(rows).decode()}
        statement = PUT.format(kind=kind, **PERIODS[kind])
        return set((await self._connection.execute(text(statement), values)).scalars())

    async def of_log(self, kind: Deletable, period: int) -> FeaturesOf:
        """The versions that held at any interaction of a period."""
        return await self._versions(OF_LOG.format(kind=kind), period=period)

    async def of(self, kind: Deletable, id_: str) -> FeaturesOf:
        """All versions of one user or item."""
        return await self._versions(OF_ONE.format(kind=kind), id=id_)

    async def of_user_at(self, user_id: str, timestamp_ms: int) -> tuple[Mapping[str, Any], int | None]:
        """The features of a user at a time, and when the next version begins (milliseconds since 1970, or None)."""
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
        row = (await self._connection.execute(text(AT), {"id": user_id, "at": at})).one()
        return NOTHING_KNOWN if row.features is None else orjson.loads(row.features), row.until_ms

    async def latest(self, kind: Deletable, ids: Sequence[str] | None = None) -> FeaturesOf:
        """The newest version of each user or item; with `ids` only of these."""
        if ids is None:
            return await self._versions(LATEST.format(kind=kind, which="true"))
        found: list[FeaturesOf] = []
        statement = LATEST.format(kind=kind, which=f"{kind}_id = ANY(string_to_array(CAST(:ids AS text), :separator))")
        # An id, however often it is asked for, is in one page, and pages are in the order of ids.
        for page in pages_of(await asyncio.to_thread(lambda: sorted(set(ids)))):
            names, separator = joined(page)
            found.append(await self._versions(statement, ids=names, separator=separator))
        return _concatenated(found)

    def pages(self, kind: Deletable) -> AsyncIterator[FeaturesOf]:
        """The newest version of each user or item, `VERSIONS_PER_PAGE` at a time, ordered by id."""
        return self._pages(LATEST.format(kind=kind, which="true"), {})

    async def items_put_since(self, period: int) -> list[str]:
        """The items of which a version was stored while this period or a later one was open, ordered by id.

        A version that is being stored now is not among them; see `Lock.CATALOGUE`.
        """
        return list((await self._connection.execute(PUT_SINCE, {"period": period})).scalars())

    async def forget_old(self) -> int:
        """Remove the versions that were replaced before the earliest event of any kept log; return their number.

        The newest version of each user and item stays.
        Reads all logs once, unless there are no versions at all.
        """
        removed = 0
        moment: datetime | None = None
        for kind in ("user", "item"):
            if not await self._connection.scalar(text(f"SELECT EXISTS (SELECT FROM {kind}_features)")):
                continue
            moment = moment or await self._connection.scalar(text(FIRST_MOMENT))
            result = await self._connection.execute(text(FORGET_OLD.format(kind=kind)), {"moment": moment})
            removed += int(result.rowcount)
        return removed

    async def _versions(self, statement: str, **values: object) -> FeaturesOf:
        return _concatenated([page async for page in self._pages(statement, values)])

    async def _pages(self, statement: str, values: Mapping[str, object]) -> AsyncIterator[FeaturesOf]:
        async with self._connection.stream(text(statement), values) as found:
            async for page in found.partitions(VERSIONS_PER_PAGE):
                times = np.array([row.at_ms for row in page], np.int64)
                yield FeaturesOf([row.id for row in page], times, [orjson.loads(row.features) for row in page])


def _concatenated(pages: Sequence[FeaturesOf]) -> FeaturesOf:
    return FeaturesOf(
        [id_ for page in pages for id_ in page.ids],
        np.concatenate([np.empty(0, np.int64), *(page.times_ms for page in pages)]),
        [features for page in pages for features in page.features],
    )
