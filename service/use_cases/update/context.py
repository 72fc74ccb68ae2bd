"""What all stages of an update share: dependencies, the state it starts from, and the check that it is still theirs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

from asmg.features import DEFAULT, Schema
from asmg.ranks import ALONE, Ranks
from asmg.team import Team
from asmg.updaters.base import Updater
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import AliasName, ModelVersion, Stage
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.telemetry.worker_metrics import WorkerMetrics

__all__ = [
    "ACTOR",
    "Progress",
    "Superseded",
    "UpdateContext",
    "UpdateStart",
    "head_version",
    "hold_period",
    "origin_of",
]

ACTOR = "worker"
"""Who publishes versions and moves aliases, in the audit."""

Progress = Callable[[float], None]
"""Takes the fraction of a stage that is done, 0 to 1; may be called from the thread that trains."""


class Superseded(Exception):
    """This update's starting state changed; nothing was published.

    An operator has changed the sequence of models or the period, or another worker has taken the period over.
    """


@dataclass(frozen=True)
class UpdateContext:
    """Dependencies of an update."""

    settings: Settings
    database: Database
    artifacts: ArtifactStore
    notices: Notices
    updater: Updater[Any]
    """The update method."""
    histories: HistoryStore
    schema: Schema = DEFAULT
    """The fields of context, users and items."""
    worker: str = field(default_factory=lambda: uuid4().hex)
    """Name of this worker process; no other process ever has the same."""
    beat: Callable[[], None] = lambda: None
    """Called whenever work has got further, also from the thread that trains."""
    noted: Callable[[], None] = lambda: None
    """Called whenever notes of stages are stored: a later attempt continues behind these stages."""
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    ranks: Ranks = ALONE
    """The processes that train together, of which this is rank 0."""

    @cached_property
    def team(self) -> Team[Any]:
        """Runs the update method's training on all ranks."""
        return Team(self.updater, self.ranks)


@dataclass(frozen=True, kw_only=True)
class UpdateStart:
    """What an update starts from, or continues from after a crash."""

    period: int
    """Number of the sealed period."""
    head: ModelVersion
    """The version whose training state the update continues."""
    late: bool
    """Whether a later period was learned before this one."""
    done: Mapping[str, Stage]
    """Stages that an earlier attempt has finished, by name."""


def origin_of(context: UpdateContext, head: ModelVersion) -> dict[str, Any]:
    """What the results of the stages depend on besides the log: training state, method and schema (JSON).

    Stages of an earlier attempt are used again only where this is the same.
    """
    return {"head": head.version, "schema": context.schema.to_json(), **context.updater.signature()}


async def head_version(work: UnitOfWork) -> ModelVersion:
    """The version whose training state the next update continues."""
    alias = await work.models.alias(AliasName.HEAD)
    assert alias is not None, "version 0 is made before the first update"
    version = await work.models.get(alias.version)
    assert version is not None, "aliases refer to versions"
    return version


async def hold_period(work: UnitOfWork, context: UpdateContext, period: int, *, crashes: int | None = None) -> None:
    """Make sure that this worker still updates the period, until the transaction ends.

    Args:
        work: the transaction that is about to write something of the update.
        context: names the worker.
        period: number of the period.
        crashes: replaces the period's count of crashed workers; None leaves it.

    Raises:
        Superseded: the period belongs to another worker, or waits for no update.
    """
    if await work.periods.hold(period, context.worker, crashes=crashes) is None:
        raise Superseded(f"this worker does not update period {period} any more")
