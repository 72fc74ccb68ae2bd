"""Versions that answer a share of the users first, and how what they showed fared: table `canaries`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Canaries", "Canary", "CanaryState", "Outcome"]

LEAST_PROBABILITY = 1e-6
"""Where a logarithm would be infinite, a probability counts as this far from 0 or 1."""

# Each impression that the service has logged while the canary ran, when the time for clicks on it is over. A click lies
# in the partition of the impression or of a later period; one that came before the impression does not count.
OUTCOMES = text(f"""
    SELECT shown.user_id, shown.model_version, shown.shown_at, shown.request_id, counted.clicks, counted.logloss
    FROM (
        SELECT user_id, model_version, shown_at, request_id, item_ids, scores, period FROM impressions
        WHERE period > :learned AND model_version IS NOT NULL AND model_version = ANY (CAST(:versions AS integer[]))
            AND (shown_at, request_id) > (CAST(:shown_at AS timestamptz), CAST(:request_id AS text))
            AND shown_at <= clock_timestamp() - CAST(:wait AS interval)
        ORDER BY shown_at, request_id LIMIT :most
    ) AS shown CROSS JOIN LATERAL (
        SELECT array_agg(item_id) AS item_ids FROM clicks
        WHERE clicks.period > :learned AND clicks.request_id = shown.request_id
            AND clicked_at BETWEEN shown_at AND shown_at + CAST(:wait AS interval)
    ) AS clicked CROSS JOIN LATERAL (
        SELECT avg(click::int)::float8 AS clicks, avg(-ln(CASE WHEN click THEN p ELSE 1 - p END)) AS logloss
        FROM (
            SELECT coalesce(id = ANY (clicked.item_ids), false) AS click,
                   least(greatest(score::float8, {LEAST_PROBABILITY}), 1 - {LEAST_PROBABILITY}) AS p
            FROM unnest(shown.item_ids, shown.scores) AS item (id, score)
        ) AS each
    ) AS counted
    ORDER BY shown.shown_at, shown.request_id
""")


class CanaryState(StrEnum):
    """What becomes of a canary."""

    RUNNING = "running"
    PROMOTED = "promoted"
    """It answers all users."""
    REVERTED = "reverted"
    """It answers nobody any more."""
    REPLACED = "replaced"
    """A newer version became the canary in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A version that answers a share of the users first."""

    version: int
    champion_version: int
    """The version that answers the others."""
    share: float
    """Of the users."""
    salt: int
    """Decides which users."""
    minutes: float
    """How long after `since` it is decided at the latest."""
    state: CanaryState
    announced_at: datetime
    since: datetime | None
    """From when on it answers, while it runs; None while the api processes are loading it, and when it has ended."""
    elapsed_seconds: float | None
    """How long it has answered, on the clock of Postgres; None where `since` is."""
    ended_at: datetime | None
    ended_by: str | None
    reason: str | None
    """Of its end."""
    numbers: Mapping[str, Any] | None
    """By which it was decided; while it runs, what is known so far."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an impression fared."""

    user_id: str
    model_version: int
    """The version that had scored it."""
    shown_at: datetime
    request_id: str
    clicks: float
    """Share of its items that were clicked."""
    logloss: float
    """Mean of the scores' LogLoss over its items."""


class Canaries:
    """Table `canaries`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def running(self) -> Canary | None:
        """The canary that is in service, or about to be; None where there is none."""
        row = (await self._connection.execute(_query().where(tables.canaries.c.state == "running"))).mappings().first()
        return None if row is None else _canary(row)

    async def get(self, version: int) -> Canary | None:
        """What a version has been through as a canary; None where it was none."""
        row = (await self._connection.execute(_query().where(tables.canaries.c.version == version))).mappings().first()
        return None if row is None else _canary(row)

    async def ended(self, most: int, before: int | None = None) -> Sequence[Canary]:
        """What became of the newest canaries that do not run any more, newest first.

        Args:
            most: of them.
            before: only versions below this one.
        """
        table = tables.canaries.c
        query = _query().where(table.state != "running").order_by(table.version.desc()).limit(most)
        query = query if before is None else query.where(table.version < before)
        return [_canary(row) for row in (await self._connection.execute(query)).mappings()]

    async def counts(self) -> Mapping[str, int]:
        """State → number of canaries."""
        state = tables.canaries.c.state
        counted = await self._connection.execute(select(state, func.count()).group_by(state))
        return {name: number for name, number in counted}

    async def note(self, version: int, numbers: Mapping[str, Any]) -> None:
        """Note what is known of a canary so far; nothing happens to one that has ended."""
        table = tables.canaries
        change = update(table).where(table.c.version == version, table.c.state == "running")
        await self._connection.execute(change.values(numbers=numbers))

    async def start(self, version: int, champion: int, *, share: float, salt: int, minutes: float) -> None:
        """Note that a version begins with a share of the users; no other may be running."""
        values = {"version": version, "champion_version": champion, "share": share, "salt": salt, "minutes": minutes}
        await self._connection.execute(insert(tables.canaries).values(values))

    async def end(
        self, version: int, state: CanaryState, *, actor: str, reason: str, numbers: Mapping[str, Any] | None = None
    ) -> None:
        """Note what became of the one that runs.

        Args:
            version: of it.
            state: what became of it.
            actor: who has decided.
            reason: why.
            numbers: by which it was decided; None where nobody looked at any.
        """
        change = update(tables.canaries).where(tables.canaries.c.version == version)
        values = {"state": state, "ended_at": func.now(), "ended_by": actor, "reason": reason, "numbers": numbers or {}}
        await self._connection.execute(change.values(values))

    async def outcomes(
        self,
        versions: Sequence[int],
        *,
        learned: int,
        after: tuple[datetime, str],
        wait: timedelta,
        most: int,
    ) -> Sequence[Outcome]:
        """How impressions fared that the service has logged, in the order in which they were shown.

        Args:
            versions: that have scored them.
            learned: a period before all of them.
            after: when the last one that is known was shown, and its request id.
            wait: how long clicks on an impression count; younger impressions are left out.
            most: of them at a time.
        """
        values = {
            "versions": list(versions),
            "learned": learned,
            "shown_at": after[0],
            "request_id": after[1],
            "wait": wait,
            "most": most,
        }
        return [Outcome(*row) for row in await self._connection.execute(OUTCOMES, values)]


def _query() -> Any:
    alias = tables.aliases.c
    since = (alias.name == "champion") & (alias.canary_version == tables.canaries.c.version)
    elapsed = func.extract("epoch", func.clock_timestamp() - alias.active_from)
    joined = tables.canaries.outerjoin(tables.aliases, since)
    columns = (alias.active_from.label("since"), elapsed.label("elapsed_seconds"))
    return select(tables.canaries, *columns).select_from(joined)


def _canary(row: RowMapping) -> Canary:
    elapsed = row["elapsed_seconds"]
    return Canary(
        **{
            **row,
            "state": CanaryState(row["state"]),
            "elapsed_seconds": None if elapsed is None else float(elapsed),
        }
    )
