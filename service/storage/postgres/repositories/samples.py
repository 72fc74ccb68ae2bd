"""What is kept of each period, and what model versions say about it: tables `period_samples` and `sample_scores`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["PeriodSample", "SampleScore", "Samples"]

REQUEST = text("""
    INSERT INTO sample_scores (version, period)
    SELECT CAST(:version AS integer), period FROM period_samples
    WHERE digest IS NOT NULL AND period BETWEEN :first AND :last
    ON CONFLICT DO NOTHING
""")

OVERTAKEN = text("""
    DELETE FROM sample_scores USING model_versions AS model
    WHERE scored_at IS NULL AND model.version = sample_scores.version AND model.version < :version
      AND sample_scores.period <= model.period
""")

RELEASE = text("""
    WITH old AS (
        SELECT period, digest FROM period_samples WHERE digest IS NOT NULL
        ORDER BY period DESC OFFSET CAST(:keep AS integer) FOR UPDATE
    ),
    untold AS (DELETE FROM sample_scores USING old WHERE sample_scores.period = old.period)
    UPDATE period_samples SET digest = NULL, served_logits = NULL FROM old
    WHERE period_samples.period = old.period RETURNING old.digest
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeriodSample:
    """Some interactions of a period, drawn uniformly, and the profile of all."""

    period: int
    profile: Mapping[str, Any]
    """`service.use_cases.update.profile.Profile` (JSON)."""
    digest: str | None
    """Of the artifact with the interactions; None once they are too old to be kept, and where none were kept."""
    served_version: int | None
    """The version that was served when the period was closed."""
    served_logits: bytes | None
    """float32 [n], what that version said of each interaction."""
    allocations: Mapping[str, int]
    """Kind → number of the latest allocation of rows that the interactions know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScore:
    """What a version says of the interactions kept of a period, and what was served said of them."""

    version: int
    period: int
    events: int
    auc: float | None
    """None where all labels are equal."""
    logloss: float | None
    """None where the version could not score them (`failure`)."""
    served_logloss: float | None
    error: float | None
    """Standard error of `logloss - served_logloss`."""
    failure: str | None = None


class Samples:
    """Tables `period_samples` and `sample_scores`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, sample: PeriodSample) -> None:
        """Keep a sample in place of the one that the period had; what was said of that one is forgotten."""
        scores = tables.sample_scores
        await self._connection.execute(delete(scores).where(scores.c.period == sample.period))
        statement = upsert(tables.period_samples).values(asdict(sample))
        changed = {name: statement.excluded[name] for name in asdict(sample) if name != "period"}
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["period"], set_=changed))

    async def list(self, first: int, last: int) -> Sequence[PeriodSample]:
        """The samples of the periods `first` to `last`, by period."""
        table = tables.period_samples
        query = select(table).where(table.c.period.between(first, last)).order_by(table.c.period)
        return [PeriodSample(**row) for row in (await self._connection.execute(query)).mappings()]

    async def newest(self, most: int) -> Sequence[PeriodSample]:
        """The samples of the newest periods that have one, oldest first."""
        table = tables.period_samples
        query = select(table).order_by(table.c.period.desc()).limit(most)
        return [PeriodSample(**row) for row in (await self._connection.execute(query)).mappings()][::-1]

    async def release(self, keep: int) -> Sequence[str]:
        """Let go of the interactions of all but the newest `keep` samples, and of what was said about them.

        Returns:
            the digests of their artifacts.
        """
        return (await self._connection.execute(RELEASE, {"keep": keep})).scalars().all()

    async def request(self, version: int, first: int, last: int) -> None:
        """Have a version score the samples of the periods `first` to `last` that it has not scored."""
        await self._connection.execute(REQUEST, {"version": version, "first": first, "last": last})

    async def overtake(self, version: int) -> None:
        """Ask no more what versions before this one say of the periods that they have learned: an import makes many
        versions in a row, of which only the newest is judged. Replays, which are of later periods, stay.
        """
        await self._connection.execute(OVERTAKEN, {"version": version})

    async def waiting(self) -> tuple[int, Sequence[int]] | None:
        """A version that is to score samples, and their periods, ascending; None where there is nothing to do."""
        table = tables.sample_scores
        found = select(table.c.version).where(table.c.scored_at.is_(None)).order_by(table.c.requested_at).limit(1)
        version = await self._connection.scalar(found)
        if version is None:
            return None
        periods = select(table.c.period).where(table.c.version == version, table.c.scored_at.is_(None))
        return version, (await self._connection.execute(periods.order_by(table.c.period))).scalars().all()

    async def score(self, scores: Sequence[SampleScore]) -> None:
        """Store what versions say of samples; what nobody waits for any more is not stored."""
        for score in scores:
            values = asdict(score)
            change = update(tables.sample_scores).where(
                tables.sample_scores.c.version == values.pop("version"),
                tables.sample_scores.c.period == values.pop("period"),
            )
            await self._connection.execute(change.values(**values, scored_at=func.clock_timestamp()))

    async def scores(
        self, *, version: int | None = None, first: int = 1, last: int | None = None
    ) -> tuple[Sequence[SampleScore], int]:
        """What versions say of samples, by version and period, and how many answers are still waited for.

        Args:
            version: of this one only; None for all.
            first: of the periods.
            last: of the periods; None for the newest.
        """
        table = tables.sample_scores
        query = select(table).where(table.c.period >= first).order_by(table.c.version, table.c.period)
        query = query if version is None else query.where(table.c.version == version)
        query = query if last is None else query.where(table.c.period <= last)
        rows = [dict(row) for row in (await self._connection.execute(query)).mappings()]
        told = [row for row in rows if row.pop("scored_at") is not None]
        for row in told:
            del row["requested_at"]
        return [SampleScore(**row) for row in told], len(rows) - len(told)
