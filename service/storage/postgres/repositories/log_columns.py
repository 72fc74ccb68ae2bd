"""Reads the whole log of a period, as `Interactions` offers it to the update.

Postgres aggregates rows into arrays, one for each column. That saves round trips, and a Python object for each row.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["Contexts", "PeriodLog", "concatenate_pages", "read_contexts", "read_log"]

ScalarT = TypeVar("ScalarT", bound=np.generic)

ROWS_OF_A_PAGE = 200_000
"""Rows that are aggregated into one array of each column. Postgres builds arrays of at most 1 GB, far from which pages
stay with the longest ids too; and memory on the server stays flat."""

LOG = text("""
    SELECT array_agg(user_id ORDER BY n) AS user_ids, array_agg(item_id ORDER BY n) AS item_ids,
           array_agg(label ORDER BY n) AS labels, array_agg(ms ORDER BY n) AS timestamps_ms,
           array_agg(sampled ORDER BY n) AS sampled, array_agg(weight ORDER BY n) AS weights
    FROM (
        SELECT user_id, item_id, label, sampled, coalesce(weight, 1) AS weight,
               floor(extract(epoch FROM occurred_at) * 1000)::bigint AS ms,
               row_number() OVER (ORDER BY occurred_at, event_id) AS n
        FROM interactions
        WHERE period = :period
    ) AS log
    GROUP BY (n - 1) / :size
    ORDER BY (n - 1) / :size
""")

CONTEXTS = text("""
    SELECT n, context::text AS context
    FROM (
        SELECT context, row_number() OVER (ORDER BY occurred_at, event_id) - 1 AS n
        FROM interactions
        WHERE period = :period
    ) AS log
    WHERE context IS NOT NULL
    ORDER BY n
""")
CONTEXTS_OF_A_PAGE = 10_000
"""Contexts that are read at a time; each has at most 8 KiB."""


@dataclass(frozen=True, slots=True)
class PeriodLog:
    """All interactions of one period, in the order in which they happened, as columns of length n."""

    user_ids: list[str]
    item_ids: list[str]
    labels: NDArray[np.int8]
    """0 or 1."""
    timestamps_ms: NDArray[np.int64]
    sampled: NDArray[np.bool_]
    """Whether it is a sampled negative, which nobody was shown."""
    weights: NDArray[np.float32]
    """Weight in training; 1 where the client gave none."""

    def __len__(self) -> int:
        return len(self.user_ids)


class Contexts(NamedTuple):
    """The contexts of m interactions of a period."""

    places: NDArray[np.int64]
    """Places of these interactions in the `PeriodLog`, ascending, [m]."""
    values: list[Mapping[str, Any]]
    """For each the values of the context fields by name, as the client sent them, [m]."""


async def read_log(connection: AsyncConnection, period: int) -> PeriodLog:
    """All interactions of a period, ordered by (occurred_at, event_id), whatever order they were stored in."""
    user_ids: list[str] = []
    item_ids: list[str] = []
    labels: list[NDArray[np.int8]] = []
    timestamps_ms: list[NDArray[np.int64]] = []
    sampled: list[NDArray[np.bool_]] = []
    weights: list[NDArray[np.float32]] = []
    async with connection.stream(LOG, {"period": period, "size": ROWS_OF_A_PAGE}) as pages:
        async for page in pages:
            user_ids += page.user_ids
            item_ids += page.item_ids
            labels.append(np.array(page.labels, dtype=np.int8))
            timestamps_ms.append(np.array(page.timestamps_ms, dtype=np.int64))
            sampled.append(np.array(page.sampled, dtype=np.bool_))
            weights.append(np.array(page.weights, dtype=np.float32))
    return PeriodLog(
        user_ids,
        item_ids,
        concatenate_pages(labels, np.int8),
        concatenate_pages(timestamps_ms, np.int64),
        concatenate_pages(sampled, np.bool_),
        concatenate_pages(weights, np.float32),
    )


async def read_contexts(connection: AsyncConnection, period: int) -> AsyncIterator[Contexts]:
    """The contexts of those interactions of a period that have one, a page at a time, in the order of `read_log`."""
    async with connection.stream(CONTEXTS, {"period": period}) as found:
        async for page in found.partitions(CONTEXTS_OF_A_PAGE):
            places = np.array([row.n for row in page], dtype=np.int64)
            yield Contexts(places, [orjson.loads(row.context) for row in page])


def concatenate_pages(pages: Sequence[NDArray[ScalarT]], dtype: type[ScalarT]) -> NDArray[ScalarT]:
    """A column of all pages; empty where there are no pages."""
    return np.concatenate(pages) if pages else np.empty(0, dtype)
