"""What runs within one transaction: the repositories, read sessions, units of work, and the advisory locks they take.

`Database` opens a session for each read or write of a use case.
"""

from collections.abc import Callable
from enum import IntEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.repositories import (
    Alerts,
    ApiProcesses,
    Artifacts,
    Audit,
    Breakdowns,
    Canaries,
    Deletions,
    Deliveries,
    Entities,
    Evaluations,
    Exports,
    Features,
    Interactions,
    Items,
    Keys,
    Labels,
    Models,
    Past,
    PeriodLogs,
    Periods,
    Removals,
    Samples,
    Shadows,
    Stages,
    Takeovers,
    Traces,
    Webhooks,
)

__all__ = ["Lock", "ReadSession", "Session", "UnitOfWork"]


TAKEOVER_MILLISECONDS = 2000
"""How long a client that holds `Lock.TAKEOVER` may be silent before Postgres ends its session."""


class Lock(IntEnum):
    """Keys of the advisory locks. The upper half spells `"asmg"`, so that they differ from those of other programs."""

    LOG = 0x61736D67_00000001
    """The end of the log: shared by ingestion, exclusive while a period is closed."""
    MODELS = 0x61736D67_00000002
    """Model versions and aliases: exclusive while one is published or moved."""
    MIGRATE = 0x61736D67_00000003
    """The schema: exclusive while it changes."""
    WORKER = 0x61736D67_00000004
    """Held by the leading worker for as long as it leads."""
    CATALOGUE = 0x61736D67_00000005
    """The catalogue: shared by those who store items, exclusive for a moment when an update begins to read. From then
    on it sees every entry that was noted with its period or one before."""
    TAKEOVER = 0x61736D67_00000006
    """From when on which version is served: exclusive while a moment is set, shared while an api process looks."""


class Session:
    """The repositories over one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.periods = Periods(connection)
        self.period_logs = PeriodLogs(connection)
        self.stages = Stages(connection)
        self.interactions = Interactions(connection)
        self.labels = Labels(connection)
        self.features = Features(connection)
        self.past = Past(connection)
        self.items = Items(connection)
        self.entities = Entities(connection)
        self.models = Models(connection)
        self.takeovers = Takeovers(connection)
        self.canaries = Canaries(connection)
        self.processes = ApiProcesses(connection)
        self.artifacts = Artifacts(connection)
        self.evaluations = Evaluations(connection)
        self.breakdowns = Breakdowns(connection)
        self.exports = Exports(connection)
        self.samples = Samples(connection)
        self.shadows = Shadows(connection)
        self.keys = Keys(connection)
        self.audit = Audit(connection)
        self.alerts = Alerts(connection)
        self.webhooks = Webhooks(connection)
        self.deliveries = Deliveries(connection)
        self.deletions = Deletions(connection)
        self.traces = Traces(connection)
        self.removals = Removals(connection)


class ReadSession(Session):
    """One snapshot of the database. Postgres refuses every write in it."""


class UnitOfWork(Session):
    """One transaction, rolled back unless `commit` is called.

    A statement after `commit` opens the next transaction, to which the same applies. Locks end with their transaction.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__(connection)
        self._then: list[Callable[[], None]] = []

    def after_commit(self, call: Callable[[], None]) -> None:
        """Have `call` made when the writes so far are durable: a line of the log about them, for example."""
        self._then.append(call)

    async def commit(self) -> None:
        """Make all writes since the beginning, or since the last commit, durable."""
        await self.connection.commit()
        calls, self._then = self._then, []
        for call in calls:
            call()

    async def lock_shared(self, name: Lock) -> None:
        """Wait until nobody holds `name` exclusively, then hold it together with others until the transaction ends."""
        await self.connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": int(name)})

    async def lock_exclusive(self, name: Lock) -> None:
        """Wait until nobody holds `name`, then hold it alone until the transaction ends."""
        await self.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(name)})

    async def lock_takeover(self) -> None:
        """Hold `Lock.TAKEOVER` alone until the transaction ends. A caller that is frozen loses it soon, since all api
        processes look for news under it.
        """
        await self.connection.execute(
            text(
                "SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true), "
                "pg_advisory_xact_lock(:key)"
            ),
            {"milliseconds": str(TAKEOVER_MILLISECONDS), "key": int(Lock.TAKEOVER)},
        )
