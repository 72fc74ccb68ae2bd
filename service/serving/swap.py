"""The model that an api process serves, and how a new version takes over without a dropped request.

A published version is announced first. Every api process loads it and tells so (`service.use_cases.registration`).
When enough of them have it, its moment `active_from` is set. All processes switch at this moment of Postgres' clock, so
a client whose requests go from one to another never sees the version move back; `service.serving.turns` says which
process may answer with which version.

`service.app` creates one `ServingModel` for each process and runs it; each prediction calls `ServingModel.current`.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from service.errors import NotReady, ServiceError
from service.files import keep_newest
from service.serving.canary_share import CanaryShare
from service.serving.clock import ServerClock, elapsed
from service.serving.damage import is_damaged_file, is_damaged_memory, low_priority_thread
from service.serving.fetching import FetchChampions, FetchFile
from service.serving.loading import SnapshotDamaged, load_snapshot
from service.serving.snapshot import Pages, Snapshot
from service.serving.tensor_file import PAUSE_SECONDS, PIECE_BYTES
from service.serving.turns import Canary, Champion, Turns
from service.tasks import end_tasks, run_alone, start_alone

__all__ = ["Champion", "ServingModel"]

logger = logging.getLogger(__name__)

GENTLE_SHARE = 1 / 16
"""Share of the time that is spent on fetching a base that was written anew. Nobody waits for it, and requests need the
processors."""
GENTLE_PAUSE_SECONDS = 0.02
"""Pause between two pieces while such a base is copied and read through."""
GENTLE_SECONDS = 2.0
"""Most seconds of such pauses together: a version that is published meanwhile waits for their end."""

MAX_RETRY_SECONDS = 30.0
"""The longest pause after a failure; each failure in a row doubles the pause."""


class ServingModel:
    """The snapshot that is served now, and those that are scheduled to take over, hardly ever more than one.

    Only the thread of the event loop touches these references, so they need no lock. Loading happens in another thread.

    Args:
        fetch_champions: looks up what is served and what comes.
        fetch_file: brings the files of a snapshot into `folder`.
        notices: an endless stream of hints that the champion has changed.
        folder: of the snapshot files, shared by all processes of a host; all but those in use and the last few are
            removed.
        poll_seconds: how often the champions are looked up where no notice came.
        clock: of Postgres.
        lead_seconds: the swap lead; while a version waits, the champions are looked up eight times in it.
        refuses: whether predictions are refused while a newer version may have taken over.
        on_swap: called with each snapshot when it begins to serve.
        on_trouble: called for each failed attempt to follow the champion.
        check_seconds: how often the snapshots, and the files that they came from, are compared with their checksums.
        on_damage: called each time one of them differs.
    """

    def __init__(
        self,
        *,
        fetch_champions: FetchChampions,
        fetch_file: FetchFile,
        notices: Callable[[], AsyncIterator[object]],
        folder: Path,
        poll_seconds: float,
        clock: ServerClock | None = None,
        lead_seconds: float = 0.0,
        refuses: bool = False,
        on_swap: Callable[[Snapshot], None] = lambda _: None,
        on_trouble: Callable[[], None] = lambda: None,
        check_seconds: float = 60.0,
        on_damage: Callable[[], None] = lambda: None,
    ) -> None:
        self._fetch_champions = fetch_champions
        self._fetch_file = fetch_file
        self._notices = notices
        self._folder = folder
        self._poll_seconds = poll_seconds
        self._waiting_poll_seconds = min(poll_seconds, lead_seconds / 8) if lead_seconds else poll_seconds
        self._refuses = refuses
        self.on_ready: Callable[[], None] = lambda: None
        """Called when there is news: versions have been loaded, or announced."""
        self._on_swap = on_swap
        self._on_trouble = on_trouble
        self._check_seconds = check_seconds
        self._on_damage = on_damage
        self._current: Snapshot | None = None
        self.canary: tuple[CanaryShare, Snapshot] | None = None
        """The share of the users that another version answers than `current`, and that version; None for nobody. It is
        read together with `current` or `settled`, without waiting in between."""
        self._clock = ServerClock() if clock is None else clock
        self.turns = Turns(self._clock, lead_seconds=lead_seconds)
        """What takes over next."""
        self._followed: Sequence[Champion] = ()
        self._releases: set[asyncio.Future[None]] = set()
        self.trouble: str | None = None
        """Why the champion is not served although it should be; None where all is well."""
        self.damage: str | None = None
        """What is damaged of a snapshot and not repaired yet; None where all is well."""
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()

    def current(self) -> Snapshot:
        """The snapshot that is served now, as far as this process knows.

        Raises:
            NotReady: no snapshot has been loaded yet; or a newer version may have taken over, and this process refuses
                to answer then.
        """
        if self.turns:
            self._take(*self._clock.read())
        return self._answering()

    async def settled(self) -> Snapshot:
        """The snapshot to answer one whole request with.

        The processes' clocks differ by a little. While a version takes over by one clock and perhaps not by another,
        nobody answers: then each process serves the new version.

        Raises:
            NotReady: as `current` does.
        """
        while self.turns:
            now, error = self._clock.read()
            seconds = self.turns.turning_seconds(now, error)
            if not seconds:
                self._take(now, error)  # by the same look at the clock
                break
            await asyncio.sleep(seconds)
        return self._answering()

    async def wait_loaded(self) -> None:
        """Return when there is a snapshot to serve."""
        await self._loaded.wait()

    async def run(self) -> None:
        """Follow the champion until cancelled: serve the first at once, each later one from its `active_from` on.

        A failure is logged and tried again, less and less often; meanwhile the current snapshot goes on serving.
        """
        tasks = [
            start_alone(work, name=name)
            for work, name in (
                (self._listen(), "hear of new versions"),
                (self._follow(), "follow the champion"),
                (self._check_regularly(), "check snapshots"),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)  # none of them ends by itself
        finally:
            await end_tasks(*tasks)

    async def look(self) -> None:
        """Look up once what is served and what comes. Loads nothing. Raises whatever fails."""
        looked = elapsed()
        champions = await self._fetch_champions()
        self.turns.follow(champions, self._served(), looked=looked)
        self._followed = champions

    async def refresh(self) -> None:
        """Look up what is served and what comes, and load what is missing. Raises whatever fails, the first of all."""
        before = self._followed
        await self.look()
        if self.turns:
            self._take(*self._clock.read())
        failed: Exception | None = None
        tried: set[Champion | Canary] = set()
        while missing := [version for version in self.turns.missing if version not in tried]:
            tried.add(missing[0])  # each load takes a while, and meanwhile others may be missing
            try:
                self.turns.put(await self._load(missing[0]))
            except Exception as error:
                failed = failed or error
            if self.turns:
                self._take(*self._clock.read())
        if tried or self._followed != before:
            self.on_ready()
        if failed is not None:
            raise failed
        if not self.turns:
            await self._take_new_files()

    async def _take_new_files(self) -> None:
        """Serve the present versions from other files, where a base was written anew."""
        served = {snapshot.version: snapshot for snapshot in self._served()}
        for version in [version for champion in self._followed for version in champion.versions]:
            old = served.get(version.version)
            if old is not None and version.files != _digests(old):
                self._replace(old, await self._load(version, gently=True))

    async def _pause(self, seconds: float) -> None:
        """Wait after a piece of a file that took so long, unless a newer version may need the file."""
        if self.turns:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * (1 / GENTLE_SHARE - 1)):
                await self._wake.wait()

    def wake(self) -> None:
        """Look for news at once."""
        self._wake.set()

    def _answering(self) -> Snapshot:
        if self._current is None:
            raise NotReady("no model is loaded yet")
        if self._refuses and (trouble := self.turns.trouble) is not None:
            raise NotReady(trouble)
        return self._current

    def _take(self, now: float, error: float) -> None:
        turn = self.turns.take(now, error, first=self._current is None)
        if turn is not None and turn.snapshot is not None:
            self._serve(turn.snapshot, turn.canary)

    def _serve(self, snapshot: Snapshot, canary: tuple[CanaryShare, Snapshot] | None) -> None:
        before, former = self._served(), self._current
        self._current, self.canary = snapshot, canary
        # What is logged is outside of the request's context.
        if canary is not None and canary[1] not in before:
            run_alone(logger.info, "serving model version %d to %g of the users", canary[1].version, canary[0].share)
        if snapshot is not former:
            self._loaded.set()
            run_alone(logger.info, "serving model version %d", snapshot.version)
            self._on_swap(snapshot)
        used = self.snapshots
        shared = {pages for each in used for pages in each.pages}
        for old in before:
            if old not in used:
                # Requests that use it finish with it. In a thread, so that none of them pays for its unmapping.
                release = asyncio.to_thread(old.release_pages, shared)
                self._releases.add(task := start_alone(release, name="release a snapshot"))
                task.add_done_callback(self._releases.discard)

    def _served(self) -> list[Snapshot]:
        """The snapshots that answer now: the champion's and the canary's."""
        current = [] if self._current is None else [self._current]
        return current if self.canary is None else [*current, self.canary[1]]

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots that are served and those that take over next, each once."""
        return list(dict.fromkeys([*self._served(), *self.turns.snapshots]))

    async def _load(self, version: Champion | Canary, *, gently: bool = False) -> Snapshot:
        return await self._fetch_and_open(version.files, version.version, version.period, gently=gently)

    async def _fetch_and_open(
        self,
        digests: Sequence[str],
        version: int,
        period: int,
        damaged: Collection[Pages] = (),
        *,
        gently: bool = False,
    ) -> Snapshot:
        """Load a version from its files.

        Args:
            digests: of the files.
            version, period: of the model.
            damaged: pages that are not taken over from loaded snapshots.
            gently: whether nobody waits for it.
        """
        if gently:
            paths = [await self._fetch_file(digest, self._folder, self._pause) for digest in digests]
        else:
            paths = [await self._fetch_file(digest, self._folder) for digest in digests]
        loaded = [each for each in self.snapshots if not any(pages in damaged for pages in each.pages)]
        pause_seconds = 0.0 if self._current is None else PAUSE_SECONDS
        if gently:
            pieces = 2 * (1 + paths[0].stat().st_size // PIECE_BYTES)  # it is copied, and read through
            pause_seconds = max(pause_seconds, min(GENTLE_PAUSE_SECONDS, GENTLE_SECONDS / pieces))
        try:
            snapshot = await asyncio.to_thread(
                load_snapshot, paths, version, period, loaded=loaded, pause_seconds=pause_seconds
            )
        except SnapshotDamaged as error:
            self._on_damage()
            await asyncio.to_thread(error.path.unlink, missing_ok=True)  # the next attempt fetches it again
            raise
        used = {*digests, *(digest for each in self.snapshots for digest in _digests(each))}
        await asyncio.to_thread(keep_newest, self._folder, paths[0].suffix, used)
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
                # The message of an expected error says its cause; any other one needs the traceback.
                trace = None if isinstance(error, ServiceError) else error
                logger.warning("could not load the champion (attempt %d): %s", failures, error, exc_info=trace)
            seconds = self._retry_seconds(failures)
            if self.turns.waiting and not failures:
                seconds = self._waiting_poll_seconds
            await self._sleep_until_next(seconds)

    def _retry_seconds(self, failures: int) -> float:
        return min(self._poll_seconds * 2.0 ** min(failures, 16), MAX_RETRY_SECONDS)

    async def _sleep_until_next(self, seconds: float) -> None:
        """Sleep until a notice comes, a version takes over or `seconds` have passed.

        A version that takes over does so here, also where no request asks for it.
        """
        seconds = min(seconds, self.turns.next_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        if self.turns:
            self._take(*self._clock.read())

    async def _check_regularly(self) -> None:
        """Compare all snapshots with their checksums, every `check_seconds`, for ever."""
        stop, thread = threading.Event(), low_priority_thread()
        try:
            while True:
                await asyncio.sleep(self._check_seconds)
                for snapshot in self.snapshots:
                    await self._check_and_repair(snapshot, thread, stop)
        finally:
            stop.set()
            thread.shutdown(wait=False)

    async def _check_and_repair(self, snapshot: Snapshot, thread: ThreadPoolExecutor, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        in_memory = [
            each for each in snapshot.pages if await loop.run_in_executor(thread, is_damaged_memory, each, stop)
        ]
        on_disk = [path for path in snapshot.sources if await loop.run_in_executor(thread, is_damaged_file, path, stop)]
        if in_memory or on_disk:
            what = "what is served of it" if in_memory else "its file, which is not what is served,"
            self.damage = f"{what} has changed since it was loaded; it is fetched anew"
            self._on_damage()
            names = [each.name for each in in_memory] + [path.name for path in on_disk]
            logger.warning("model version %d: %s (%s)", snapshot.version, self.damage, ", ".join(names))
        for path in on_disk:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        failures, digests = 0, _digests(snapshot)
        while True:
            try:
                # Also where a file is just missing, so that a process that starts finds it.
                for digest in digests:
                    await self._fetch_file(digest, self._folder)
                if in_memory:
                    new = await self._fetch_and_open(digests, snapshot.version, snapshot.period, in_memory)
                    self._replace(snapshot, new)
                break
            except Exception as error:
                failures += 1
                self._on_trouble()
                trace = None if isinstance(error, ServiceError) else error
                logger.warning("could not mend model version %d: %s", snapshot.version, error, exc_info=trace)
                await asyncio.sleep(self._retry_seconds(failures))
                if snapshot not in self.snapshots:
                    break
        self.damage = None

    def _replace(self, old: Snapshot, new: Snapshot) -> None:
        """Serve the same version from other pages."""
        self.turns.put(new, in_place_of=old)
        if self._current is old:
            self._serve(new, self.canary)
        elif self.canary is not None and self.canary[1] is old:
            assert self._current is not None, "a canary is served beside a champion"
            self._serve(self._current, (self.canary[0], new))


def _digests(snapshot: Snapshot) -> tuple[str, ...]:
    """The SHA-256 in the names of its files."""
    return tuple(path.name.partition(".")[0] for path in snapshot.sources)
