"""The log of what happened: ingestion, and reading a period in order.

Rows travel as columns, one array for each, unnested or aggregated by Postgres, or by binary COPY. It saves round trips,
and when reading a Python object for each row.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np
import orjson
from asyncpg import Connection, InterfaceError, InternalClientError, PostgresError, UniqueViolationError
from numpy.typing import NDArray
from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady
from service.limits import MAX_ID_LENGTH
from service.storage.postgres import tables
from service.storage.postgres.events import EventBatch, Happened
from service.storage.postgres.outages import outage
from service.storage.postgres.repositories.period_logs import UNMERGED, open_and_unmerged

__all__ = [
    "COUNT",
    "Contexts",
    "Inserted",
    "Interactions",
    "PeriodLog",
    "Raced",
    "Stored",
    "driver_of",
    "firsts",
    "insert_events",
    "join",
    "judged",
    "known_ids",
]

ScalarT = TypeVar("ScalarT", bound=np.generic)

# Postgres builds an array of at most 1 GB: pages keep far from it at the longest ids, and memory flat on the server.
ROWS_OF_A_PAGE = 200_000
# The event loop does nothing else while the driver takes them in.
ROWS_OF_AN_INSERT = 1000


@dataclass(frozen=True, slots=True)
class PeriodLog:
    """All interactions of one period, in the order in which they happened, as columns of length n."""

    user_ids: list[str]
    item_ids: list[str]
    labels: NDArray[np.int8]
    """0 or 1."""
    timestamps_ms: NDArray[np.int64]
    sampled: NDArray[np.bool_]
    """Negatives that nobody was shown."""
    weights: NDArray[np.float32]
    """How much each counts; 1 where nothing was said."""

    def __len__(self) -> int:
        return len(self.user_ids)


class Contexts(NamedTuple):
    """The contexts of some interactions of a period."""

    places: NDArray[np.int64]
    """Of the interactions in `Interactions.log` of the period, ascending, [m]."""
    values: list[Mapping[str, Any]]
    """Of each the values of the fields of the context by their names, as they were sent, [m]."""


class Inserted(NamedTuple):
    """What became of a batch."""

    accepted: list[int]
    """The events that were stored: of each id its first."""
    conflicts: list[int]
    """The events that differ from the one stored under their id."""


class Stored(NamedTuple):
    """A batch in the log."""

    period: int
    """That holds it."""
    inserted: Inserted
    happened: Happened
    """The events that were stored."""


class Raced(Exception):
    """Another transaction has just stored an event with one of the same ids: the same call, begun anew, will see it."""


# The driver needs a third of a millisecond to make an array of a thousand texts; Postgres splits one text in no time.
KNOWN = f"""
    SELECT NULL AS event_id, NULL::bigint AS content, number, is_open FROM ({UNMERGED}) AS period
    UNION ALL SELECT event_id, content, NULL, NULL FROM event_ids
    WHERE kind = 0 AND event_id = ANY(string_to_array($1, $2))
"""
KNOWN_IN_PARTITION = """
    UNION ALL SELECT event_id, content, NULL, NULL FROM interactions_p{} WHERE event_id = ANY(string_to_array($1, $2))
"""
COUNT = """
    INSERT INTO log_counters (period, slot, events) VALUES ({period}, {slot}, {events})
    ON CONFLICT (period, slot) DO UPDATE SET events = log_counters.events + excluded.events
"""
"""Add to the number of interactions of the open period, in the transaction that stores them."""

NO_SLOT = 0
"""Of whoever is no writer of the log."""

Look = Callable[[list[str]], Awaitable[tuple[int, dict[str, int | None]]]]
"""Which period is open, and which of some ids are taken."""

SEPARATOR = "\x1f"

MERGE = text("""
    INSERT INTO event_ids (kind, event_id, period, content)
    SELECT 0, event_id, period, content FROM interactions WHERE period = :period
    ON CONFLICT (kind, event_id) DO NOTHING
""")

# Each has its place behind its positive. What a client has stored under such an id is left alone.
SAMPLED_ID = "numbered.event_id || '~sampled' || k"
INSERT_SAMPLED = f"""
    WITH numbered AS (
        SELECT row_number() OVER (ORDER BY occurred_at, event_id) - 1 AS n,
               event_id, user_id, occurred_at, context, weight
        FROM interactions_p{{period}}
    ), made AS MATERIALIZED (
        SELECT CASE WHEN length({SAMPLED_ID}) <= {MAX_ID_LENGTH} THEN {SAMPLED_ID}
                    ELSE encode(sha256(convert_to({SAMPLED_ID}, 'UTF8')), 'hex') END COLLATE "C" AS event_id,
               user_id, item_id, occurred_at, context, weight
        FROM numbered JOIN drawn_negatives USING (n)
    ), claimed AS (
        INSERT INTO event_ids (kind, event_id, period) SELECT 0, event_id, {{period}} FROM made ORDER BY event_id
        ON CONFLICT (kind, event_id) DO NOTHING
        RETURNING event_id
    ), stored AS (
        INSERT INTO interactions_p{{period}}
            (event_id, period, user_id, item_id, label, occurred_at, sampled, context, weight)
        SELECT event_id, {{period}}, user_id, item_id, 0, occurred_at, true, context, weight
        FROM made JOIN claimed USING (event_id)
        ON CONFLICT (event_id, period) DO NOTHING
        RETURNING event_id
    )
    SELECT count(*) FROM stored
"""
ROWS_OF_A_COPY = 5000

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
"""Each has at most 8 KiB."""

FORGET_DROPPED_IDS = text("""
    WITH RECURSIVE known (period) AS (
        SELECT min(period) FROM event_ids
        UNION ALL
        SELECT (SELECT min(period) FROM event_ids WHERE period > known.period) FROM known WHERE period IS NOT NULL
    )
    DELETE FROM event_ids WHERE period IN (
        SELECT number FROM known JOIN periods ON number = period WHERE log_dropped_at IS NOT NULL
    )
""")


class Interactions:
    """Table `interactions`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, period: int, events: EventBatch, unmerged: Sequence[int] = ()) -> Inserted:
        """Store the events that are new.

        An event whose id is in the log of any period that is kept, or earlier in the same batch, is left out: it is a
        duplicate, or a conflict where its content is another. One transaction should insert one batch: events are
        stored in the order of their ids, so that batches which overlap wait for each other and cannot deadlock.

        Args:
            period: that they go to.
            events: of any number.
            unmerged: other periods whose ids are not in `event_ids` yet.

        Raises:
            Raced: begin the transaction again.
        """

        async def look(ids: list[str]) -> tuple[int, dict[str, int | None]]:
            *_, known = await known_ids(driver, ids, {period, *unmerged})
            return period, known

        async with driver_of(self._connection) as driver:
            inserted = (await insert_events(driver, events, look)).inserted
        if inserted.accepted:
            await self.note_count(period, len(inserted.accepted))
        return inserted

    async def shown_items(self, period: int) -> list[str]:
        """The items of a period's log, but for those that are in it as sampled negatives alone; in any order."""
        interactions = tables.interactions.c
        query = select(interactions.item_id).distinct().where(interactions.period == period, ~interactions.sampled)
        return list((await self._connection.execute(query)).scalars())

    async def insert_sampled(
        self, period: int, positives: NDArray[np.int64], item_ids: Sequence[str], per_positive: int
    ) -> int:
        """Add sampled negatives to the log of a sealed period that has only positives, with their contexts and weights.

        Args:
            period: of a log that nobody adds to.
            positives: for each negative the place of its positive in `log(period)`, ascending, [m].
            item_ids: of the negatives, [m].
            per_positive: negatives of each positive.

        Returns:
            how many were stored.
        """
        await self._connection.execute(
            text("CREATE TEMPORARY TABLE drawn_negatives (n bigint, k int, item_id text) ON COMMIT DROP")
        )
        for start in range(0, len(positives), ROWS_OF_A_COPY):
            places = positives[start : start + ROWS_OF_A_COPY].tolist()
            numbers = ((start + np.arange(len(places))) % per_positive + 1).tolist()
            rows = zip(places, numbers, item_ids[start : start + ROWS_OF_A_COPY], strict=True)
            async with driver_of(self._connection) as driver:
                await driver.copy_records_to_table("drawn_negatives", records=rows)
        await self._connection.execute(text("ANALYZE drawn_negatives"))
        return int(await self._connection.scalar(text(INSERT_SAMPLED.format(period=int(period)))))

    async def merge_ids(self, period: int) -> None:
        """Note the ids of a closed period where those of all periods are; from then on they are looked up there."""
        await self._connection.execute(MERGE, {"period": period})
        await self._connection.execute(
            update(tables.periods).where(tables.periods.c.number == period).values(ids_merged_at=func.clock_timestamp())
        )

    async def count(self, period: int, *, id_prefix: str = "") -> int:
        """Interactions of a period; with `id_prefix` only those whose event id begins so."""
        query = select(func.count()).select_from(tables.interactions).where(tables.interactions.c.period == period)
        if id_prefix:
            query = query.where(func.starts_with(tables.interactions.c.event_id, id_prefix))
        return int((await self._connection.execute(query)).scalar_one())

    async def any(self, period: int) -> bool:
        """Whether a period has interactions."""
        interactions = tables.interactions.c
        query = select(exists(select(interactions.period).where(interactions.period == period)))
        return bool(await self._connection.scalar(query))

    async def counted(self, period: int) -> int:
        """Interactions of the open period, without looking at them."""
        counters = tables.log_counters.c
        query = select(func.coalesce(func.sum(counters.events), 0)).where(counters.period == period)
        return int((await self._connection.execute(query)).scalar_one())

    async def note_count(self, period: int, events: int) -> None:
        """Add to the number of interactions of the open period what this transaction stores; less where it deletes."""
        await self._connection.exec_driver_sql(COUNT.format(period=int(period), slot=NO_SLOT, events=int(events)))

    async def forget_counters(self, period: int) -> None:
        """Forget how that number came about; to be called when the period is sealed."""
        await self._connection.execute(delete(tables.log_counters).where(tables.log_counters.c.period == period))

    async def log(self, period: int) -> PeriodLog:
        """All interactions of a period, ordered by (occurred_at, event_id): by what they are, not by how they came."""
        user_ids: list[str] = []
        item_ids: list[str] = []
        labels: list[NDArray[np.int8]] = []
        timestamps_ms: list[NDArray[np.int64]] = []
        sampled: list[NDArray[np.bool_]] = []
        weights: list[NDArray[np.float32]] = []
        async with self._connection.stream(LOG, {"period": period, "size": ROWS_OF_A_PAGE}) as pages:
            async for page in pages:
                user_ids += page.user_ids
                item_ids += page.item_ids
                labels.append(np.array(page.labels, dtype=np.int8))
                timestamps_ms.append(np.array(page.timestamps_ms, dtype=np.int64))
                sampled.append(np.array(page.sampled, dtype=np.bool_))
                weights.append(np.array(page.weights, dtype=np.float32))
        columns = join(labels, np.int8), join(timestamps_ms, np.int64), join(sampled, np.bool_)
        return PeriodLog(user_ids, item_ids, *columns, join(weights, np.float32))

    async def contexts(self, period: int) -> AsyncIterator[Contexts]:
        """The contexts of those interactions of a period that have one, some at a time, in the order of `log`."""
        async with self._connection.stream(CONTEXTS, {"period": period}) as found:
            async for page in found.partitions(CONTEXTS_OF_A_PAGE):
                places = np.array([row.n for row in page], dtype=np.int64)
                yield Contexts(places, [orjson.loads(row.context) for row in page])

    async def drop(self, period: int, *, lock_seconds: float) -> None:
        """Let go of a period's log that is folded. The transaction should do nothing else: it holds up whoever comes.

        Raises:
            DBAPIError: others used the log for longer than `lock_seconds`; the transaction has to be given up.
        """
        # Whoever comes while this waits for a long reader has to wait too.
        await self._connection.execute(text(f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"))
        partitions = ", ".join(f"{table.name}_p{int(period)}" for table in tables.LOG)
        await self._connection.execute(text(f"DROP TABLE {partitions}"))
        periods = tables.periods.c
        dropped = update(tables.periods).where(periods.number == period, periods.log_folded_at.is_not(None))
        values = {"log_dropped_at": func.clock_timestamp()}
        (await self._connection.execute(dropped.values(values).returning(periods.number))).one()

    async def forget_dropped_ids(self) -> None:
        """Forget the ids of the periods whose log is dropped."""
        await self._connection.execute(FORGET_DROPPED_IDS)


async def insert_events(
    driver: Connection, events: EventBatch, look: Look, *, after: Coroutine[Any, Any, object] | None = None
) -> Stored:
    """`Interactions.insert` into the period that `look` names, which is asked after `after`.

    What the processor has to do is done while Postgres is at work.
    """
    before = () if after is None else (after,)
    *_, (ids, order) = await asyncio.gather(*before, _order(events))
    period, known = await look([ids[n] for n in order])
    accepted = [n for n in order if ids[n] not in known] if known else order
    happened = Happened.of([])
    if accepted:
        copying = _copy(driver, period, events.copy(accepted, period), events.columns)
        _, happened = await asyncio.gather(copying, _happened(events, accepted))
    if len(accepted) == len(ids):
        return Stored(period, Inserted(accepted, []), happened)
    contents = events.contents()
    stored = {**known, **{ids[n]: contents[n] for n in accepted}}
    conflicts = [n for n, id_ in enumerate(ids) if stored[id_] not in (None, contents[n])]
    return Stored(period, Inserted(accepted, conflicts), happened)


async def _order(events: EventBatch) -> tuple[list[str], list[int]]:
    """The ids, and the first event of each in their order."""
    ids = events.ids()
    return ids, firsts(ids)


async def _happened(events: EventBatch, which: Sequence[int]) -> Happened:
    return Happened.among(events, which)


async def known_ids(
    driver: Connection, ids: list[str], periods: Iterable[int]
) -> tuple[int, list[int], dict[str, int | None]]:
    """Which of these ids are taken, so far as `event_ids` and the logs of these periods know.

    Returns:
        the open period; the closed ones whose log has to be asked as well; the ids that are taken, with the content of
        their events as far as it is known.

    Raises:
        NotReady: there is no open period, for the schema was never migrated.
    """
    query = KNOWN + "".join(KNOWN_IN_PARTITION.format(int(period)) for period in sorted(periods))
    joined, separator = SEPARATOR.join(ids), SEPARATOR
    if joined.count(SEPARATOR) >= len(ids):
        separator = uuid4().hex
        joined = separator.join(ids)
    known: dict[str, int | None] = {}
    numbers: dict[int, bool] = {}
    for event_id, content, number, is_open in await driver.fetch(query, joined, separator):
        if number is None:
            known[event_id] = content
        else:
            numbers[number] = is_open
    return *open_and_unmerged(numbers.items()), known


async def _copy(driver: Connection, period: int, rows: bytes, columns: Sequence[str]) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield rows

    try:
        table = f"interactions_p{int(period)}"
        await driver.copy_to_table(table, source=source(), columns=columns, format="binary")
    except UniqueViolationError as error:
        raise Raced from error


@asynccontextmanager
async def driver_of(connection: AsyncConnection) -> AsyncIterator[Connection]:
    """The driver's connection, for what SQLAlchemy has no words for; errors are judged as those of a session."""
    driver: Connection = (await connection.get_raw_connection()).driver_connection
    if not driver.is_in_transaction():  # SQLAlchemy begins it with the first statement that it sees
        await connection.execute(text("SELECT 1"))
    with judged(driver):
        yield driver


@contextmanager
def judged(driver: Connection) -> Iterator[None]:
    """A block whose errors of the driver become `NotReady` where they say that Postgres cannot work now."""
    try:
        yield
    except (PostgresError, InterfaceError, InternalClientError, OSError) as error:
        if driver.is_closed() or not isinstance(error, PostgresError):
            raise NotReady("the connection to Postgres was lost") from error
        if (trouble := outage(error)) is not None:
            raise NotReady(trouble) from error
        raise


def firsts(ids: Sequence[str]) -> list[int]:
    """The first event of each id, in the order of the ids."""
    first_of_each = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))  # the last one that is put in
    return [first_of_each[id_] for id_ in sorted(first_of_each)]


def join(parts: Sequence[NDArray[ScalarT]], dtype: type[ScalarT]) -> NDArray[ScalarT]:
    """The columns of pages as one; there may be none."""
    return np.concatenate(parts) if parts else np.empty(0, dtype)
