"""Events that wait to be sent: which go into the next call, and what becomes of them. Nothing is sent here, and nothing
waits; one thread at a time uses it.
"""

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Literal, TypeAlias

from asmg_client.answers import Ingested
from asmg_client.call import Call, encoded
from asmg_client.calls import ingest
from asmg_client.errors import AsmgError, ConnectionFailed, EventConflict, InvalidInput, ProblemError
from asmg_client.questions import Click, Event, Impression, Interaction
from asmg_client.retries import backoff

__all__ = ["Batch", "Counts", "Lost", "Pending", "Refused", "Reports", "WhenFull", "event_content"]

logger = logging.getLogger(__name__)

WhenFull: TypeAlias = Literal["block", "raise"]
"""What adding to a full buffer does: it waits for room, or raises `BufferFull`."""

Refused: TypeAlias = Callable[[Event, AsmgError], None]
"""Is told an event that the service has refused, and why."""

Lost: TypeAlias = Callable[[Sequence[Event]], None]
"""Is told the events that were not known to be stored when the buffer was closed."""

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""The most bytes of the events of one call: half of what the service takes."""

MAX_BATCH_SIZE = 10_000
"""The most events of one call that the service takes."""

REFUSING = frozenset({400, 413, 422})
"""Statuses that are about the events of a call. All others say nothing about them, so those are kept and sent again."""

FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 30.0
"""Most that is waited after a first failure, and after many in a row."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the events of a buffer so far. `added` is the sum of `accepted`, `duplicates`, `refused`, `lost`
    and `pending`.
    """

    added: int = 0
    """Events that the buffer took."""
    accepted: int = 0
    """Events that are stored."""
    duplicates: int = 0
    """Events that were stored already."""
    refused: int = 0
    """Events that the service has refused, conflicts included; each was reported."""
    lost: int = 0
    """Events that were left when the buffer was closed; they were reported."""
    pending: int = 0
    """Events that wait, or are being sent."""
    turned_away: int = 0
    """Events that a full buffer did not take."""
    failures: int = 0
    """Calls that failed; their events were kept."""


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    event: Event
    content: bytes
    added_at: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one kind, for one call."""

    kind: str
    entries: Sequence[_Entry]

    def call(self) -> Call[Ingested]:
        """The call that stores them."""
        return ingest(self.kind, [entry.content for entry in self.entries])


class Pending:
    """The events of a buffer.

    Args:
        capacity: most events that wait.
        batch_size: most events of one call.
        interval_seconds: most that an event waits for others.
    """

    def __init__(self, capacity: int, batch_size: int, interval_seconds: float) -> None:
        if not (1 <= batch_size <= min(capacity, MAX_BATCH_SIZE)):
            most = min(capacity, MAX_BATCH_SIZE)
            raise ValueError(f"expected a batch_size from 1 to {most}; received {batch_size}")
        self._capacity, self._batch_size, self._interval = capacity, batch_size, interval_seconds
        self._queues = {kind.kind: deque[_Entry]() for kind in (Interaction, Impression, Click)}
        self._again = deque[Batch]()  # failed, or parts of a batch that was refused
        self._sending: Batch | None = None
        self._others_first = False
        self._counts: dict[str, int] = asdict(Counts())
        self._failures_in_a_row, self._paused_until = 0, 0.0
        self._flushed = 0
        self.last_error: AsmgError | None = None
        """Of the newest failed call, until one succeeds."""

    @property
    def counts(self) -> Counts:
        """So far."""
        return Counts(**self._counts)

    @property
    def is_full(self) -> bool:
        """Whether no event can be added."""
        return self._counts["pending"] >= self._capacity

    def add(self, event: Event, content: bytes, now: float) -> None:
        """Take an event with its JSON."""
        self._count(added=1, pending=1)
        self._queues[event.kind].append(_Entry(self._counts["added"], event, content, now))

    def turn_away(self) -> None:
        """Count an event that was not taken."""
        self._count(turned_away=1)

    def hurry(self) -> int:
        """Send all that was added so far at once, also after a failure; the number of the newest of these events."""
        self._flushed, self._paused_until = self._counts["added"], 0.0
        return self._flushed

    def has_settled(self, number: int) -> bool:
        """Whether the events up to this number are stored or refused."""
        return all(entry.number > number for entry in self._oldest())

    def wait(self, now: float) -> float | None:
        """Seconds until `take` has a batch to send; 0 for now, None for as long as nothing is added."""
        oldest = list(self._oldest())
        if self._sending is not None or not oldest:
            return None
        if now < self._paused_until:
            return self._paused_until - now
        at_once = self._again or any(len(queue) >= self._batch_size for queue in self._queues.values())
        if at_once or any(entry.number <= self._flushed for entry in oldest):
            return 0.0
        return max(0.0, min(entry.added_at for entry in oldest) + self._interval - now)

    def take(self) -> Batch:
        """The batch to send next; there is one. `stored`, `failed` or `put_back` says what became of it."""
        queue = max(self._queues.values(), key=lambda queue: -queue[0].number if queue else float("-inf"))
        if self._again and not (queue and self._others_first):
            self._sending = self._again.popleft()
            return self._sending
        entries, size = [queue.popleft()], 0
        while queue and len(entries) < self._batch_size:
            size += len(entries[-1].content) + 1
            if size + len(queue[0].content) > MAX_BATCH_BYTES:
                break
            entries.append(queue.popleft())
        self._sending = Batch(entries[0].event.kind, entries)
        return self._sending

    def stored(self, batch: Batch, answer: Ingested) -> list[tuple[Event, AsmgError]]:
        """The service has answered; the events that it has not stored because others have their ids."""
        if batch is not self._sending:
            return []
        self._done()
        refused: list[tuple[Event, AsmgError]] = []
        for id_, count in Counter(answer.conflicts).items():
            error = EventConflict(f"another event with the id {id_!r} is stored")
            refused += [(entry.event, error) for entry in _differing(batch, id_, count)]
        known = len(batch.entries) - len(refused)
        accepted = min(known, answer.accepted)
        self._count(accepted=accepted, duplicates=known - accepted, refused=len(refused), pending=-len(batch.entries))
        return refused

    def failed(self, batch: Batch, cause: Exception, now: float) -> list[tuple[Event, AsmgError]]:
        """The call has failed; the events that are refused. The others are sent again."""
        if batch is not self._sending:
            return []
        error = cause if isinstance(cause, AsmgError) else ConnectionFailed(f"sending failed: {type(cause).__name__}")
        if isinstance(error, ProblemError) and error.status in REFUSING:
            self._done()
            return self._refused(batch, error)
        self.put_back(batch)
        self._count(failures=1)
        self.last_error = error
        self._others_first = True
        self._failures_in_a_row += 1
        pause = backoff(self._failures_in_a_row, FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS, error)
        self._paused_until = now + pause
        if self._failures_in_a_row == 1:
            unexpected = None if cause is error else cause
            logger.warning("events are kept, and sent again: %s", error, exc_info=unexpected)
        return []

    def put_back(self, batch: Batch) -> None:
        """The batch was not sent."""
        self._sending = None
        self._again.append(batch)

    def lose(self) -> list[Event]:
        """Take out all that is left, as lost."""
        batches = [*([self._sending] if self._sending else []), *self._again]
        entries = sorted(
            chain(*(batch.entries for batch in batches), *self._queues.values()), key=lambda entry: entry.number
        )
        self._sending = None
        self._again.clear()
        for queue in self._queues.values():
            queue.clear()
        self._count(lost=len(entries), pending=-len(entries))
        return [entry.event for entry in entries]

    def _done(self) -> None:
        """The service answers."""
        if self._failures_in_a_row > 0:
            logger.info("events are sent again, after %d failed calls", self._failures_in_a_row)
        self._sending, self._others_first = None, False
        self._failures_in_a_row, self._paused_until, self.last_error = 0, 0.0, None

    def _refused(self, batch: Batch, error: ProblemError) -> list[tuple[Event, AsmgError]]:
        """Take out the events that are named as wrong; where none is named, halve the batch to find them."""
        wrong = _errors_of(batch, error)
        if len(batch.entries) == 1:
            wrong = {0: error}
        if wrong:
            rest = [entry for n, entry in enumerate(batch.entries) if n not in wrong]
            self._again.extendleft([Batch(batch.kind, rest)] if rest else [])
        else:
            half = len(batch.entries) // 2
            self._again.extendleft([Batch(batch.kind, batch.entries[half:]), Batch(batch.kind, batch.entries[:half])])
        self._count(refused=len(wrong), pending=-len(wrong))
        return [(batch.entries[n].event, each) for n, each in wrong.items()]

    def _oldest(self) -> list[_Entry]:
        """Among them is the oldest event."""
        batches = [*([self._sending] if self._sending else []), *self._again]
        return [batch.entries[0] for batch in batches] + [queue[0] for queue in self._queues.values() if queue]

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number


def _errors_of(batch: Batch, error: ProblemError) -> dict[int, AsmgError]:
    """By index the events that the problem names as wrong, each with what is wrong with it."""
    if not isinstance(error, InvalidInput):
        return {}
    found: dict[int, AsmgError] = {}
    for field in error.errors:
        match = re.match(rf"{batch.kind}\[(\d+)\]", field.field)
        index = None if match is None else int(match[1])
        if index is not None and index < len(batch.entries) and index not in found:
            detail = f"{field.field}: expected {field.expected}; received {field.received}"
            found[index] = InvalidInput(replace(error.problem, detail=detail, errors=[field]))
    return found


def _differing(batch: Batch, id_: str, count: int) -> list[_Entry]:
    """So many entries with this id that differ from the stored event: all, or those that differ from the others."""
    entries = [entry for entry in batch.entries if entry.event.id == id_]
    contents = [entry.content for entry in entries]
    stored = next((content for content in contents if contents.count(content) == len(contents) - count), None)
    return [entry for entry in entries if entry.content != stored]


def event_content(event: Event) -> bytes:
    """The JSON of an event.

    Raises:
        TypeError, ValueError: a value of it has no JSON, or its time no zone.
    """
    return encoded(event.document())


class Reports:
    """Tells the owner of a buffer what was not stored, and the log.

    Args:
        on_refused: is told each refused event.
        on_lost: is told the events that are left at the end.
    """

    def __init__(self, on_refused: Refused | None, on_lost: Lost | None) -> None:
        self._on_refused, self._on_lost = on_refused, on_lost

    def refused(self, found: Sequence[tuple[Event, AsmgError]]) -> None:
        """Report refused events; what a callback raises is logged."""
        for event, error in found:
            logger.error("an event was refused: %s", error)
            if self._on_refused is not None:
                try:
                    self._on_refused(event, error)
                except Exception:
                    logger.exception("on_refused failed")

    def lost(self, events: Sequence[Event], last_error: AsmgError | None) -> None:
        """Report the events that are left, if there are any."""
        if not events:
            return
        logger.error("%d events are not known to be stored: %s", len(events), last_error or "no time was left")
        if self._on_lost is not None:
            try:
                self._on_lost(events)
            except Exception:
                logger.exception("on_lost failed")
