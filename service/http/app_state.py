"""What the running application consists of. `service.app` builds it at start; every request sees the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from asmg.features import Schema
from service.http.cors import Cors
from service.http.metrics import Metrics
from service.http.path_prefix import PathPrefix
from service.serving.clock import ServerClock
from service.serving.swap import ServingModel
from service.settings import Settings
from service.storage.artifacts.objects import Objects
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.redis.notices import Notices
from service.tasks import BoundedCalls
from service.use_cases.auth import KeyCache, RateLimiter
from service.use_cases.chosen_version import ChosenVersions
from service.use_cases.histories import Histories
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import Ingestion
from service.use_cases.watch import PeriodWatch

__all__ = ["AppState", "State"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """The running application. The lifespan of the app yields it; in an ASGI scope it is `scope["state"]["app"]`."""

    settings: Settings
    schema: Schema
    """Of the fields that clients may send."""
    prefix: PathPrefix
    cors: Cors
    database: Database
    redis: Redis
    artifacts: ArtifactStore
    objects: Objects | None
    """The object store that `artifacts` uses."""
    histories: Histories
    notices: Notices
    periods: PeriodWatch
    serving: ServingModel
    chosen: ChosenVersions
    """Other versions, with which a caller scores to compare them."""
    clock: ServerClock
    """Of Postgres."""
    keys: KeyCache
    limiter: RateLimiter
    ingestion: Ingestion
    writes: BoundedCalls
    """Runs the calls that store something while a client waits."""
    lookups: BoundedCalls
    """Runs the calls that read all logs: deletions, and what is stored about an id."""
    impressions: ImpressionLog
    """Stores the predictions that are to be logged."""
    metrics: Metrics
    stopping: Callable[[], bool]
    """Whether the process has been told to end. Event streams end then, because the server waits for them."""
    connections: set[object] = field(default_factory=set)
    """Open connections of the process."""


async def _app_state(request: Request) -> AppState:
    state: AppState = request.state.app
    return state


State = Annotated[AppState, Depends(_app_state)]
"""A parameter of a route that gets the state."""
