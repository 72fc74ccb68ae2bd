"""`asmg import`: a log file goes through the same cycle as live traffic, period by period.

The file is read in blocks and sorted on disk (`spool.py`), so a log may be larger than the memory.

Nothing is remembered between two runs but what the database holds. An event is called after the file, the options and
its place in the log, and so is the close of each piece; so a second run of the same command finds what is there
already, wherever the first one was stopped, and the outcome is that of a run that was not. Pieces wait for each other's
update, for the catalogue that an update sees must not depend on how quick it was.
"""

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import orjson
from rich.console import Console
from rich.markup import escape

from asmg.datasets.generic import LogOptions, find_form
from asmg.datasets.scan import Malformed
from asmg.log_format import CutBy
from service.cli.console import PeriodLine, ScoreLines, StageBar, make_console
from service.cli.import_log.spool import Spool, temporary_spool
from service.errors import EmptyPeriod, PeriodConflict, ServiceError
from service.limits import MAX_CATALOGUE_ITEMS, MAX_INTERACTIONS
from service.processes.children import INTERRUPTED, Child, Interrupted, StopRequest
from service.processes.supervisor import environment_of, installation
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, FeatureVersion, Interaction, PeriodStatus
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.use_cases.audit import command_line
from service.use_cases.catalogue import put_items, put_users
from service.use_cases.close_period import close_period
from service.use_cases.ingest import ingest
from service.use_cases.status import PeriodDocument, get_model
from service.use_cases.watch import watch_period

__all__ = ["ImportOptions", "run_import"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DIGEST_LENGTH = 16
_ORDER = 2  # what event ids count has changed: another number makes another import of the same file
STOP_SECONDS = 15.0

MODELS = {"generated": "generated", "incremental": "incremental", "frozen": "baseline"}
"""Column → the model's name in a period's scores."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Which log, and how it becomes periods."""

    file: Path
    by: CutBy = "day"
    """How it is cut, see `asmg.datasets.cut`."""
    size: int = 1
    """Of what `by` says."""
    log: LogOptions = field(default_factory=LogOptions)
    """What its columns are called, and what they mean."""
    malformed: Malformed = "error"
    """What becomes of a row that cannot be read."""
    negatives: int = 1
    """Sampled for each positive of a log of positives only."""
    seed: int = 0
    """Of the negatives."""
    append: bool = False
    """Whether the open period may hold other events already."""
    worker: bool = True
    """Whether to run a worker; without, one has to run elsewhere."""

    def __post_init__(self) -> None:
        if self.malformed not in get_args(Malformed):
            raise ValueError(f"malformed: expected error or drop; received {self.malformed!r}")

    def digest(self) -> str:
        """Names this import: the same for the same content of the file and the same options that shape the log."""
        with self.file.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        shaping = {name: getattr(self, name) for name in ("by", "size", "malformed", "negatives", "seed")}
        shaping |= {"log": asdict(self.log) | {"future_seconds": None}, "order": _ORDER}
        whole = orjson.dumps([content, shaping], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(whole).hexdigest()[:DIGEST_LENGTH]


def run_import(options: ImportOptions, settings: Settings) -> int:
    """Import the log; progress and scores go to the standard output.

    Returns:
        the exit code: 0, 1 where the update on a period failed, 130 where it was interrupted.

    Raises:
        LogFormatError, OSError: the file cannot be used.
        ServiceError: the database is away, the open period holds events of others, or the temporary folder is full.
    """
    # What happens is on the standard output; the log of the worker is in a file, shown where it fails.
    logging.getLogger().setLevel(logging.WARNING)
    console = make_console()
    with StopRequest() as stop, ExitStack() as stack:
        try:
            console.print(f"reading {escape(str(options.file))}", soft_wrap=True)
            digest = options.digest()
            with temporary_spool(stop.check) as spool:
                plan = _planned(options, settings, digest, spool, console, stop)
                running = stack.enter_context(installation(settings))
                stop.check()
                worker = stack.enter_context(_worker(running, stop)) if options.worker else None
                lines = ScoreLines(console, list(MODELS))
                with StageBar(console) as bar:
                    failed = stop.run(lambda: _import(options, running, plan, lines, bar, worker))
            console.print(f"done; {failed} updates failed" if failed else "done", soft_wrap=True)
            return 1 if failed else 0
        except Interrupted:
            console.print("interrupted; the same command goes on from here")
            return INTERRUPTED


def _planned(
    options: ImportOptions, settings: Settings, digest: str, spool: Spool, console: Console, stop: StopRequest
) -> "_Plan":
    """Read the file and say what it holds."""
    with StageBar(console) as bar:
        _fill(spool, options, settings.future_tolerance_seconds, bar, stop)
    plan = _Plan(digest, spool, spool.pieces(options.by, options.size))
    console.print(f"import {digest}: {len(spool):,} interactions in {len(plan.pieces):,} periods", soft_wrap=True)
    for reason, count in spool.dropped.items():
        console.print(f"left out: {count:,} {escape(reason)}", soft_wrap=True)
    if spool.without_negative:
        console.print(f"{spool.without_negative:,} positives got no negative: their users know every item")
    return plan


def _fill(spool: Spool, options: ImportOptions, future_seconds: float, bar: StageBar, stop: StopRequest) -> None:
    """Read the file; Interrupted where a signal comes."""

    def show(fraction: float) -> None:
        stop.check()
        bar.show(f"reading {options.file.name}", fraction)

    spool.fill(
        find_form(options.file, replace(options.log, future_seconds=future_seconds)),
        options.by,
        malformed=options.malformed,
        negatives=options.negatives,
        seed=options.seed,
        progress=show,
    )
    stop.check()


@contextmanager
def _worker(settings: Settings, stop: StopRequest) -> Iterator[Child]:
    """A worker of our own. Where another one leads already it only waits for that one to end."""
    with tempfile.TemporaryDirectory(prefix="asmg-import-") as folder:
        command = [sys.executable, "-m", "service.processes.supervisor", "worker", str(os.getpid())]
        environment = {**os.environ, **environment_of(settings)}
        worker = Child("the worker", command, environment=environment, log=Path(folder) / "worker.log")
        try:
            yield worker
        finally:
            # Its stages are restartable: whatever is cut off here is done again by the next worker.
            worker.stop(seconds=STOP_SECONDS, hurried=lambda: stop.hurried)


@dataclass(frozen=True)
class _Plan:
    """What is to be imported."""

    digest: str
    spool: Spool
    pieces: list[range]

    def key(self, piece: int) -> str:
        """Idempotency key of the close of a piece."""
        return f"import:{self.digest}:{piece}"

    @property
    def prefix(self) -> str:
        """What the ids of all its events begin with."""
        return f"{self.digest}-"

    def events(self, places: range) -> EventBatch:
        """Some interactions of the log."""
        # Padded: events of one batch are stored in the order of their ids, which so is the order of the log.
        return EventBatch.of(
            [
                Interaction(
                    f"{self.prefix}{event.place:010d}",
                    event.user_id,
                    event.item_id,
                    event.label,
                    EPOCH + timedelta(milliseconds=event.time_ms),
                    context=event.context,
                )
                for event in self.spool.events(places)
            ]
        )

    def features(self, of: Literal["user", "item"], places: range) -> list[FeatureVersion]:
        """What some interactions of the log tell of their users, or of their items."""
        return [
            FeatureVersion(id_, EPOCH + timedelta(milliseconds=time_ms), orjson.loads(told))
            for id_, time_ms, told in self.spool.features(of, places)
        ]


async def _import(
    options: ImportOptions, settings: Settings, plan: _Plan, lines: ScoreLines, bar: StageBar, worker: Child | None
) -> int:
    """Import all pieces; return how many updates failed."""
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=4), connect(settings.redis_url)
    try:
        backfill = _Backfill(
            plan,
            database,
            HistoryStore(redis, database, length=settings.history_length),
            Notices(redis),
            bar,
            append=options.append,
        )
        running = backfill.run(lines)
        return await (running if worker is None else worker.beside(running))
    finally:
        await redis.aclose()
        await database.close()


class _Backfill:
    def __init__(
        self, plan: _Plan, database: Database, histories: HistoryStore, notices: Notices, bar: StageBar, *, append: bool
    ) -> None:
        self._plan, self._database, self._histories, self._notices = plan, database, histories, notices
        self._bar, self._append = bar, append

    async def run(self, lines: ScoreLines) -> int:
        failed = 0
        lines.header()
        for piece, categories in enumerate(self._plan.spool.new_categories(self._plan.pieces), start=1):
            title = f"piece {piece} of {len(self._plan.pieces)}"
            self._bar.begin(f"{title}: storing")
            number = await self._closed(piece) or await self._store(piece, categories, title)
            document = await self._updated(number, title)
            failed += document.status is not PeriodStatus.UPDATED
            lines.period(await self._line(document))
        return failed

    async def _closed(self, piece: int) -> int | None:
        """The period that an earlier run made of this piece."""
        async with self._database.read() as session:
            period = await session.periods.by_idempotency_key(self._plan.key(piece))
        return None if period is None else period.number

    async def _store(self, piece: int, categories: Mapping[str, tuple[str, ...]], title: str) -> int:
        """Store a piece, or what is missing of it, and close the period; return its number."""
        number = await self._own_period()
        items = list(categories.items())
        for start in range(0, len(items), MAX_CATALOGUE_ITEMS):
            await put_items(self._database, dict(items[start : start + MAX_CATALOGUE_ITEMS]))
        places = self._plan.pieces[piece - 1]
        for start in range(0, len(places), MAX_INTERACTIONS):
            self._bar.show(f"{title}: storing {len(places):,} interactions", start / len(places))
            some = places[start : start + MAX_INTERACTIONS]
            users, of_items = self._plan.features("user", some), self._plan.features("item", some)
            if users:
                await put_users(self._database, self._histories, users)
            if of_items:
                await put_items(self._database, {}, of_items)
            events = self._plan.events(some)
            await ingest(self._database, self._histories, events)
        try:
            period = await close_period(
                self._database,
                expected_period=number,
                idempotency_key=self._plan.key(piece),
                actor=command_line(),
                reason="asmg import",
            )
        except (EmptyPeriod, PeriodConflict) as error:
            raise ServiceError(f"{title}: somebody else has closed the period that it was stored in: {error}") from None
        return period.number

    async def _own_period(self) -> int:
        """The number of the open period.

        Raises:
            ServiceError: it holds events that are not of this import.
        """
        async with self._database.read() as session:
            period = await session.periods.open()
            others = await session.interactions.count(period.number)
            others -= await session.interactions.count(period.number, id_prefix=self._plan.prefix)
        if others and not self._append:
            raise ServiceError(
                f"the open period {period.number} holds {others:,} interactions that are not of this import; "
                "close it first, or give --append to add to it"
            )
        return period.number

    async def _updated(self, number: int, title: str) -> PeriodDocument:
        """The period once its update has ended."""
        document: PeriodDocument | None = None
        async for document in watch_period(self._database, self._notices, number):
            stage = document.stage or "waiting for the worker"
            self._bar.show(f"{title}: {stage}", document.progress or 0.0)
        assert document is not None, "a period that exists has a document"
        return document

    async def _line(self, document: PeriodDocument) -> PeriodLine:
        scores = {name: document.scores.get(model) for name, model in MODELS.items()}
        serves = str(document.status)
        if document.version is not None:
            serves = f"v{document.version} {(await get_model(self._database, document.version)).kind}"
        return PeriodLine(
            period=document.period,
            events=document.events,
            auc={name: None if found is None else found.auc for name, found in scores.items()},
            logloss={name: None if found is None else found.logloss for name, found in scores.items()},
            serves=serves,
            seconds={stage.stage: stage.seconds for stage in document.stages if stage.seconds is not None},
            notes=[document.error] if document.error else [],
        )
