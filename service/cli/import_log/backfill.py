"""Stores the pieces of an import: each goes through the same cycle as live traffic.

The catalogue and the interactions of a piece are stored in the open period, the period is closed, and the next piece
waits for the worker's update: the catalogue that an update sees must not depend on how quick the one before it was.
"""

from collections.abc import Mapping

from service.cli.console import PeriodLine, ScoreLines, StageBar
from service.cli.import_log.plan import ImportPlan
from service.errors import EmptyPeriod, PeriodConflict, ServiceError
from service.limits import MAX_CATALOGUE_ITEMS, MAX_INTERACTIONS
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodStatus
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.use_cases.audit import command_line
from service.use_cases.catalogue import put_items, put_users
from service.use_cases.close_period import close_period
from service.use_cases.ingest import ingest
from service.use_cases.model_status import get_model
from service.use_cases.status import PeriodDocument
from service.use_cases.watch import watch_period

__all__ = ["MODELS", "Backfill"]

MODELS = {"generated": "generated", "incremental": "incremental", "frozen": "baseline"}
"""Column of the output → name of the model in a period's scores."""


class Backfill:
    """Stores the pieces of a plan one after the other and waits for the update of each.

    Args:
        plan: the pieces.
        database: with a current schema.
        histories: told of new features of users.
        notices: tell when a period has changed.
        bar: shows what is being done.
        append: whether the open period may hold events of others.
    """

    def __init__(
        self,
        plan: ImportPlan,
        database: Database,
        histories: HistoryStore,
        notices: Notices,
        bar: StageBar,
        *,
        append: bool,
    ) -> None:
        self._plan, self._database, self._histories, self._notices = plan, database, histories, notices
        self._bar, self._append = bar, append

    async def run(self, lines: ScoreLines) -> int:
        """Import all pieces, print a line for each, and return how many updates failed."""
        failed = 0
        lines.header()
        for piece, categories in enumerate(self._plan.log.new_categories(self._plan.pieces), start=1):
            title = f"piece {piece} of {len(self._plan.pieces)}"
            self._bar.begin(f"{title}: storing")
            number = await self._period_closed_before(piece) or await self._store(piece, categories, title)
            document = await self._wait_for_update(number, title)
            failed += document.status is not PeriodStatus.UPDATED
            lines.period(await self._line(document))
        return failed

    async def _period_closed_before(self, piece: int) -> int | None:
        """The number of the period that an earlier run has made of this piece."""
        async with self._database.read() as session:
            period = await session.periods.by_idempotency_key(self._plan.key(piece))
        return None if period is None else period.number

    async def _store(self, piece: int, categories: Mapping[str, tuple[str, ...]], title: str) -> int:
        """Store a piece, or what is missing of it, and close the period; return its number."""
        number = await self._open_period()
        items = list(categories.items())
        for start in range(0, len(items), MAX_CATALOGUE_ITEMS):
            await put_items(self._database, dict(items[start : start + MAX_CATALOGUE_ITEMS]))
        places = self._plan.pieces[piece - 1]
        for start in range(0, len(places), MAX_INTERACTIONS):
            self._bar.show(f"{title}: storing {len(places):,} interactions", start / len(places))
            batch = places[start : start + MAX_INTERACTIONS]
            users, of_items = self._plan.features("user", batch), self._plan.features("item", batch)
            if users:
                await put_users(self._database, self._histories, users)
            if of_items:
                await put_items(self._database, {}, of_items)
            await ingest(self._database, self._histories, self._plan.events(batch))
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

    async def _open_period(self) -> int:
        """The number of the open period.

        Raises:
            ServiceError: it holds events that are not of this import, without --append.
        """
        async with self._database.read() as session:
            period = await session.periods.open()
            others = await session.interactions.count(period.number)
            others -= await session.interactions.count(period.number, id_prefix=self._plan.event_id_prefix)
        if others and not self._append:
            raise ServiceError(
                f"the open period {period.number} holds {others:,} interactions that are not of this import; "
                "close it first, or give --append to add to it"
            )
        return period.number

    async def _wait_for_update(self, number: int, title: str) -> PeriodDocument:
        """Show the stages of the update; return the period once the update has ended."""
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
