"""The model that an api process serves, and how one version takes over from another without a dropped request.

A version is published with the moment `active_from` at which it takes over. Every api process loads it before, keeps it
beside the one it serves, and flips at that moment by its own clock. So the processes flip together, and a client whose
requests go from one to another never sees the version move back.

What is served is looked at again and again (`service.serving.check`), and loaded anew where it has changed.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from service.errors import NotReady, ServiceError
from service.files import check_of, keep_newest
from service.serving.check import checking_thread, is_damaged_file, is_damaged_memory
from service.serving.sealed import seal
from service.serving.snapshot import PAUSE_SECONDS, CanaryFailed, Snapshot, read_through
from service.serving.tensor_file import map_file
from service.tasks import end_tasks, run_alone, start_alone

__all__ = ["Champion", "ServingModel", "SnapshotDamaged", "load_snapshot"]

logger = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that the `champion` alias names."""

    version: int
    period: int
    """The period that the version was last trained on."""
    digest: str
    """Of its serving artifact."""
    active_from: datetime


class FetchChampion(Protocol):
    """Where the champion is looked up."""

    async def __call__(self) -> Champion:
        """The champion of now; raises whatever keeps it from being read."""


class FetchFile(Protocol):
    """Where an artifact comes from."""

    async def __call__(self, digest: str, folder: Path) -> Path:
        """The artifact as a complete file in `folder`; raises whatever keeps it from being read."""


def load_snapshot(path: Path, version: int, period: int, *, pause_seconds: float = 0.0) -> Snapshot:
    """The snapshot in `path`, ready to serve: copied to where nothing can change it, mapped, read through and compared
    with its digest, compiled for, and tried on its canary.

    Raises:
        ValueError: the file is no snapshot, or not as it was written.
        CanaryFailed: it gives other scores than where it was written.
        OSError: the file cannot be read.
    """
    sealed = seal(path, pause_seconds=pause_seconds)
    try:
        expected = check_of(path)
        if expected is not None and not sealed.size:  # which cannot be mapped
            raise SnapshotDamaged(f"{path.name}: expected a file with this XXH3-128; received an empty one")
        mapping = map_file(sealed.path)
        found = read_through(mapping, pause_seconds=pause_seconds)
        if expected is not None and found != expected:
            raise SnapshotDamaged(f"{path.name}: expected a file with this XXH3-128; received one with {found}")
        snapshot = replace(Snapshot.open(mapping, version=version, period=period), source=path)
    except BaseException:
        sealed.close()
        raise
    sealed.close_after(mapping)
    try:
        snapshot.check()
    except CanaryFailed as error:
        from service.serving.eager import eager_forward  # with torch, which serving does without otherwise

        snapshot = replace(snapshot, forward=eager_forward(snapshot.meta["model"], snapshot.tensors))
        snapshot.check()
        logger.error("%s by the compiled forward pass; the eager one serves, an order of magnitude slower", error)
    return snapshot


class SnapshotDamaged(ValueError):
    """A file whose bytes have changed since it was written."""


class ServingModel:
    """The snapshot served now and those that take over at a known moment: hardly ever more than one.

    Only the event loop's thread touches these references, so they need no lock; loading happens in another thread.

    Args:
        fetch_champion: looks the champion up.
        fetch_file: brings its artifact into `folder`.
        notices: an endless stream of hints that the champion has changed.
        folder: of the artifact files, shared by all processes of a host; all but the last few are removed.
        poll_seconds: how often the champion is looked up where no notice came.
        on_swap: told each snapshot as it begins to serve.
        on_trouble: called for each attempt to follow the champion that failed.
        check_seconds: how often what is served, and the file that it came from, are compared with their digest.
        on_damage: called each time that they are others.
    """

    def __init__(
        self,
        *,
        fetch_champion: FetchChampion,
        fetch_file: FetchFile,
        notices: Callable[[], AsyncIterator[object]],
        folder: Path,
        poll_seconds: float,
        on_swap: Callable[[Snapshot], None] = lambda _: None,
        on_trouble: Callable[[], None] = lambda: None,
        check_seconds: float = 60.0,
        on_damage: Callable[[], None] = lambda: None,
    ) -> None:
        self._fetch_champion = fetch_champion
        self._fetch_file = fetch_file
        self._notices = notices
        self._folder = folder
        self._poll_seconds = poll_seconds
        self._on_swap = on_swap
        self._on_trouble = on_trouble
        self._check_seconds = check_seconds
        self._on_damage = on_damage
        self._current: Snapshot | None = None
        self._scheduled: deque[tuple[float, Snapshot]] = deque()  # epoch seconds of the beginning, ascending
        self._known: Champion | None = None
        self._letting_go: set[asyncio.Future[None]] = set()
        self.trouble: str | None = None
        """Why the champion is not served although it should be; None where all is well."""
        self.damage: str | None = None
        """What has changed of the snapshot served and is not mended yet; None where all is well."""
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()

    def current(self) -> Snapshot:
        """The snapshot to answer one whole request with.

        Raises:
            NotReady: none was loaded so far.
        """
        while self._scheduled and time.time() >= self._scheduled[0][0]:
            self._serve(self._scheduled.popleft()[1])
        if self._current is None:
            raise NotReady("no model is loaded yet")
        return self._current

    async def wait_loaded(self) -> None:
        """Return when there is a snapshot to serve."""
        await self._loaded.wait()

    async def run(self) -> None:
        """Follow the champion until cancelled: the first at once, each later one from its `active_from` on.

        Whatever fails is logged and tried again, less and less often; the snapshot served stays.
        """
        tasks = [
            start_alone(work, name=name)
            for work, name in (
                (self._listen(), "hear of new versions"),
                (self._follow(), "follow the champion"),
                (self._check(), "check snapshots"),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # which none ever does by itself
        finally:
            await end_tasks(*tasks)

    async def refresh(self) -> None:
        """Look the champion up once and load or schedule it where it is new; raises whatever fails."""
        champion = await self._fetch_champion()
        if champion == self._known:
            return
        snapshot = self._held(champion.version) or await self._load(champion)
        active_from = champion.active_from.timestamp()
        # A version scheduled before this newer one still gets its turn, for other processes may have given it theirs. A
        # rollback overrules what has not taken over yet.
        while self._scheduled and _overruled(*self._scheduled[-1], champion):
            self._scheduled.pop()
        # The first champion serves at once, even before its time: there is nothing older to serve.
        if self._current is None or time.time() >= active_from:
            self._scheduled.clear()
            self._serve(snapshot)
        else:
            self._scheduled.append((active_from, snapshot))
        self._known = champion

    def _held(self, version: int) -> Snapshot | None:
        return next((snapshot for snapshot in self._all() if snapshot.version == version), None)

    def _serve(self, snapshot: Snapshot) -> None:
        if snapshot is self._current:
            return
        old, self._current = self._current, snapshot
        self._loaded.set()
        run_alone(logger.info, "serving model version %d", snapshot.version)  # no matter which request noticed the time
        self._on_swap(snapshot)
        if old is not None:
            # Requests that have it finish with it; none of them is to pay for its unmapping.
            self._letting_go.add(task := start_alone(asyncio.to_thread(old.let_go), name="let go of a snapshot"))
            task.add_done_callback(self._letting_go.discard)

    async def _load(self, champion: Champion) -> Snapshot:
        path = await self._fetch_file(champion.digest, self._folder)
        return await self._open(path, champion.version, champion.period)

    async def _open(self, path: Path, version: int, period: int) -> Snapshot:
        pause_seconds = 0.0 if self._current is None else PAUSE_SECONDS
        try:
            snapshot = await asyncio.to_thread(load_snapshot, path, version, period, pause_seconds=pause_seconds)
        except SnapshotDamaged:
            self._on_damage()
            await asyncio.to_thread(path.unlink, missing_ok=True)  # the next attempt fetches it anew
            raise
        await asyncio.to_thread(keep_newest, path)
        return snapshot

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._notices():
                    self._wake.set()
            except Exception:
                logger.exception("lost the swap notices; polling goes on")
            await asyncio.sleep(self._poll_seconds)

    async def _follow(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self.refresh()
                failures, self.trouble = 0, None
            except Exception as error:
                failures += 1
                self.trouble = str(error) or type(error).__name__
                self._on_trouble()
                # The cause of an expected failure is in its message; of any other the log needs the trace.
                trace = None if isinstance(error, ServiceError) else error
                logger.warning("could not load the champion (attempt %d): %s", failures, error, exc_info=trace)
            await self._pause(min(self._poll_seconds * 2 ** min(failures, 16), MAX_RETRY_SECONDS))

    async def _check(self) -> None:
        """Compare what is served, and what is about to be, with what it should be; for ever."""
        stop, thread = threading.Event(), checking_thread()
        try:
            while True:
                await asyncio.sleep(self._check_seconds)
                for snapshot in self._all():
                    await self._examine(snapshot, thread, stop)
        finally:
            stop.set()
            thread.shutdown(wait=False)

    async def _examine(self, snapshot: Snapshot, thread: ThreadPoolExecutor, stop: threading.Event) -> None:
        assert snapshot.source is not None  # as of all that were loaded
        loop, path = asyncio.get_running_loop(), snapshot.source
        # In no context: `run_in_executor` passes none on.
        in_memory = await loop.run_in_executor(thread, is_damaged_memory, snapshot, stop)
        on_disk = await loop.run_in_executor(thread, is_damaged_file, path, stop)
        if in_memory or on_disk:
            what = "what is served of it" if in_memory else "its file, which is not what is served,"
            self.damage = f"{what} has changed since it was loaded; it is fetched anew"
            self._on_damage()
            logger.warning("model version %d: %s (%s)", snapshot.version, self.damage, path)
        if on_disk:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        failures = 0
        while True:
            try:
                # Also where the file is just gone, so that a process that starts finds it.
                fetched = await self._fetch_file(path.name.partition(".")[0], self._folder)
                if in_memory:
                    self._replace(snapshot, await self._open(fetched, snapshot.version, snapshot.period))
                break
            except Exception as error:
                failures += 1
                self._on_trouble()
                trace = None if isinstance(error, ServiceError) else error
                logger.warning("could not mend model version %d: %s", snapshot.version, error, exc_info=trace)
                await asyncio.sleep(min(self._poll_seconds * 2 ** min(failures, 16), MAX_RETRY_SECONDS))
                if snapshot not in self._all():
                    break
        self.damage = None

    def _all(self) -> list[Snapshot]:
        """The snapshot served and those to come."""
        held = (self._current, *(snapshot for _, snapshot in self._scheduled))
        return [snapshot for snapshot in held if snapshot is not None]

    def _replace(self, old: Snapshot, new: Snapshot) -> None:
        """Serve the same version from other pages."""
        self._scheduled = deque((at, new if snapshot is old else snapshot) for at, snapshot in self._scheduled)
        if self._current is old:
            self._serve(new)

    async def _pause(self, seconds: float) -> None:
        """Sleep until a notice, a flip or `seconds` have passed; flip where no request does."""
        if self._scheduled:
            seconds = min(seconds, max(self._scheduled[0][0] - time.time(), 0))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        if self._current is not None:
            self.current()


def _overruled(active_from: float, snapshot: Snapshot, champion: Champion) -> bool:
    return active_from >= champion.active_from.timestamp() or snapshot.version >= champion.version
