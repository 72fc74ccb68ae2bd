"""Batches of interactions, as ingestion, imports and the user histories handle them.

`EventBatch` holds a batch as columns, and each event also as its row of a binary COPY (PostgreSQL manual, COPY, binary
format). The row is built where the batch is built, which for a large body is a thread, since the content hash of an
event is defined over the bytes of that row.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh64_digest, xxh64_intdigest

__all__ = [
    "COLUMNS",
    "EventBatch",
    "Happened",
    "Interaction",
    "Kind",
    "in_milliseconds",
    "label_content_hash",
    "moments_of",
]

COLUMNS = (
    *("event_id", "user_id", "item_id", "label", "occurred_at", "request_id"),
    *("context", "weight", "content", "period"),
)
"""Columns of a row of `EventBatch.copy`, in this order."""

SEPARATOR = "\0"
"""Stands between texts that are joined. No id contains it."""

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
JSONB_VERSION = b"\x01"
"""First byte of a `jsonb` value in binary form."""

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
POSTGRES_EPOCH_US = (datetime(2000, 1, 1, tzinfo=UTC) - UNIX_EPOCH) // MICROSECOND
"""Microseconds from 1970 to 2000, where the times of Postgres begin."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """One impression with its outcome."""

    event_id: str
    """The client's name for the event; a second event with the same name is a duplicate."""
    user_id: str
    item_id: str
    label: int
    """1 for a click, else 0."""
    occurred_at: datetime
    """Timezone-aware."""
    request_id: str | None = None
    context: str | None = None
    """Values of the context fields as a JSON object; None for none."""
    weight: float | None = None
    """Weight of the event in training, in single precision; None for 1."""


class Kind(IntEnum):
    """What an interaction means for the history of its user."""

    PASS = 0
    """Shown and not clicked."""
    CLICK = 1
    SHOWN = 2
    """An item of an impression whose outcome is open: a pass until a click on it comes."""


@dataclass(frozen=True, slots=True, eq=False)
class EventBatch:
    """n interactions as columns of length n. Build it by `of`, `of_columns` or `join`."""

    event_ids: list[str]
    user_ids: list[str]
    item_ids: list[str]
    labels: list[int]
    times_us: list[int]
    """Microseconds since 1970. The log stores whole milliseconds."""
    contents: list[int]
    """For each event the XXH64 of all of it but its id, as a signed 64-bit integer: it tells a repetition of an event
    from another event with the same id. It includes the microseconds."""
    rows: list[bytes]
    """For each event its row of a binary COPY without the last column, `period`."""

    @classmethod
    def of(cls, events: Sequence[Interaction]) -> "EventBatch":
        """A batch of these events."""
        return cls.of_columns(
            [event.event_id for event in events],
            [event.user_id for event in events],
            [event.item_id for event in events],
            [event.label for event in events],
            [(event.occurred_at - UNIX_EPOCH) // MICROSECOND for event in events],
            [event.request_id for event in events],
            [event.context for event in events],
            [event.weight for event in events],
        )

    @classmethod
    def of_columns(
        cls,
        event_ids: list[str],
        user_ids: list[str],
        item_ids: list[str],
        labels: list[int],
        times_us: list[int],
        request_ids: Iterable[str | None] = repeat(None),
        contexts: Iterable[str | None] = repeat(None),
        weights: Iterable[float | None] = repeat(None),
    ) -> "EventBatch":
        """A batch of the events in these columns, which hold what `Interaction` says, and times in microseconds since
        1970.
        """
        digests, rows = [], []
        events = zip(event_ids, user_ids, item_ids, labels, times_us, request_ids, contexts, weights, strict=False)
        for event_id, user_id, item_id, label, time_us, request_id, context, weight in events:
            event, user, item = event_id.encode(), user_id.encode(), item_id.encode()
            request = _NULL if request_id is None else _field(request_id.encode())
            extras = _NO_EXTRAS if context is None and weight is None else _extras(context, weight)
            time = _label_and_time(2, label, 8, time_us - POSTGRES_EPOCH_US)
            fields = [_int32(len(user)), user, _int32(len(item)), item, time, request]
            hashed = stored = b"".join(fields)
            if rest_us := time_us % 1000:
                fields[4] = _label_and_time(2, label, 8, time_us - rest_us - POSTGRES_EPOCH_US)
                stored = b"".join(fields)
            digest = xxh64_digest(hashed if extras is _NO_EXTRAS else hashed + extras)
            digests.append(digest)
            rows.append(b"".join((_ROW, _int32(len(event)), event, stored, extras, _EIGHT, digest)))
        contents = np.frombuffer(b"".join(digests), ">i8").tolist()
        return cls(event_ids, user_ids, item_ids, labels, times_us, contents, rows)

    @classmethod
    def join(cls, batches: "Sequence[EventBatch]") -> "EventBatch":
        """The events of some batches, one batch after the other."""
        if len(batches) == 1:
            return batches[0]
        return cls(*(list(chain.from_iterable(getattr(batch, name) for batch in batches)) for name in cls.__slots__))

    def __len__(self) -> int:
        return len(self.event_ids)

    @property
    def moments(self) -> NDArray[np.int64]:
        """Times of the events in microseconds since 1970, [n]."""
        return np.array(self.times_us, np.int64)

    def copy(self, which: Sequence[int], period: int) -> bytes:
        """The events at these places, in this order, as a binary COPY into a table with `COLUMNS`."""
        period_field = _field(_int32(period))
        rows = period_field.join([self.rows[n] for n in which])
        return b"".join((COPY_HEADER, rows, period_field if which else b"", COPY_TRAILER))


@dataclass(frozen=True, slots=True, eq=False)
class Happened:
    """Interactions that were committed, for the histories of their users."""

    _batch: EventBatch
    _which: Sequence[int]
    _kinds: Sequence[int]
    user_ids: Sequence[str]
    """The user of each event."""

    @classmethod
    def of(cls, events: Sequence[Interaction], *, shown: bool = False) -> "Happened":
        """These events; with `shown` they are the items of impressions whose outcome is open."""
        batch = EventBatch.of(events)
        kinds = [int(Kind.SHOWN)] * len(events) if shown else batch.labels
        return cls(batch, range(len(events)), kinds, batch.user_ids)

    @classmethod
    def among(cls, batch: EventBatch, which: Sequence[int]) -> "Happened":
        """The events at these places of a batch."""
        return cls(batch, which, batch.labels, [batch.user_ids[n] for n in which])

    def parts(self, size: int, latest_ms: float) -> Iterator[tuple[str, bytes]]:
        """The events in parts of at most `size`, as the script that adds them to histories takes them.

        Args:
            size: events of a part.
            latest_ms: milliseconds since 1970; events later than that are left out.

        Yields:
            the users of a part, each once, with NUL between them; and of each event its user, its time in milliseconds,
            its id, its item and its `Kind`, NUL after each of these.
        """
        kinds, latest_us = self._kinds, latest_ms * 1000
        batch = self._batch
        event_ids, user_ids, item_ids, times_us = batch.event_ids, batch.user_ids, batch.item_ids, batch.times_us
        for start in range(0, len(self._which), size):
            events = [
                f"{user_ids[n]}\0{times_us[n] // 1000}\0{event_ids[n]}\0{item_ids[n]}\0{kinds[n]}\0"
                for n in self._which[start : start + size]
                if times_us[n] <= latest_us
            ]
            yield SEPARATOR.join(dict.fromkeys(self.user_ids[start : start + size])), "".join(events).encode()


def in_milliseconds(time: datetime) -> datetime:
    """The time in whole milliseconds, as the log stores it. The order of a user's events is that of the millisecond,
    then of the event id.
    """
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def moments_of(times: Iterable[datetime]) -> NDArray[np.int64]:
    """Timezone-aware times in microseconds since 1970."""
    return np.array([(time - UNIX_EPOCH) // MICROSECOND for time in times], np.int64)


def label_content_hash(content: str) -> int:
    """The content hash of an impression or a click, as a signed 64-bit integer.

    It maps XXH64 to signed integers in another way than `EventBatch.contents` does: less 2^63 here, as two's complement
    there. Hashes are stored for as long as a log is kept, so neither can change.
    """
    return xxh64_intdigest(content.encode()) - 2**63


_int16, _int32, _float32 = (struct.Struct(layout).pack for layout in (">h", ">i", ">f"))
_label_and_time = struct.Struct(">ihiq").pack
"""Two fields of a row, `label` and `occurred_at`, each after its length."""


def _field(value: bytes) -> bytes:
    """A field of a row: its length, then its bytes."""
    return _int32(len(value)) + value


_NULL = _int32(-1)
_NO_EXTRAS = _NULL + _NULL
"""`context` and `weight` of an event that has neither. They are no part of its hash."""
_EIGHT = _int32(8)
"""Length of a field of eight bytes."""
_ROW = _int16(len(COLUMNS))
"""Begins a row."""


def _extras(context: str | None, weight: float | None) -> bytes:
    """The fields `context` and `weight` of an event."""
    document = _NULL if context is None else _field(JSONB_VERSION + context.encode())
    return document + (_NULL if weight is None else _field(_float32(weight)))
