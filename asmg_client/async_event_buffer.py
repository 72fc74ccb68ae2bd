"""Collects events and sends them in batches from a task, through outages of the service."""

import asyncio
import atexit
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from asmg_client.async_client import AsyncClient
from asmg_client.errors import AsmgError, BufferFull
from asmg_client.pending import Batch, Counts, Lost, Pending, Refused, Reports, WhenFull, event_content
from asmg_client.questions import Event

__all__ = ["AsyncEventBuffer"]


class AsyncEventBuffer:
    """Events that a task sends in the background. They are in memory: a process that is killed takes them with it.

    Use it in an `async with`, or close it: when a process ends, its event loop has ended already, and what is left can
    only be reported. The arguments are those of `EventBuffer`; callbacks run in the event loop.
    """

    def __init__(
        self,
        client: AsyncClient,
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
        self._changed = asyncio.Event()
        self._closed, self._stopped, self._deadline = False, False, float("inf")
        self._task: asyncio.Task[None] | None = None
        atexit.register(self._lose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return self._pending.counts

    @property
    def last_error(self) -> AsmgError | None:
        """Why events are not sent now; None where nothing is wrong."""
        return self._pending.last_error

    async def add(self, event: Event) -> None:
        """Take an event, to be sent later.

        Raises:
            BufferFull: there is no room.
            TypeError, ValueError: a value of the event has no JSON, or its time no zone.
            RuntimeError: the buffer is closed.
        """
        content = event_content(event)
        if self._pending.is_full and self._when_full == "block":
            await self._until(lambda: self._closed or not self._pending.is_full, self._block_seconds)
        if self._closed:
            raise RuntimeError("the buffer is closed")
        if self._pending.is_full:
            self._pending.turn_away()
            raise BufferFull(f"{self._pending.counts.pending} events wait already") from self._pending.last_error
        self._pending.add(event, content, time.monotonic())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="asmg events")
        self._notify()

    async def flush(self, seconds: float = 10.0) -> bool:
        """Send what was added so far, without waiting for more; whether all of it is stored or refused.

        Args:
            seconds: most to wait for that.
        """
        number = self._pending.hurry()
        self._notify()
        return await self._until(lambda: self._pending.has_settled(number), seconds)

    async def close(self) -> Counts:
        """Send what is left, for `close_seconds` at most, and stop; what became of all events. Closing again changes
        nothing.
        """
        if not self._closed:
            self._closed, self._deadline = True, time.monotonic() + self._close_seconds
        try:
            await self.flush(self._close_seconds)
        finally:
            self._stopped = True
            self._notify()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            self._lose()
        return self.counts

    def _lose(self) -> None:
        """Report what is left, which nobody sends any more."""
        self._reports.lost(self._pending.lose(), self._pending.last_error)
        atexit.unregister(self._lose)

    async def _run(self) -> None:
        while (batch := await self._next()) is not None:
            left = max(0.01, self._deadline - time.monotonic())
            try:
                refused = self._pending.stored(batch, await self._client.send_once(batch.call(), left))
            except asyncio.CancelledError:
                self._pending.put_back(batch)
                raise
            except Exception as error:  # nothing may end the task while there are events
                refused = self._pending.failed(batch, error, time.monotonic())
            self._notify()
            self._reports.refused(refused)

    async def _next(self) -> Batch | None:
        """The next batch, when it is due; None when the task is to end."""
        while not self._stopped:
            wait = self._pending.wait(time.monotonic())
            if wait == 0:
                return self._pending.take()
            await self._until_changed(wait)
        return None

    def _notify(self) -> None:
        """Wake all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, holds: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until something holds, for so long at most; whether it does."""
        deadline = float("inf") if seconds is None else time.monotonic() + seconds
        while not holds() and time.monotonic() < deadline:
            await self._until_changed(None if seconds is None else deadline - time.monotonic())
        return holds()

    async def _until_changed(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
