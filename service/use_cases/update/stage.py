"""Run the stages of an update: store in Postgres that one runs, then its result; report progress; handle cancelling."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, Protocol, Self, TypeVar

from service.storage.artifacts.state_files import StateFiles
from service.telemetry.tracing import span
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart, hold_period

__all__ = ["Note", "Notes", "run_stage"]

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.2
"""How long the stages of an update wait, all together, for what they have begun to be written: a small file is complete
at once, and then a note need not wait."""

PROGRESS_SECONDS = 0.25
"""Least time between two notices of progress, in seconds: an update makes thousands of steps a second."""


class Note(Protocol):
    """The result of a stage, stored as JSON in `period_stages.result`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        ...

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        ...


NoteT = TypeVar("NoteT", bound=Note)


class Begun(Protocol):
    """What a stage hands on while a part of its work still goes on."""

    @property
    def written(self) -> asyncio.Future[Any]:
        """Done when the rest of the work is."""
        ...


BegunT = TypeVar("BegunT", bound=Begun)


class Notes:
    """Stores the notes of an update's stages, in their order, when what they name is written.

    Files of training states are written while the next stages run, and a stage may leave other work to go on (`begin`).
    Its note, and those of these stages, are stored when that is done: an update that continues after a crash finds the
    results of a stage only if it finds those of all stages before it.

    As an asynchronous context manager it has stored all notes when the block has ended, also where a stage has failed.
    Where the update was cancelled, the work ends too, and the notes that wait for it are lost.

    Args:
        context: dependencies.
        start: names the period.
        files: of the training states.
    """

    def __init__(self, context: UpdateContext, start: UpdateStart, files: StateFiles) -> None:
        self._context, self._start, self._files = context, start, files
        self._waiting: list[tuple[str, float, dict[str, Any]]] = []
        self._begun: asyncio.Future[Any] | None = None
        self._work = AsyncExitStack()
        self._patience = PATIENCE_SECONDS

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                await self._store()
            elif issubclass(error[0], Exception):
                with suppress(Exception):  # that of the stage says more
                    await self._store()
        finally:
            await self._work.__aexit__(*error)

    async def begin(self, work: AbstractAsyncContextManager[BegunT]) -> BegunT:
        """Enter a block that is left when the rest of its work is done. A stage calls it, once in an update."""
        begun = await self._work.enter_async_context(work)
        self._begun = begun.written
        return begun

    async def put(self, stage: str, seconds: float, result: dict[str, Any]) -> None:
        """Store the note of a stage, or keep it until what the stages have begun is done.

        Raises:
            Superseded: this worker does not update the period any more.
        """
        self._waiting.append((stage, seconds, result))
        unwritten = {*self._files.writing, *([self._begun] if self._begun is not None else [])}
        if unwritten and self._patience > 0:
            started = time.perf_counter()
            await asyncio.wait(unwritten, timeout=self._patience)
            self._patience -= time.perf_counter() - started
        if all(future.done() for future in unwritten):
            await self._store()

    def tell(self, stage: str, seconds: float) -> None:
        """Tell metrics and log that a stage is done."""
        self._context.metrics.note_stage(stage, seconds)
        logger.info("period %d: %s took %.2f s", self._start.period, stage, seconds)

    async def _store(self) -> None:
        waiting, self._waiting = self._waiting, []  # if this fails, they are never stored
        await self._work.aclose()
        await self._files.written()
        if not waiting:
            return
        async with self._context.database.unit_of_work() as work:
            await hold_period(work, self._context, self._start.period, crashes=0)
            for stage, seconds, result in waiting:
                await work.stages.finish(self._start.period, stage, seconds, result)
            await work.commit()
        self._context.noted()
        for stage, seconds, _ in waiting:
            self.tell(stage, seconds)


async def run_stage(
    context: UpdateContext,
    start: UpdateStart,
    notes: Notes,
    name: str,
    note_type: type[NoteT],
    stage: Callable[[Progress], Awaitable[NoteT]],
    *,
    stores_note: bool = False,
) -> NoteT:
    """Run a stage and store its note; where an earlier attempt has finished the stage, return the stored note.

    A fresh note is converted to JSON and back as a stored one is, so an update that continues after a crash computes
    with the same values as one that was never interrupted.

    Args:
        context: dependencies.
        start: names the period and the stages that are finished.
        notes: stores the note.
        name: of the stage.
        note_type: converts the stored JSON.
        stage: does the work; gets the function that it reports its progress to.
        stores_note: whether the stage stores its note itself, in its own transaction.

    Raises:
        Superseded: this worker does not update the period any more.
    """
    if name in start.done:
        return note_type.from_json(start.done[name].result)
    async with context.database.unit_of_work() as work:
        await hold_period(work, context, start.period)
        await work.stages.start(start.period, name)
        await work.commit()
    started, progress = time.perf_counter(), _ProgressReport(context, start.period, name)
    await progress.publish(0.0)
    try:
        with span(name) as made:
            result = (await stage(progress)).to_json()
            if made is not None:
                made.set_attributes(_numbers(result, f"asmg.{name}"))
    except asyncio.CancelledError:
        progress.cancelled = True
        raise
    seconds = time.perf_counter() - started
    if stores_note:
        notes.tell(name, seconds)
    else:
        await notes.put(name, seconds, result)
    context.beat()
    return note_type.from_json(result)


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, int | float]:
    """The numbers of a note, by the path to each: `asmg.score.scores.generated.auc`."""
    found: dict[str, int | float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}.{name}")
        elif isinstance(value, (int, float)):
            found[f"{prefix}.{name}"] = value
    return found


class _ProgressReport:
    """Reports how far a stage has got: to the heartbeat each time, to whoever watches the period now and then."""

    def __init__(self, context: UpdateContext, period: int, stage: str) -> None:
        self._context, self._period, self._stage = context, period, stage
        names = ("resolve", "prepare", "score", *context.updater.stages, "gate", "publish")
        self._finished, self._stages = names.index(stage), len(names)
        self._loop, self._published_at = asyncio.get_running_loop(), 0.0
        self.cancelled = False
        """Whether the stage was cancelled; the thread that trains then ends at its next report."""

    def __call__(self, fraction: float) -> None:
        """Report the fraction of the stage that is done, from any thread."""
        if self.cancelled:
            raise asyncio.CancelledError  # ends the thread, which the process would wait for otherwise
        self._context.beat()
        if time.perf_counter() - self._published_at >= PROGRESS_SECONDS:
            self._published_at = time.perf_counter()
            asyncio.run_coroutine_threadsafe(self.publish(fraction), self._loop)

    async def publish(self, fraction: float) -> None:
        """Publish how much of the whole update is done."""
        done = round((self._finished + fraction) / self._stages, 4)
        await self._context.notices.publish_progress(self._period, {"stage": self._stage, "progress": done})
