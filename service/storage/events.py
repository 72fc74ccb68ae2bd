"""Events on their way from JSON to Postgres: one pass of machine code, and no Python object for each of them.

A batch of events is kept as the rows of a binary COPY (PostgreSQL manual, COPY, binary format), since that is what most
of it becomes. What else is asked of an event (its id, its fingerprint, whether it is a click) lies beside its row.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh64_digest

from asmg.kernels.common import Indices, compiled
from service.limits import MAX_ID_LENGTH, MAX_INTERACTIONS
from service.text_kernels import BACKSLASH, CLOSING, COMMA, OPENING, QUOTE, SPACE, behind_blanks, xxh64

__all__ = ["COLUMNS", "EventBatch", "Interaction", "warm_up"]

Bytes = NDArray[np.uint8]

COLUMNS = ("event_id", "user_id", "item_id", "label", "occurred_at", "request_id", "content", "period")
"""Of a row, in this order. Number of fields, then of each field its length (-1: null) and its bytes, big-endian."""

SEPARATOR = "\0"
"""No id holds it."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

PERIOD_BYTES = 8
"""The last field of a row: its length and a number, which is filled in when the row is sent."""
ROW_BYTES = 2 + 4 * len(COLUMNS) + 2 + 8 + 8 + 4
"""Of a row without its texts."""
SHORTEST_EVENT = len('{"event_id":"e","user_id":"u","item_id":"i","label":0,"timestamp":0}')

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SHIFT = (POSTGRES_EPOCH - UNIX_EPOCH) // MICROSECOND
END = (datetime(2200, 1, 1, tzinfo=UTC) - UNIX_EPOCH) // MICROSECOND
"""The first time that is refused; `service.schemas` has the rule."""


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


@dataclass(frozen=True, slots=True, eq=False)
class EventBatch:
    """n interactions."""

    _rows: bytes | Bytes
    _starts: Indices
    """int64 [n + 1]: where the rows begin, and where the last one ends."""
    _labels: NDArray[np.int8]
    _contents: Indices

    @classmethod
    def of(cls, events: Sequence[Interaction]) -> "EventBatch":
        """These events."""
        rows, starts, contents = bytearray(), [0], []
        for event in events:
            rows += struct.pack(">h", len(COLUMNS)) + _text(event.event_id)
            first = len(rows)
            rows += _text(event.user_id) + _text(event.item_id)
            rows += struct.pack(">ihiq", 2, event.label, 8, (event.occurred_at - POSTGRES_EPOCH) // MICROSECOND)
            rows += _text(event.request_id)
            content = xxh64_digest(rows[first:])
            contents.append(int.from_bytes(content, "big", signed=True))
            rows += struct.pack(">i8sii", 8, content, 4, 0)
            starts.append(len(rows))
        labels = np.array([event.label for event in events], np.int8)
        return cls(bytes(rows), np.array(starts, np.int64), labels, np.array(contents, np.int64))

    @classmethod
    def parse(cls, body: bytes) -> "EventBatch | None":
        """The events in the body of `POST /interactions`, where it is plainly right.

        None stands for whatever needs a second look: a body that is wrong, but also one with an escape, with a time
        given finer than a microsecond or whatever else is rare.
        """
        if not body.isascii():
            try:
                body.decode()
            except UnicodeDecodeError:
                return None
        most = min(MAX_INTERACTIONS, len(body) // SHORTEST_EVENT)
        rows = np.empty(most * ROW_BYTES + len(body), np.uint8)
        starts, labels, contents = np.zeros(most + 1, np.int64), np.empty(most, np.int8), np.empty(most, np.int64)
        n = _parse(body, MAX_ID_LENGTH, rows, starts, labels, contents)
        return None if n < 1 else cls(rows[: starts[n]], starts[: n + 1], labels[:n], contents[:n])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, n: int) -> Interaction:
        row = bytes(self._rows[self._starts[n] : self._starts[n + 1]])
        at, fields = 2, []
        for _ in COLUMNS:
            length = int.from_bytes(row[at : at + 4], "big", signed=True)
            at += 4
            fields.append(None if length < 0 else row[at : at + length])
            at += max(length, 0)
        event_id, user_id, item_id, label, occurred_at, request_id, *_ = fields
        return Interaction(
            _string(event_id),
            _string(user_id),
            _string(item_id),
            int.from_bytes(label or b"", "big"),
            POSTGRES_EPOCH + int.from_bytes(occurred_at or b"", "big", signed=True) * MICROSECOND,
            None if request_id is None else _string(request_id),
        )

    def ids(self) -> list[str]:
        """The ids of the events."""
        text = np.empty(len(self._rows), np.uint8)
        size = _ids(np.frombuffer(self._rows, np.uint8), self._starts, text)
        return text[:size].tobytes().decode().split(SEPARATOR)[:-1]

    def contents(self) -> list[int]:
        """For each event a number (XXH64, as Postgres has it, signed) that says what it is, but for its id."""
        return list(self._contents.tolist())

    def clicks(self) -> list[int]:
        """Which events are clicks."""
        return list(np.flatnonzero(self._labels).tolist())

    def copy(self, which: Sequence[int], period: int) -> bytes:
        """The binary COPY of some of the events, in this order, into a table with `COLUMNS`."""
        chosen = np.array(which, np.int64)
        size = int((self._starts[chosen + 1] - self._starts[chosen]).sum())
        file = np.empty(len(HEADER) + size + len(TRAILER), np.uint8)
        file[: len(HEADER)] = np.frombuffer(HEADER, np.uint8)
        _gather(np.frombuffer(self._rows, np.uint8), self._starts, chosen, period, file[len(HEADER) :])
        file[-len(TRAILER) :] = np.frombuffer(TRAILER, np.uint8)
        return file.tobytes()


def warm_up() -> None:
    """Compile what a batch needs, or load it from the disk: seconds, which no client should wait for."""
    moment = UNIX_EPOCH.isoformat()
    event = f'{{"event_id":"e","user_id":"u","item_id":"i","label":0,"timestamp":"{moment}","request_id":"r"}}'
    batch = EventBatch.parse(f'{{"interactions":[{event}]}}'.encode())
    assert batch is not None, "it is plainly right"
    batch.ids()
    batch.copy([0], 1)


def _text(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">i", -1)
    encoded = text.encode()
    return struct.pack(">i", len(encoded)) + encoded


def _string(field: bytes | None) -> str:
    return (field or b"").decode()


def _word(text: str) -> Bytes:
    return np.frombuffer(text.encode(), np.uint8)


BEGINNING, EVENT_ID, USER_ID, ITEM_ID = (_word(word) for word in ("interactions", "event_id", "user_id", "item_id"))
LABEL, TIMESTAMP, REQUEST_ID, NULL = (_word(word) for word in ("label", "timestamp", "request_id", "null"))
COLON, LEFT, RIGHT, ZERO, NINE, POINT, MINUS, PLUS = (ord(c) for c in ":{}09.-+")
SMALL_T, SMALL_Z, LARGE_T, LARGE_Z = (ord(c) for c in "tzTZ")
DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], np.int64)
"""Days of a year before each month, and of all of it."""
MOST_DIGITS = 15


@compiled
def _parse(text: bytes, longest: int, rows: Bytes, starts: Indices, labels: NDArray[np.int8], contents: Indices) -> int:
    """The number of events that were written to `rows`; -1 where the body needs a second look."""
    at = _behind(text, 0, LEFT)
    if at < 0:
        return -1
    start = behind_blanks(text, at) + 1
    at = _behind_string(text, at)
    if at < 0 or at - 1 - start != len(BEGINNING) or not _is(text, at - 1, BEGINNING):
        return -1
    at = _behind(text, at, COLON)
    if at < 0:
        return -1
    at = _behind(text, at, OPENING)
    n = 0
    while at > 0:
        if n == len(labels):
            return -1
        at = _parse_event(text, at, longest, rows, n, starts, labels, contents)
        if at < 0:
            return -1
        n += 1
        at = behind_blanks(text, at)
        if at == len(text):
            return -1
        if text[at] == CLOSING:
            at = _behind(text, at + 1, RIGHT)
            return n if at > 0 and behind_blanks(text, at) == len(text) else -1
        if text[at] != COMMA:
            return -1
        at += 1
    return -1


@compiled
def _parse_event(
    text: bytes,
    at: int,
    longest: int,
    rows: Bytes,
    n: int,
    starts: Indices,
    labels: NDArray[np.int8],
    contents: Indices,
) -> int:
    """Where the event ends that begins at `at`; -1 where it needs a second look."""
    # Of each text its first byte and the one behind it; 0 stands for a member that has not come.
    event = user = item = request = event_end = user_end = item_end = request_end = 0
    label, moment, null = -1, -1, False
    at = _behind(text, at, LEFT)
    while at > 0:
        start = behind_blanks(text, at) + 1
        at = _behind_string(text, at)
        if at < 0:
            return -1
        end = at - 1
        at = _behind(text, at, COLON)
        if at < 0:
            return -1
        at = behind_blanks(text, at)
        value = at + 1
        if _is(text, end, LABEL) and end - start == len(LABEL):
            if at == len(text) or text[at] < ZERO or text[at] > ZERO + 1 or label >= 0:
                return -1
            label = text[at] - ZERO
            at += 1
        elif _is(text, end, TIMESTAMP) and end - start == len(TIMESTAMP):
            if at == len(text) or moment >= 0:
                return -1
            if text[at] == QUOTE:
                at = _behind_string(text, at)
                if at < 0:
                    return -1
                moment = _moment(text, value, at - 1)
            else:
                at = _behind_digits(text, at)
                if at < value or at - value >= MOST_DIGITS or (text[value - 1] == ZERO and at > value):
                    return -1
                moment = _number(text, value - 1, at) * 1000
            if moment < 0 or moment >= END:
                return -1
        elif _is(text, end, REQUEST_ID) and end - start == len(REQUEST_ID) and _is(text, at + len(NULL), NULL):
            if request > 0 or null:
                return -1
            null = True
            at += len(NULL)
        else:
            at = _behind_string(text, at)
            if at < 0 or not 0 < _characters(text, value, at - 1) <= longest:
                return -1
            if _is(text, end, EVENT_ID) and end - start == len(EVENT_ID) and event == 0:
                event, event_end = value, at - 1
            elif _is(text, end, USER_ID) and end - start == len(USER_ID) and user == 0:
                user, user_end = value, at - 1
            elif _is(text, end, ITEM_ID) and end - start == len(ITEM_ID) and item == 0:
                item, item_end = value, at - 1
            elif _is(text, end, REQUEST_ID) and end - start == len(REQUEST_ID) and request == 0 and not null:
                request, request_end = value, at - 1
            else:
                return -1
        at = behind_blanks(text, at)
        if at == len(text):
            return -1
        if text[at] == COMMA:
            at += 1
            continue
        if text[at] != RIGHT or event == 0 or user == 0 or item == 0 or label < 0 or moment < 0:
            return -1
        to = _put_number(rows, starts[n], len(COLUMNS), 2)
        first = _put_text(rows, to, text, event, event_end)
        to = _put_text(rows, first, text, user, user_end)
        to = _put_text(rows, to, text, item, item_end)
        to = _put_number(rows, _put_number(rows, to, 2, 4), label, 2)
        to = _put_number(rows, _put_number(rows, to, 8, 4), moment - SHIFT, 8)
        to = _put_text(rows, to, text, request, request_end) if request > 0 else _put_number(rows, to, -1, 4)
        labels[n] = label
        contents[n] = np.int64(xxh64(rows, first, to))
        to = _put_number(rows, _put_number(rows, to, 8, 4), contents[n], 8)
        starts[n + 1] = _put_number(rows, _put_number(rows, to, 4, 4), 0, 4)
        return at + 1
    return -1


@compiled
def _behind(text: bytes, at: int, letter: int) -> int:
    """Behind the letter that has to come next, or -1."""
    at = behind_blanks(text, at)
    return at + 1 if at < len(text) and text[at] == letter else -1


@compiled
def _behind_string(text: bytes, at: int) -> int:
    """Behind the string that has to come next and has no escape, or -1."""
    at = _behind(text, at, QUOTE)
    if at < 0:
        return -1
    while at < len(text) and text[at] != QUOTE:
        if text[at] < SPACE or text[at] == BACKSLASH:
            return -1
        at += 1
    return at + 1 if at < len(text) else -1


@compiled
def _is(text: bytes, end: int, word: Bytes) -> bool:
    """Whether `word` stands before `end`."""
    start = end - len(word)
    if start < 0 or end > len(text):
        return False
    same = True
    for k in range(len(word)):
        same = same and text[start + k] == word[k]
    return same


@compiled
def _characters(text: bytes, start: int, end: int) -> int:
    """Characters of UTF-8: bytes that do not go on with one."""
    n = 0
    for at in range(start, end):
        n += (text[at] & 0xC0) != 0x80
    return n


@compiled
def _behind_digits(text: bytes, at: int) -> int:
    while at < len(text) and text[at] >= ZERO and text[at] <= NINE:
        at += 1
    return at


@compiled
def _number(text: bytes, start: int, end: int) -> int:
    value = 0
    for at in range(start, end):
        value = 10 * value + (text[at] - ZERO)
    return value


@compiled
def _moment(text: bytes, start: int, end: int) -> int:
    """Microseconds since 1970 of an RFC 3339 time as clients write it; -1 where it needs a second look."""
    fraction = start + 20
    if end < fraction:
        return -1
    for k in range(19):
        digit = text[start + k] >= ZERO and text[start + k] <= NINE
        if digit != (k != 4 and k != 7 and k != 10 and k != 13 and k != 16):
            return -1
    between = text[start + 10]
    if between not in (LARGE_T, SMALL_T, SPACE):
        return -1
    if not (text[start + 4] == MINUS and text[start + 7] == MINUS):
        return -1
    if not (text[start + 13] == COLON and text[start + 16] == COLON):
        return -1
    year, month, day = (
        _number(text, start, start + 4),
        _number(text, start + 5, start + 7),
        _number(text, start + 8, start + 10),
    )
    hour, minute, second = (
        _number(text, start + 11, start + 13),
        _number(text, start + 14, start + 16),
        _number(text, start + 17, start + 19),
    )
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
    if text[at] == POINT:
        at = _behind_digits(text, fraction)
        digits = at - fraction
        if not 1 <= digits <= 6:
            return -1
        moment += _number(text, fraction, at) * 10 ** (6 - digits)
    if at == end - 1 and (text[at] == LARGE_Z or text[at] == SMALL_Z):
        return moment
    if at != end - 6 or not (text[at] == PLUS or text[at] == MINUS) or text[at + 3] != COLON:
        return -1
    if _behind_digits(text, at + 1) != at + 3 or _behind_digits(text, at + 4) != end:
        return -1
    hours, minutes = _number(text, at + 1, at + 3), _number(text, at + 4, end)
    if hours > 23 or minutes > 59:
        return -1
    offset = (hours * 60 + minutes) * 60_000_000
    return moment - offset if text[at] == PLUS else moment + offset


@compiled
def _put_number(rows: Bytes, at: int, value: int, size: int) -> int:
    """Write it, big-endian; the place behind it."""
    for k in range(size):
        rows[at + k] = (value >> (8 * (size - 1 - k))) & 0xFF
    return at + size


@compiled
def _put_text(rows: Bytes, at: int, text: bytes, start: int, end: int) -> int:
    at = _put_number(rows, at, end - start, 4)
    for k in range(end - start):
        rows[at + k] = text[start + k]
    return at + end - start


@compiled
def _ids(rows: Bytes, starts: Indices, text: Bytes) -> int:
    """Write the ids of all rows, a `SEPARATOR` behind each; how many bytes that makes."""
    to = 0
    for start in starts[:-1]:
        length = 0
        for at in range(start + 2, start + 6):
            length = (length << 8) | rows[at]
        for at in range(start + 6, start + 6 + length):
            text[to] = rows[at]
            to += 1
        text[to] = 0
        to += 1
    return to


@compiled
def _gather(rows: Bytes, starts: Indices, which: Indices, period: int, out: Bytes) -> None:
    """The chosen rows, of this period."""
    to = 0
    for n in which:
        for at in range(starts[n], starts[n + 1]):
            out[to] = rows[at]
            to += 1
        _put_number(out, to - 4, period, 4)
