"""Inserts event batches into the log of a period by COPY, and finds which of their ids are known.

Called by `service.storage.postgres.event_writer` for ingestion, and by `Interactions.insert` for imports and tests.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from asyncpg import Connection, UniqueViolationError

from service.storage.postgres.events import COLUMNS, EventBatch
from service.storage.postgres.repositories.many_ids import joined
from service.storage.postgres.repositories.period_logs import UNMERGED, open_and_unmerged

__all__ = ["ADD_TO_COUNT", "Inserted", "KnownIds", "Raced", "first_of_each", "insert_events", "known_ids"]

# asyncpg needs a third of a millisecond to encode an array of a thousand texts; Postgres splits one text much faster.
KNOWN = f"""
    SELECT NULL AS event_id, NULL::bigint AS content, number, is_open FROM ({UNMERGED}) AS period
    UNION ALL SELECT event_id, content, NULL, NULL FROM event_ids
    WHERE kind = 0 AND event_id = ANY(string_to_array($1, $2))
"""
KNOWN_IN_PARTITION = """
    UNION ALL SELECT event_id, content, NULL, NULL FROM interactions_p{} WHERE event_id = ANY(string_to_array($1, $2))
"""

ADD_TO_COUNT = """
    INSERT INTO log_counters (period, slot, events) VALUES ({period}, {slot}, {events})
    ON CONFLICT (period, slot) DO UPDATE SET events = log_counters.events + excluded.events
"""
"""Adds to the number of interactions of the open period, in the transaction that inserts them."""


class Inserted(NamedTuple):
    """What became of the events of a batch, by their places in it."""

    accepted: list[int]
    """The events that were stored: the first of each new id, in the order of the ids."""
    conflicts: list[int]
    """The events that differ from the one stored under their id."""


class KnownIds(NamedTuple):
    """What the logs know of some ids."""

    open_period: int
    unmerged: list[int]
    """Closed periods whose ids are not in `event_ids` yet, so that their logs have to be looked into as well."""
    contents: dict[str, int | None]
    """For each id that is taken the content hash of its event; None where that is not stored."""


class Raced(Exception):
    """Another transaction has just stored an event with one of the same ids. Run the transaction again: it will see
    that event.
    """


async def insert_events(
    driver: Connection, events: EventBatch, look_up: Callable[[list[str]], Awaitable[tuple[int, dict[str, int | None]]]]
) -> tuple[int, Inserted]:
    """Insert the events that are new, by the rules of `Interactions.insert`.

    Args:
        driver: in a transaction.
        events: of any number.
        look_up: for ids, which are distinct and sorted: the period to insert into, and the content hashes of those that
            are taken.

    Returns:
        the period, and what became of the events.

    Raises:
        Raced: run the transaction again.
    """
    ids, contents = events.event_ids, events.contents
    order = first_of_each(ids)
    period, known = await look_up([ids[n] for n in order])
    accepted = [n for n in order if ids[n] not in known] if known else order
    if accepted:
        await _copy(driver, f"interactions_p{int(period)}", events.copy(accepted, period))
    if len(accepted) == len(ids):
        return period, Inserted(accepted, [])
    stored = {**known, **{ids[n]: contents[n] for n in accepted}}
    conflicts = [n for n, id_ in enumerate(ids) if stored[id_] not in (None, contents[n])]
    return period, Inserted(accepted, conflicts)


async def known_ids(driver: Connection, ids: list[str], periods: Iterable[int]) -> KnownIds:
    """Which of these ids are taken, as far as `event_ids` and the logs of these periods know.

    Raises:
        NotReady: there is no open period, for the schema was never migrated.
        UndefinedTableError: the log of one of these periods is dropped.
    """
    query = KNOWN + "".join(KNOWN_IN_PARTITION.format(int(period)) for period in sorted(periods))
    names, separator = joined(ids)
    contents: dict[str, int | None] = {}
    numbers: dict[int, bool] = {}
    for event_id, content, number, is_open in await driver.fetch(query, names, separator):
        if number is None:
            contents[event_id] = content
        else:
            numbers[number] = is_open
    return KnownIds(*open_and_unmerged(numbers.items()), contents)


def first_of_each(ids: Sequence[str]) -> list[int]:
    """The place of the first event of each id, in the order of the ids."""
    first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))  # the last that is put in is the first
    return [first[id_] for id_ in sorted(first)]


async def _copy(driver: Connection, table: str, rows: bytes) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield rows

    try:
        await driver.copy_to_table(table, source=source(), columns=COLUMNS, format="binary")
    except UniqueViolationError as error:
        raise Raced from error
