"""From which moment on which version is served: table `takeovers`, and the champion that waits for its moment.

A champion is *announced* first (`Models.set_alias` without a lead), and *released* when enough api processes have
loaded it: `release` sets its moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import RowMapping, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["CanaryFiles", "Takeover", "Takeovers"]

FILES = "coalesce({model}.state -> 'snapshot', jsonb_build_array({model}.serving_digest))"
"""Digests of the files of a version's snapshot."""

# What is served now comes first, then what has a moment to come, then the champion if it waits for its moment.
TURNS_QUERY = """
    SELECT move, model.version, model.period, {files} AS files, active_from, canary.version AS canary_version,
           canary.period AS canary_period, {canary_files} AS canary_files, share, salt
    FROM (
        SELECT move, version, active_from, canary_version FROM takeovers
        WHERE move >= coalesce((SELECT max(move) FROM takeovers WHERE active_from <= clock_timestamp()), 0)
        UNION ALL
        SELECT move, version, NULL, canary_version FROM aliases WHERE name = 'champion' AND active_from IS NULL
    ) AS turn JOIN model_versions AS model USING (version)
        LEFT JOIN canaries ON canaries.version = canary_version
        LEFT JOIN model_versions AS canary ON canary.version = canary_version AND canary.serving_digest IS NOT NULL
    WHERE model.serving_digest IS NOT NULL
    ORDER BY move
"""
TURNS = text(TURNS_QUERY.format(files=FILES.format(model="model"), canary_files=FILES.format(model="canary"))).columns(
    files=JSONB, canary_files=JSONB
)

WAITING = text("""
    SELECT move FROM aliases WHERE name = 'champion' AND active_from IS NULL FOR UPDATE SKIP LOCKED
""")

# All processes that serve have it, or it has waited long enough and the share of them has it. Its moment gives them
# time to hear of it, follows those of earlier moves, and does not come before each process that refuses to be behind
# has the version or has ended.
RELEASE = text("""
    WITH given AS (
        SELECT clock_timestamp() AS now, CAST(:lead AS interval) AS lead, CAST(:wait AS interval) AS wait,
               CAST(:quorum AS float8) AS quorum, (SELECT max(active_from) FROM takeovers) AS earlier
    ),
    live AS (
        SELECT count(*) FILTER (WHERE served_move >= 0) AS processes,
               count(*) FILTER (WHERE served_move >= 0 AND ready_move >= :move) AS ready,
               max(expires_at) FILTER (WHERE ready_move < :move AND refuses) AS leased_until
        FROM api_processes WHERE expires_at > (SELECT now FROM given)
    ),
    released AS (
        UPDATE aliases
        SET active_from = greatest(announced_at + lead, now + lead / 2, leased_until, earlier)
        FROM live, given
        WHERE name = 'champion' AND (
            ready = processes OR (ready > 0 AND ready >= quorum * processes AND now >= announced_at + wait)
        )
        RETURNING move, version, active_from, canary_version
    )
    INSERT INTO takeovers (move, version, active_from, canary_version)
    SELECT move, version, active_from, canary_version FROM released
    RETURNING active_from
""")

PRUNE = text("""
    DELETE FROM takeovers
    WHERE move < (SELECT max(move) FROM takeovers WHERE active_from <= clock_timestamp())
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryFiles:
    """What an api process needs to serve a canary."""

    version: int
    period: int
    files: tuple[str, ...]
    """As of `Takeover`."""
    share: float
    """Of the users."""
    salt: int
    """Decides which users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Takeover:
    """A move of the champion, with what an api process needs to serve the version."""

    move: int
    version: int
    period: int
    """The period that the version learned last."""
    files: tuple[str, ...]
    """SHA-256 of the files of its snapshot, in hex: the base, then its deltas, oldest first."""
    active_from: datetime | None
    """When every process switches to it, on the clock of Postgres; None while it waits for the api processes."""
    canary: CanaryFiles | None
    """The version that answers a share of the users beside it; None where it answers all."""


class Takeovers:
    """Table `takeovers`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def turns(self) -> Sequence[Takeover]:
        """What is served now, what takes over from a coming moment on, and what waits for its moment; oldest first."""
        found = (await self._connection.execute(TURNS)).mappings()
        return [_takeover(row) for row in found]

    async def release(self, *, lead_seconds: float, wait_seconds: float, quorum: float) -> datetime | None:
        """Set the moment of an announced champion, if enough of the processes that run have it.

        The caller holds `Lock.TAKEOVER`.

        Args:
            lead_seconds: shortest time from the announcement to the moment. Half of it is the shortest time from now.
            wait_seconds: how long to wait for all of them.
            quorum: share of them that is enough after that, over 0 to 1.

        Returns:
            the moment; None where nothing was released.
        """
        move = await self._connection.scalar(WAITING)
        if move is None:
            return None
        # A statement of its own: it sees what others have committed before this transaction got the lock.
        values = {
            "move": move,
            "lead": timedelta(seconds=lead_seconds),
            "wait": timedelta(seconds=wait_seconds),
            "quorum": quorum,
        }
        moment: datetime | None = await self._connection.scalar(RELEASE, values)
        if moment is not None:
            await self._connection.execute(PRUNE)
        return moment


def _takeover(row: RowMapping) -> Takeover:
    canary = None
    if row["canary_version"] is not None:
        canary = CanaryFiles(
            version=row["canary_version"],
            period=row["canary_period"],
            files=tuple(row["canary_files"]),
            share=row["share"],
            salt=row["salt"],
        )
    return Takeover(
        move=row["move"],
        version=row["version"],
        period=row["period"],
        files=tuple(row["files"]),
        active_from=row["active_from"],
        canary=canary,
    )
