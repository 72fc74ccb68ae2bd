"""Collects events and sends them in batches from a thread, through outages of the service."""

import atexit
import os
import time
from threading import Condition, Thread
from typing import Self

from asmg_client.client import Client
from asmg_client.errors import AsmgError, BufferFull
from asmg_client.pending import Batch, Counts, Lost, Pending, Refused, Reports, WhenFull, event_content
from asmg_client.questions import Event

__all__ = ["EventBuffer"]


class EventBuffer:
    """Events that a thread sends in the background. They are in memory: a process that is killed takes them with it.

    Close it, or use it in a `with`; a process that ends in order closes it by itself. Any number of threads may use it,
    in the process that made it.

    Args:
        client: sends the batches.
        capacity: most events that wait.
        batch_size: most events of one call.
        interval_seconds: most that an event waits for others.
        when_full: what `add` does when the buffer is full: `block` or `raise`.
        block_seconds: most that a blocking `add` waits before it raises as well; None for any time.
        close_seconds: most that closing waits for the events that are left.
        on_refused: is told each event that the service refuses, and why; called by the thread.
        on_lost: is told the events that are left after closing.
    """

    def __init__(
        self,
        client: Client,
        *,
        capacity: int = 100_000,
        batch_size: int = 1_000,
        interval_seconds: float = 1.0,
        when_full: WhenFull = "block",
        block_seconds: float | None = None,
        close_seconds: float = 10.0,
        on_refused: Refused | None = None,
        on_lost: Lost | None = None,
    ) -> None:
        self._client, self._when_full, self._block_seconds = client, when_full, block_seconds
        self._close_seconds = close_seconds
        self._pending = Pending(capacity, batch_size, interval_seconds)
        self._reports = Reports(on_refused, on_lost)
        self._changed = Condition()
        self._closed, self._stopped, self._deadline = False, False, float("inf")
        self._pid = os.getpid()
        self._thread = Thread(target=self._run, name="asmg events", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        with self._changed:
            return self._pending.counts

    @property
    def last_error(self) -> AsmgError | None:
        """Why events are not sent now; None where nothing is wrong."""
        return self._pending.last_error

    def add(self, event: Event) -> None:
        """Take an event, to be sent later.

        Raises:
            BufferFull: there is no room.
            TypeError, ValueError: a value of the event has no JSON, or its time no zone.
            RuntimeError: the buffer is closed, or was made by another process.
        """
        content = event_content(event)
        if self._pid != os.getpid():
            raise RuntimeError("expected a buffer that this process has made; received one from before a fork")
        with self._changed:
            if not self._closed and self._pending.is_full and self._when_full == "block":
                self._changed.wait_for(lambda: self._closed or not self._pending.is_full, self._block_seconds)
            if self._closed:
                raise RuntimeError("the buffer is closed")
            if self._pending.is_full:
                self._pending.turn_away()
                raise BufferFull(f"{self._pending.counts.pending} events wait already") from self._pending.last_error
            self._pending.add(event, content, time.monotonic())
            self._changed.notify_all()

    def flush(self, seconds: float = 10.0) -> bool:
        """Send what was added so far, without waiting for more; whether all of it is stored or refused.

        Args:
            seconds: most to wait for that.
        """
        with self._changed:
            number = self._pending.hurry()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._pending.has_settled(number), seconds)

    def close(self) -> Counts:
        """Send what is left, for `close_seconds` at most, and stop; what became of all events. Closing again changes
        nothing.
        """
        if self._pid != os.getpid():  # the sender is not in this process, and may have held the lock at the fork
            return self._pending.counts
        with self._changed:
            if not self._closed:
                self._closed, self._deadline = True, time.monotonic() + self._close_seconds
        self.flush(self._close_seconds)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(max(0.0, self._deadline - time.monotonic()) + 0.1)
        with self._changed:
            lost, error = self._pending.lose(), self._pending.last_error
        self._reports.lost(lost, error)
        atexit.unregister(self.close)
        return self.counts

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            left = max(0.01, self._deadline - time.monotonic())
            try:
                answer = self._client.send_once(batch.call(), left)
            except Exception as error:  # nothing may end the thread while there are events
                with self._changed:
                    refused = self._pending.failed(batch, error, time.monotonic())
                    self._changed.notify_all()
            else:
                with self._changed:
                    refused = self._pending.stored(batch, answer)
                    self._changed.notify_all()
            self._reports.refused(refused)

    def _next(self) -> Batch | None:
        """The next batch, when it is due; None when the thread is to end."""
        with self._changed:
            while not self._stopped:
                wait = self._pending.wait(time.monotonic())
                if wait == 0:
                    return self._pending.take()
                self._changed.wait(wait)
        return None
