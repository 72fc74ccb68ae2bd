"""Events on their way from JSON to Postgres: one pass of machine code, and no Python object for each of them.

A batch of events is kept as the rows of a binary COPY (PostgreSQL manual, COPY, binary format), since that is what most
of it becomes. What else is asked of an event (its id, its fingerprint, its label) lies beside its row.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh64_digest

from asmg.kernels.common import Indices, compiled, inlined
from asmg.log_format import EARLIEST_MS, LATEST_MS
from service.limits import MAX_ID_LENGTH, MAX_INTERACTIONS
from service.text_kernels import (
    BACKSLASH,
    CLOSING,
    COMMA,
    LINE_FEED,
    OPENING,
    QUOTE,
    RETURN,
    SPACE,
    TAB,
    WORD_BYTES,
    Bytes,
    byte_at,
    first_marked,
    put_word,
    swapped,
    word_at,
    xxh64,
)

__all__ = [
    "COLUMNS",
    "EventBatch",
    "Happened",
    "Interaction",
    "Kind",
    "in_milliseconds",
    "moments_of",
    "sizes_of",
    "warm_up",
]

COLUMNS = ("event_id", "user_id", "item_id", "label", "occurred_at", "request_id", "content", "period")
"""Of a row, in this order. Number of fields, then of each field its length (-1: null) and its bytes, big-endian."""
FURTHER_COLUMNS = ("context", "weight")
"""Of a row of a batch in which some event has one of them."""

SEPARATOR = "\0"
"""No id holds it."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

PERIOD_BYTES = 8
"""The last field of a row: its length and a number, which is filled in when the row is sent."""
ROW_BYTES = 2 + 4 * len(COLUMNS) + 2 + 8 + 8 + 4
"""Of a row without its texts."""
ROOM = 64
"""Zeros behind a text: more than what is looked at behind any place that has no zero."""
SHORTEST_EVENT = len('{"event_id":"e","user_id":"u","item_id":"i","label":0,"timestamp":0}')

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND, MILLISECOND = timedelta(microseconds=1), timedelta(milliseconds=1)
SHIFT = (POSTGRES_EPOCH - UNIX_EPOCH) // MICROSECOND
BEGIN, END = EARLIEST_MS * 1000, LATEST_MS * 1000
"""The first time that is taken, and the first one that is not any more."""


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
    """Values of the fields of the context as a JSON object; None for none."""
    weight: float | None = None
    """How much it counts when a model learns it, as single precision has it; None for 1."""


class Kind(IntEnum):
    """What an interaction is to the past of its user."""

    PASS = 0
    CLICK = 1
    SHOWN = 2
    """An item of an impression, a pass for as long as nothing else is known of it."""


@dataclass(frozen=True, slots=True, eq=False)
class EventBatch:
    """n interactions."""

    _rows: Bytes
    """And a word more, for they are read by the word."""
    _starts: Indices
    """int64 [n + 1]: where the rows begin, and where the last one ends."""
    _labels: NDArray[np.int8]
    _moments: Indices
    """Microseconds since 1970; the rows have the milliseconds only."""
    _contents: Indices
    _further: Sequence[bytes] | None = None
    """Of each event its `FURTHER_COLUMNS`, as a row has them; None where no event has any."""

    @classmethod
    def of(cls, events: Sequence[Interaction]) -> "EventBatch":
        """These events."""
        rows, starts, moments, contents, further = bytearray(), [0], [], [], []
        for event in events:
            rows += struct.pack(">h", len(COLUMNS)) + _text(event.event_id)
            first = len(rows)
            moments.append((event.occurred_at - UNIX_EPOCH) // MICROSECOND)
            rows += _text(event.user_id) + _text(event.item_id)
            rows += struct.pack(">ihi", 2, event.label, 8)
            time = len(rows)
            rows += struct.pack(">q", moments[-1] - SHIFT) + _text(event.request_id)
            further.append(_further(event))
            content = xxh64_digest(rows[first:] + (b"" if further[-1] == NO_FURTHER else further[-1]))
            rows[time : time + 8] = struct.pack(">q", moments[-1] - moments[-1] % 1000 - SHIFT)
            contents.append(int.from_bytes(content, "big", signed=True))
            rows += struct.pack(">i8sii", 8, content, 4, 0)
            starts.append(len(rows))
        rows += bytes(WORD_BYTES)
        labels = np.array([event.label for event in events], np.int8)
        known = further if any(columns != NO_FURTHER for columns in further) else None
        ends, times, hashes = (np.array(column, np.int64) for column in (starts, moments, contents))
        return cls(np.frombuffer(rows, np.uint8), ends, labels, times, hashes, known)

    @classmethod
    def join(cls, batches: "Sequence[EventBatch]") -> "EventBatch":
        """The events of some batches, one behind the other."""
        if len(batches) == 1:
            return batches[0]
        rows = [batch._rows[: batch._starts[-1]] for batch in batches]
        starts = np.concatenate([[0], *(np.diff(batch._starts) for batch in batches)]).cumsum()
        labels, moments, contents = (
            np.concatenate([getattr(batch, name) for batch in batches]) for name in ("_labels", "_moments", "_contents")
        )
        further: list[bytes] | None = None
        if any(batch._further is not None for batch in batches):
            further = [columns for batch in batches for columns in batch._further or [NO_FURTHER] * len(batch)]
        return cls(np.concatenate([*rows, np.zeros(WORD_BYTES, np.uint8)]), starts, labels, moments, contents, further)

    @classmethod
    def parse(cls, body: bytes) -> "EventBatch | None":
        """The events in the body of `POST /interactions`, where it is plainly right.

        None stands for whatever needs a second look: a body that is wrong, but also one with an escape, with a time
        given finer than a microsecond or whatever else is rare.
        """
        if not (ascii_ := body.isascii()):
            try:
                body.decode()
            except UnicodeDecodeError:
                return None
        text, rows, starts, labels, moments, contents = (np.empty(size, kind) for size, kind in sizes_of(body))
        text[: len(body)], text[len(body) :], starts[0] = np.frombuffer(body, np.uint8), 0, 0
        n = _parse(text, len(body), ascii_, MAX_ID_LENGTH, rows, starts, labels, moments, contents)
        if n < 1:
            return None
        return cls(rows[: starts[n] + WORD_BYTES], starts[: n + 1], labels[:n], moments[:n], contents[:n])

    def __len__(self) -> int:
        return len(self._labels)

    def ids(self) -> list[str]:
        """The ids of the events."""
        return self._texts(np.arange(len(self)), 0)

    @property
    def moments(self) -> Indices:
        """Their times in microseconds since 1970, [n]."""
        return self._moments

    def contents(self) -> list[int]:
        """For each event a number (XXH64, as Postgres has it, signed) that says what it is, but for its id."""
        return list(self._contents.tolist())

    def user_ids(self, which: Sequence[int]) -> list[str]:
        """The users of some of the events."""
        return self._texts(np.array(which, np.int64), 1)

    def told(self, which: Indices, kinds: NDArray[np.int8] | None = None) -> bytes:
        """Some of the events as the pasts of users are told of them: of each its user, time in milliseconds, event,
        item and kind, NUL behind each.

        Args:
            which: of them.
            kinds: int8 [n], a `Kind` for each event; their labels where it is None.
        """
        size = int((self._starts[which + 1] - self._starts[which]).sum()) + WORD_BYTES
        text = np.empty(size, np.uint8)
        end = _tell(self._rows, self._starts, which, self._moments, self._labels if kinds is None else kinds, text)
        return text[:end].tobytes()

    def _texts(self, which: Indices, column: int) -> list[str]:
        """One of the first columns, which are texts."""
        text = np.empty(len(self._rows), np.uint8)
        size = _join(self._rows, self._starts, which, column, text)
        return text[:size].tobytes().decode().split(SEPARATOR)[:-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of `copy`."""
        return COLUMNS if self._further is None else (*COLUMNS, *FURTHER_COLUMNS)

    def copy(self, which: Sequence[int], period: int) -> bytes:
        """The binary COPY of some of the events, in this order, into a table with `columns`."""
        if self._further is not None:
            return self._long_copy(which, period, self._further)
        chosen = np.array(which, np.int64)
        size = int((self._starts[chosen + 1] - self._starts[chosen]).sum())
        file = np.empty(len(HEADER) + size + WORD_BYTES, np.uint8)
        file[: len(HEADER)] = np.frombuffer(HEADER, np.uint8)
        end = _gather(self._rows, self._starts, chosen, period, file, len(HEADER))
        file[end : end + len(TRAILER)] = np.frombuffer(TRAILER, np.uint8)
        return file[: end + len(TRAILER)].tobytes()

    def _long_copy(self, which: Sequence[int], period: int, further: Sequence[bytes]) -> bytes:
        """The same with the `FURTHER_COLUMNS`."""
        head, last = struct.pack(">h", len(self.columns)), struct.pack(">ii", 4, period)
        file, rows = bytearray(HEADER), self._rows.tobytes()
        for n in which:
            file += head + rows[self._starts[n] + len(head) : self._starts[n + 1] - len(last)] + last + further[n]
        return bytes(file + TRAILER)


@dataclass(frozen=True, slots=True, eq=False)
class Happened:
    """What the pasts of users are told of."""

    _batch: EventBatch
    _which: Sequence[int]
    _kinds: NDArray[np.int8] | None
    user_ids: Sequence[str]
    """Of each event."""

    @classmethod
    def of(cls, events: Sequence[Interaction], *, shown: bool = False) -> "Happened":
        """These events, in whose place their impression is where they are `shown`."""
        kinds = np.full(len(events), Kind.SHOWN, np.int8) if shown else None
        return cls(EventBatch.of(events), range(len(events)), kinds, [event.user_id for event in events])

    @classmethod
    def among(cls, batch: EventBatch, which: Sequence[int]) -> "Happened":
        """Some of the events of a batch."""
        return cls(batch, which, None, batch.user_ids(which))

    def parts(self, size: int, latest_ms: float) -> Iterator[tuple[str, bytes]]:
        """So many events at a time, but for those that are later: their users, each once, with NUL between; and
        `EventBatch.told`.
        """
        for start in range(0, len(self._which), size):
            end = start + size
            which = np.array(self._which[start:end], np.int64)
            which = which[self._batch.moments[which] <= latest_ms * 1000]
            yield SEPARATOR.join(dict.fromkeys(self.user_ids[start:end])), self._batch.told(which, self._kinds)


def in_milliseconds(time: datetime) -> datetime:
    """The time as the log has it: what users did is in the order of the millisecond, and then of the event id."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def moments_of(times: Iterable[datetime]) -> Indices:
    """The same of times that are timezone-aware."""
    return np.array([(time - UNIX_EPOCH) // MICROSECOND for time in times], np.int64)


def sizes_of(body: bytes) -> list[tuple[int, type[np.generic]]]:
    """What reading it needs: sizes and types of the text, rows, starts, labels, moments and contents."""
    most = min(MAX_INTERACTIONS, len(body) // SHORTEST_EVENT)
    texts = [(len(body) + ROOM, np.uint8), (most * ROW_BYTES + len(body) + WORD_BYTES, np.uint8)]
    return [*texts, (most + 1, np.int64), (most, np.int8), (most, np.int64), (most, np.int64)]


def warm_up() -> None:
    """Compile what a batch needs, or load it from the disk: seconds, which no client should wait for."""
    moment = POSTGRES_EPOCH.isoformat()
    event = f'{{"event_id":"e","user_id":"u","item_id":"i","label":0,"timestamp":"{moment}","request_id":"r"}}'
    batch = EventBatch.parse(f'{{"interactions":[{event}]}}'.encode())
    assert batch is not None, "it is plainly right"
    batch.user_ids([0])
    batch.told(np.zeros(1, np.int64))
    batch.copy([0], 1)


NO_FURTHER = struct.pack(">ii", -1, -1)
JSONB_VERSION = b"\x01"
"""Begins a JSON document in binary form."""


def _further(event: Interaction) -> bytes:
    """The `FURTHER_COLUMNS` of an event, as a row has them."""
    document = None if event.context is None else JSONB_VERSION + event.context.encode()
    weight = None if event.weight is None else struct.pack(">f", event.weight)
    fields = (
        struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
        for value in (document, weight)
    )
    return b"".join(fields)


def _text(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">i", -1)
    encoded = text.encode()
    return struct.pack(">i", len(encoded)) + encoded


def _word(text: str) -> np.uint64:
    """The first letters of a name, as `word_at` has them."""
    return U(int.from_bytes(text.encode()[:WORD_BYTES], "little"))


U = np.uint64
COLON, LEFT, RIGHT, ZERO, NINE, POINT, MINUS, PLUS = (ord(c) for c in ":{}09.-+")
SMALL_T, SMALL_Z, LARGE_T, LARGE_Z = (ord(c) for c in "tzTZ")
DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], np.int64)
"""Days of a year before each month, and of all of it."""
MOST_DIGITS = 15

EVENT_ID, USER_ID, ITEM_ID, LABEL, TIMESTAMP, REQUEST_ID = 1, 2, 4, 8, 16, 32
"""Members of an event; they add up to those that have come."""
NEEDED = EVENT_ID | USER_ID | ITEM_ID | LABEL | TIMESTAMP

EVENT_ID_WORD, USER_ID_WORD, ITEM_ID_WORD, LABEL_WORD, TIMESTAMP_WORD, REQUEST_ID_WORD, NULL_WORD = (
    _word(name) for name in ("event_id", "user_id", "item_id", "label", "timestamp", "request_id", "null")
)
INTERACTIONS_WORD, INTERACTIONS_REST = _word("interactions"), _word("ions")
TIMESTAMP_REST, REQUEST_ID_REST = ord("p"), _word("id")
TWO_BYTES, FOUR_BYTES, FIVE_BYTES, SEVEN_BYTES = U(2**16 - 1), U(2**32 - 1), U(2**40 - 1), U(2**56 - 1)

EACH = U(0x0101010101010101)
"""Times a byte: a word of that byte."""
HIGH_BITS = EACH * U(0x80)
QUOTES, BACKSLASHES, SPACES = EACH * U(QUOTE), EACH * U(BACKSLASH), EACH * U(SPACE)


@compiled
def _parse(
    text: Bytes,
    size: int,
    ascii_: bool,
    longest: int,
    rows: Bytes,
    starts: Indices,
    labels: NDArray[np.int8],
    moments: Indices,
    contents: Indices,
) -> int:
    """The number of events that were written to `rows`; -1 where the body needs a second look.

    Zeros end the text, and no rule has a place for one: nothing has to ask whether it is at the end.
    """
    at = _behind(text, 0, LEFT)
    if at < 0:
        return -1
    start = _behind_blanks(text, at) + 1
    at = _behind_string(text, at)
    if at - 1 - start != len("interactions"):
        return -1
    if word_at(text, start) != INTERACTIONS_WORD or word_at(text, start + WORD_BYTES) & FOUR_BYTES != INTERACTIONS_REST:
        return -1
    at = _behind(text, at, COLON)
    if at < 0:
        return -1
    at = _behind(text, at, OPENING)
    n = 0
    while at > 0:
        if n == len(labels):
            return -1
        at = _parse_event(text, at, ascii_, longest, rows, n, starts, labels, moments, contents)
        if at < 0:
            return -1
        n += 1
        at = _behind_blanks(text, at)
        if byte_at(text, at) == CLOSING:
            at = _behind(text, at + 1, RIGHT)
            return n if at > 0 and _behind_blanks(text, at) == size else -1
        if byte_at(text, at) != COMMA:
            return -1
        at += 1
    return -1


@compiled
def _parse_event(
    text: Bytes,
    at: int,
    ascii_: bool,
    longest: int,
    rows: Bytes,
    n: int,
    starts: Indices,
    labels: NDArray[np.int8],
    moments: Indices,
    contents: Indices,
) -> int:
    """Where the event ends that begins at `at`; -1 where it needs a second look."""
    # Of each text its first byte and the one behind it.
    event = user = item = request = event_end = user_end = item_end = request_end = 0
    label = moment = come = 0
    at = _behind(text, at, LEFT)
    while at > 0:
        start = _behind_blanks(text, at) + 1
        at = _behind_string(text, at)
        if at < 0:
            return -1
        member = _member(text, start, at - 1)
        at = _behind(text, at, COLON)
        if at < 0 or come & member or not member:
            return -1
        come |= member
        at = _behind_blanks(text, at)
        value = at + 1
        if member == LABEL:
            label = byte_at(text, at) - ZERO
            if label != 0 and label != 1:
                return -1
            at += 1
        elif member == TIMESTAMP:
            if byte_at(text, at) == QUOTE:
                at = _behind_string(text, at)
                if at < 0:
                    return -1
                moment = _moment(text, value, at - 1)
            else:
                at = _behind_digits(text, at)
                if at < value or at - value >= MOST_DIGITS or (byte_at(text, value - 1) == ZERO and at > value):
                    return -1
                moment = _number(text, value - 1, at) * 1000
            if moment < BEGIN or moment >= END:
                return -1
        elif member == REQUEST_ID and word_at(text, at) & FOUR_BYTES == NULL_WORD:
            at += len("null")
        else:
            at = _behind_string(text, at)
            end = at - 1
            if at < 0 or end == value or (end - value if ascii_ else _characters(text, value, end)) > longest:
                return -1
            if member == EVENT_ID:
                event, event_end = value, end
            elif member == USER_ID:
                user, user_end = value, end
            elif member == ITEM_ID:
                item, item_end = value, end
            else:
                request, request_end = value, end
        at = _behind_blanks(text, at)
        if byte_at(text, at) == COMMA:
            at += 1
            continue
        if byte_at(text, at) != RIGHT or come & NEEDED != NEEDED:
            return -1
        to = _put_number(rows, starts[n], len(COLUMNS), 2)
        first = _put_text(rows, to, text, event, event_end)
        to = _put_text(rows, first, text, user, user_end)
        to = _put_text(rows, to, text, item, item_end)
        to = _put_number(rows, _put_number(rows, to, 2, 4), label, 2)
        time = _put_number(rows, to, 8, 4)
        to = _put_number(rows, time, moment - SHIFT, 8)
        to = _put_text(rows, to, text, request, request_end) if request > 0 else _put_number(rows, to, -1, 4)
        labels[n], moments[n] = label, moment
        contents[n] = np.int64(xxh64(rows, first, to))
        _put_number(rows, time, moment - moment % 1000 - SHIFT, 8)
        to = _put_number(rows, _put_number(rows, to, 8, 4), contents[n], 8)
        starts[n + 1] = to + PERIOD_BYTES
        return at + 1
    return -1


@inlined
def _member(text: Bytes, start: int, end: int) -> int:
    """Which member has this name; 0 for none."""
    word, length = word_at(text, start), end - start
    if length == 7:
        if word & SEVEN_BYTES == USER_ID_WORD:
            return USER_ID
        return ITEM_ID if word & SEVEN_BYTES == ITEM_ID_WORD else 0
    if length == 8:
        return EVENT_ID if word == EVENT_ID_WORD else 0
    if length == 5:
        return LABEL if word & FIVE_BYTES == LABEL_WORD else 0
    if length == 9:
        return TIMESTAMP if word == TIMESTAMP_WORD and byte_at(text, start + WORD_BYTES) == TIMESTAMP_REST else 0
    if length == 10 and word == REQUEST_ID_WORD:
        return REQUEST_ID if word_at(text, start + WORD_BYTES) & TWO_BYTES == REQUEST_ID_REST else 0
    return 0


@inlined
def _behind_blanks(text: Bytes, at: int) -> int:
    """The first place from `at` on that is no white space."""
    byte = byte_at(text, at)
    while byte <= SPACE and byte in (SPACE, TAB, LINE_FEED, RETURN):
        at += 1
        byte = byte_at(text, at)
    return at


@inlined
def _behind(text: Bytes, at: int, letter: int) -> int:
    """Behind the letter that has to come next, or -1."""
    at = _behind_blanks(text, at)
    return at + 1 if byte_at(text, at) == letter else -1


@compiled
def _behind_string(text: Bytes, at: int) -> int:
    """Behind the string that has to come next and has no escape, or -1."""
    at = _behind(text, at, QUOTE)
    if at < 0:
        return -1
    while True:
        word = word_at(text, at)
        # The lowest byte that is marked is one of these; higher ones may be marked by its borrowing from them.
        marks = _zeros(word ^ QUOTES) | _zeros(word ^ BACKSLASHES) | ((word - SPACES) & ~word)
        marks &= HIGH_BITS
        if marks:
            at += first_marked(marks)
            return at + 1 if byte_at(text, at) == QUOTE else -1
        at += WORD_BYTES


@inlined
def _zeros(word: np.uint64) -> np.uint64:
    """A word whose lowest high bit that is set is that of the lowest zero byte."""
    return (word - EACH) & ~word


@compiled
def _characters(text: Bytes, start: int, end: int) -> int:
    """Characters of UTF-8: bytes that do not go on with one."""
    n = 0
    for at in range(start, end):
        n += (text[at] & 0xC0) != 0x80
    return n


@inlined
def _behind_digits(text: Bytes, at: int) -> int:
    while byte_at(text, at) >= ZERO and byte_at(text, at) <= NINE:
        at += 1
    return at


@inlined
def _number(text: Bytes, start: int, end: int) -> int:
    value = 0
    for at in range(start, end):
        value = 10 * value + (byte_at(text, at) - ZERO)
    return value


@inlined
def _two(text: Bytes, at: int) -> int:
    """A number of two digits, or -1."""
    tens, ones = byte_at(text, at) - ZERO, byte_at(text, at + 1) - ZERO
    return 10 * tens + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -1


@compiled
def _moment(text: Bytes, start: int, end: int) -> int:
    """Microseconds since 1970 of an RFC 3339 time as clients write it; -1 where it needs a second look."""
    fraction = start + 20
    if end < fraction:
        return -1
    century, year, month, day = _two(text, start), _two(text, start + 2), _two(text, start + 5), _two(text, start + 8)
    hour, minute, second = _two(text, start + 11), _two(text, start + 14), _two(text, start + 17)
    if century < 0 or year < 0 or hour < 0 or minute < 0 or second < 0:
        return -1
    between = byte_at(text, start + 10)
    if between not in (LARGE_T, SMALL_T, SPACE):
        return -1
    if not (byte_at(text, start + 4) == MINUS and byte_at(text, start + 7) == MINUS):
        return -1
    if not (byte_at(text, start + 13) == COLON and byte_at(text, start + 16) == COLON):
        return -1
    year += 100 * century
    if year < 1970 or not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 59:
        return -1
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    in_month = DAYS_BEFORE[month] - DAYS_BEFORE[month - 1] + (month == 2 and leap)
    if not 1 <= day <= in_month:
        return -1
    past = year - 1
    days = 365 * (year - 1970) + (past // 4 - past // 100 + past // 400) - 477
    days += int(DAYS_BEFORE[month - 1]) + (month > 2 and leap) + day - 1
    moment = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000
    at = start + 19
    if byte_at(text, at) == POINT:
        at = _behind_digits(text, fraction)
        digits = at - fraction
        if not 1 <= digits <= 6:
            return -1
        moment += _number(text, fraction, at) * 10 ** (6 - digits)
    zone = byte_at(text, at)
    if at == end - 1 and zone in (LARGE_Z, SMALL_Z):
        return moment
    if at != end - 6 or zone not in (PLUS, MINUS) or byte_at(text, at + 3) != COLON:
        return -1
    hours, minutes = _two(text, at + 1), _two(text, at + 4)
    if not 0 <= hours <= 23 or not 0 <= minutes <= 59:
        return -1
    offset = (hours * 60 + minutes) * 60_000_000
    return moment - offset if zone == PLUS else moment + offset


@inlined
def _put_number(rows: Bytes, at: int, value: int, size: int) -> int:
    """Write it, big-endian; the place behind it. What comes there is overwritten."""
    put_word(rows, at, swapped(U(value) << U(8 * (WORD_BYTES - size))))
    return at + size


@inlined
def _put_text(rows: Bytes, at: int, text: Bytes, start: int, end: int) -> int:
    return _put(rows, _put_number(rows, at, end - start, 4), text, start, end)


@inlined
def _put(rows: Bytes, at: int, text: Bytes, start: int, end: int) -> int:
    for k in range(0, end - start, WORD_BYTES):
        put_word(rows, at + k, word_at(text, start + k))
    return at + end - start


@inlined
def _length(rows: Bytes, at: int) -> int:
    """Of the text whose length stands here."""
    return int(np.int64(swapped(word_at(rows, at)) >> U(32)))


@inlined
def _put_field(text: Bytes, to: int, rows: Bytes, at: int) -> int:
    """Write the text of the column that begins here, and a `SEPARATOR`; the place behind it."""
    to = _put(text, to, rows, at + 4, at + 4 + _length(rows, at))
    text[to] = 0
    return to + 1


@compiled
def _join(rows: Bytes, starts: Indices, which: Indices, column: int, text: Bytes) -> int:
    """Write one of the first columns of these rows, a `SEPARATOR` behind each; how many bytes that makes."""
    to = 0
    for n in which:
        at = starts[n] + 2
        for _ in range(column):
            at += 4 + _length(rows, at)
        to = _put_field(text, to, rows, at)
    return to


@compiled
def _tell(rows: Bytes, starts: Indices, which: Indices, moments: Indices, kinds: NDArray[np.int8], text: Bytes) -> int:
    """Write what `EventBatch.told` returns; how many bytes that makes. A row without its texts has more room than that
    needs.
    """
    to = 0
    for n in which:
        event = starts[n] + 2
        user = event + 4 + _length(rows, event)
        item = user + 4 + _length(rows, user)
        to = _put_field(text, to, rows, user)
        ms = moments[n] // 1000
        digits = 1
        while 10**digits <= ms:
            digits += 1
        for k in range(digits):
            text[to + digits - 1 - k] = ZERO + ms % 10
            ms //= 10
        text[to + digits] = 0
        to = _put_field(text, to + digits + 1, rows, event)
        to = _put_field(text, to, rows, item)
        text[to], text[to + 1] = ZERO + kinds[n], 0
        to += 2
    return to


@compiled
def _gather(rows: Bytes, starts: Indices, which: Indices, period: int, out: Bytes, to: int) -> int:
    """Write the chosen rows, of this period, to `out` from `to` on, which has room for a word more; where they end."""
    for n in which:
        to = _put(out, to, rows, starts[n], starts[n + 1])
        _put_number(out, to - PERIOD_BYTES, (4 << 32) | period, PERIOD_BYTES)
    return to
