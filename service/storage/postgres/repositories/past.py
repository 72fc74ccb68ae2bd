"""Reads what users did last: their clicks, which make their histories, and their passes, interactions without a click.

It is in the logs that are kept, and for dropped logs in the tables `user_histories` (clicks) and `user_passes`, which
are alike. Sampled negatives belong to nobody. Everywhere the order is that of the time in milliseconds, then of the
event id, so that a prediction reads what an update learns from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from asmg.layout import RECENT
from service.limits import MAX_FUTURE_SECONDS, MAX_HISTORY
from service.storage.postgres import tables
from service.storage.postgres.repositories.label_events import INTERACTION_ID
from service.storage.postgres.repositories.log_columns import concatenate_pages

__all__ = ["FOLDED", "KEPT", "LOCK_FOLDED", "Earlier", "Past", "PastEvent"]

KEPT = max(MAX_HISTORY, RECENT)
"""Interactions of a user that are read, for each label."""

USERS_OF_A_PAGE = 10_000
"""Users whose interactions are aggregated into one array. Postgres builds arrays of at most 1 GB, and memory on the
server stays flat."""

OF_LABEL = {1: "label = 1", 0: "label = 0 AND NOT sampled"}
"""Condition on the interactions of a label that count, as the indexes by user state it."""

FOLDED = {1: "user_histories", 0: "user_passes"}
"""Tables with the interactions of dropped logs, by label."""

OF_FOLDED = "CROSS JOIN LATERAL unnest(item_ids, event_ids, times) AS folded (item_id, event_id, occurred_at)"


def _of_both(template: str, between: str) -> str:
    """A query template for clicks and for passes, with `between` in between."""
    parts = (template.format(label=label, of_label=OF_LABEL[label], folded=FOLDED[label]) for label in (1, 0))
    return f" {between} ".join(parts)


# An event that came late needs what happened before its own time: what came at or after the user's first event of the
# period does not count towards the limit. The UNION leaves each once: those of a log that is about to be dropped are in
# the folded ones too.
EARLIER_OF_LABEL = f"""
    SELECT {{label}} AS label, event_id, occurred_at,
           CASE WHEN {{label}} = 1 AND row_number() OVER (ORDER BY occurred_at DESC, event_id DESC) <= late + :length
                THEN item_id END AS item_id
    FROM (
        SELECT count(*) AS late FROM interactions
        WHERE interactions.user_id = active.user_id AND {{of_label}} AND period < :period
          AND occurred_at >= active.first
    ) AS counted CROSS JOIN LATERAL (
        SELECT item_id, event_id, occurred_at FROM (
            (
                SELECT item_id, event_id, occurred_at FROM interactions
                WHERE interactions.user_id = active.user_id AND {{of_label}} AND period < :period
                ORDER BY occurred_at DESC, event_id DESC
                LIMIT late + :kept
            )
            UNION
            SELECT folded.item_id, folded.event_id, folded.occurred_at
            FROM {{folded}} {OF_FOLDED}
            WHERE {{folded}}.user_id = active.user_id
        ) AS known
        ORDER BY occurred_at DESC, event_id DESC
        LIMIT late + :kept
    ) AS kept
"""

# At one moment there can be events of a user in this log and in earlier ones.
BEHIND_OF_LABEL = """(
    SELECT count(*) FROM interactions AS same
    WHERE same.period = :period AND same.user_id = active.user_id AND {of_label}
      AND same.occurred_at = past.occurred_at AND same.event_id < past.event_id
)"""

# Asked once: hundreds of thousands of users of a first period need not be looked up one by one.
ANYTHING_EARLIER = "(EXISTS (SELECT FROM interactions WHERE period < :period) OR {})".format(
    " OR ".join(f"EXISTS (SELECT FROM {folded})" for folded in FOLDED.values())
)

EARLIER = text(f"""
    WITH active AS MATERIALIZED (
        SELECT user_id, date_trunc('milliseconds', min(occurred_at)) AS first,
               row_number() OVER (ORDER BY user_id) - 1 AS n
        FROM interactions
        WHERE period = :period
        GROUP BY user_id
    ), earlier AS (
        SELECT n, past.label, past.item_id, past.event_id, past.occurred_at,
               CASE WHEN past.occurred_at < first THEN 0 ELSE {_of_both(BEHIND_OF_LABEL, "+")} END AS behind
        FROM active CROSS JOIN LATERAL ({_of_both(EARLIER_OF_LABEL, "UNION ALL")}) AS past
        WHERE {ANYTHING_EARLIER}
    )
    SELECT array_agg(n ORDER BY n, occurred_at DESC, event_id DESC) AS users,
           array_agg(label + 2 * behind ORDER BY n, occurred_at DESC, event_id DESC) AS tags,
           array_agg(floor(extract(epoch FROM occurred_at) * 1000)::bigint
                     ORDER BY n, occurred_at DESC, event_id DESC) AS timestamps_ms,
           array_agg(item_id ORDER BY n, occurred_at DESC, event_id DESC) AS item_ids
    FROM earlier
    GROUP BY n / :size
    ORDER BY n / :size
""")

# An event dated far ahead of now would displace everything later, so it counts from its time on. Ingestion refuses such
# events; earlier development versions stored any time.
NOT_AHEAD = f"{{}} <= now() + interval '{MAX_FUTURE_SECONDS} seconds'"
OCCURRED, SHOWN = NOT_AHEAD.format("occurred_at"), NOT_AHEAD.format("shown_at")
FOLDED_OCCURRED = NOT_AHEAD.format("folded.occurred_at")

RECENT_OF_LABEL = f"""
    (
        SELECT 0 AS source, {{label}} AS label, item_id, event_id, occurred_at FROM interactions
        WHERE user_id = :user_id AND {{of_label}} AND {OCCURRED}
        ORDER BY occurred_at DESC, event_id DESC
        LIMIT :kept
    )
    UNION ALL
    SELECT 1, {{label}}, folded.item_id, folded.event_id, folded.occurred_at
    FROM {{folded}} {OF_FOLDED}
    WHERE {{folded}}.user_id = :user_id AND {FOLDED_OCCURRED}
"""

# An event can be in several of these sources: in a log that is about to be dropped and in its folded table; as the
# click on, or the item of, an impression that is resolved now. The first source that has it is right. It is enough to
# read the newest impressions that together have `kept` items, with all others of the same moment.
RECENT_EVENTS = text(f"""
    SELECT label, item_id, event_id, floor(extract(epoch FROM occurred_at) * 1000)::bigint AS timestamp_ms
    FROM (
        SELECT DISTINCT ON (event_id) label, item_id, event_id COLLATE "C" AS event_id, occurred_at
        FROM (
            {_of_both(RECENT_OF_LABEL, "UNION ALL")}
            UNION ALL
            (
                SELECT 2, 1, item_id, interaction_id, shown_at FROM unresolved_positives
                WHERE user_id = :user_id AND {SHOWN}
                ORDER BY shown_at DESC, interaction_id DESC
                LIMIT :kept
            )
            UNION ALL
            SELECT 3, 0, item_id, {INTERACTION_ID}, shown_at
            FROM (
                SELECT *, coalesce(sum(cardinality(item_ids)) OVER (
                           ORDER BY shown_at DESC RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP
                       ), 0) AS newer
                FROM (
                    SELECT request_id, item_ids, shown_at FROM impressions
                    WHERE user_id = :user_id AND {SHOWN}
                    ORDER BY shown_at DESC
                    FETCH FIRST :kept ROWS WITH TIES
                ) AS newest
            ) AS shown CROSS JOIN LATERAL unnest(item_ids) AS item (item_id)
            WHERE newer < :kept
        ) AS known
        ORDER BY event_id, source
    ) AS past
    ORDER BY occurred_at DESC, event_id DESC
""")

# Whoever folds a log into these tables, or removes a user from them, has read them before: they wait for each other.
LOCK_FOLDED = f"LOCK TABLE {', '.join(FOLDED.values())} IN SHARE ROW EXCLUSIVE MODE"

FOLD = f"""
    INSERT INTO {{folded}} (user_id, item_ids, event_ids, times)
    SELECT user_id, array_agg(item_id ORDER BY n), array_agg(event_id ORDER BY n), array_agg(occurred_at ORDER BY n)
    FROM (
        SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY occurred_at DESC, event_id DESC) AS n
        FROM (
            SELECT user_id, item_id, event_id, occurred_at FROM interactions
            WHERE period = :period AND {{of_label}} AND {OCCURRED}
            UNION
            SELECT user_id, folded.item_id, folded.event_id, folded.occurred_at
            FROM {{folded}} {OF_FOLDED}
            WHERE user_id IN (SELECT user_id FROM interactions WHERE period = :period AND {{of_label}})
              AND {FOLDED_OCCURRED}
        ) AS known
    ) AS ranked
    WHERE n <= :kept
    GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE
    SET item_ids = excluded.item_ids, event_ids = excluded.event_ids, times = excluded.times
"""


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An interaction of a user, or an item that the user was shown, which will become one."""

    label: int
    """1 for a click, else 0."""
    item_id: str
    event_id: str
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the users of a period's log did before it, as columns of length n: user by user, newest first in each."""

    users: NDArray[np.int64]
    """The user's place among the distinct users of the log, in the order of their ids."""
    labels: NDArray[np.int64]
    """1 for a click, else 0."""
    timestamps_ms: NDArray[np.int64]
    behind: NDArray[np.int64]
    """Number of the log's interactions, without sampled ones, of the same user and time with a smaller event id."""
    in_history: NDArray[np.bool_]
    """Whether it is a click that a history of the period's interactions may contain; h of them are."""
    item_ids: list[str]
    """The items of these clicks, [h]."""

    def __len__(self) -> int:
        return len(self.users)


class Past:
    """Tables `user_histories` and `user_passes`, together with the logs that are kept."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def recent(self, user_id: str) -> list[PastEvent]:
        """What a user did last over all periods, the open one included, newest first: at least the newest `KEPT` clicks
        and the newest `KEPT` of all, with whatever is known of older ones.

        Items that were shown are there as the interactions that they will be: clicks where one came in time so far.
        """
        rows = await self._connection.execute(RECENT_EVENTS, {"user_id": user_id, "kept": KEPT})
        return [PastEvent(row.label, row.item_id, row.event_id, row.timestamp_ms) for row in rows]

    async def earlier(self, period: int, length: int = MAX_HISTORY) -> Earlier:
        """For each user of a period, the last `KEPT` clicks and the last `KEPT` passes of the periods before it.

        What happened after the user's first event of the period, which came late then, does not count towards these
        limits: it comes in addition. Of periods whose log is dropped, the last `KEPT` of each label are left.

        Args:
            period: a sealed one.
            length: of a history, at most `MAX_HISTORY`.
        """
        users: list[NDArray[np.int64]] = []
        tags: list[NDArray[np.int64]] = []
        timestamps_ms: list[NDArray[np.int64]] = []
        in_history: list[NDArray[np.bool_]] = []
        item_ids: list[str] = []
        values = {"period": period, "length": length, "kept": KEPT, "size": USERS_OF_A_PAGE}
        async with self._connection.stream(EARLIER, values) as pages:
            async for page in pages:
                users.append(np.array(page.users, dtype=np.int64))
                tags.append(np.array(page.tags, dtype=np.int64))
                timestamps_ms.append(np.array(page.timestamps_ms, dtype=np.int64))
                in_history.append(np.array([item is not None for item in page.item_ids], dtype=np.bool_))
                item_ids += [item for item in page.item_ids if item is not None]
        tag = concatenate_pages(tags, np.int64)
        return Earlier(
            users=concatenate_pages(users, np.int64),
            labels=tag & 1,
            timestamps_ms=concatenate_pages(timestamps_ms, np.int64),
            behind=tag >> 1,
            in_history=concatenate_pages(in_history, np.bool_),
            item_ids=item_ids,
        )

    async def fold(self, period: int) -> bool:
        """Add the interactions of a period's log that may still be read to the tables of dropped logs, once.

        Returns:
            whether this call did it.
        """
        periods = tables.periods.c
        noted = update(tables.periods).where(periods.number == period, periods.log_folded_at.is_(None))
        # The row stays locked to the end: of two workers at once the other finds that it is done.
        row = await self._connection.execute(
            noted.values(log_folded_at=func.clock_timestamp()).returning(periods.number)
        )
        if row.first() is None:
            return False
        await self._connection.execute(text(LOCK_FOLDED))
        for label, folded in FOLDED.items():
            statement = FOLD.format(folded=folded, of_label=OF_LABEL[label])
            await self._connection.execute(text(statement), {"period": period, "kept": KEPT})
        return True
