"""The application: parts put together, routes mounted, nothing done on import."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.routing import Route

from asmg.features import Schema
from service import __version__
from service.errors import ConfigurationError, NotReady
from service.http.bodies.parse import count_parts
from service.http.bodies.read import Bodies
from service.http.dependencies import Parts
from service.http.front import Front
from service.http.hot_routes import Shortcut, by_path
from service.http.metrics import Metrics
from service.http.middleware import AtFront, BodyLimit, Observe
from service.http.problems import install_problem_handlers
from service.http.routers import admin, docs, interactions, items, ops, periods, predict, users
from service.http.schemas import Problem
from service.limits import LOOKUP_SECONDS, MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_LOOKUPS, MAX_STREAMS, MAX_WRITES
from service.serving.snapshot import Snapshot
from service.serving.swap import Champion, ServingModel
from service.settings import Settings
from service.storage.artifacts.fetch import fetch_apart
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database, require_sessions
from service.storage.postgres.repositories import Impression
from service.storage.redis.state import HistoryStore, Notices, RateBuckets, connect
from service.tasks import BoundedCalls, end_tasks, start_alone
from service.use_cases.auth import KeyCache
from service.use_cases.bootstrap import current_champion, ensure_prior
from service.use_cases.fields import described
from service.use_cases.histories import Histories
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import Ingestion, IngestResult, ingest_impressions
from service.use_cases.rate_limit import RateLimiter
from service.use_cases.watch import PeriodWatch

__all__ = ["create_app", "create_app_from_environment"]

logger = logging.getLogger(__name__)

START_SECONDS = 30.0

ROUTERS = (predict, interactions, items, users, periods, admin, ops, docs)

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

DESCRIPTION = """\
Click probabilities from a model that learns period by period (ASMG).

Ask with `POST /predict`, report what happened with `POST /interactions`, close a period with `POST /periods/close`,
and the next model takes over without a request failing. Errors are problem documents (RFC 9457). Ids are strings, or
integers of 64 bits, which are their decimal text. Calls that store take bodies with `Content-Encoding: gzip`.
"""


def create_app_from_environment() -> FastAPI:
    """The application of the `ASMG_…` variables, for servers that want a factory.

    Raises:
        ConfigurationError: no servers are named; only `asmg serve` starts them.
    """
    return create_app(Settings())


def create_app(settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application for one Postgres and one Redis.

    It starts without them, not ready, and becomes ready when they answer.

    Args:
        settings: with both DSNs.
        stopping: whether the process has been told to end; event streams end then.

    Raises:
        ConfigurationError: a DSN is missing, or the schema of the fields cannot be read.
    """
    postgres_dsn, redis_url = settings.postgres_dsn, settings.redis_url
    if postgres_dsn is None or redis_url is None:
        raise ConfigurationError(
            "expected ASMG_POSTGRES_DSN and ASMG_REDIS_URL; received neither (embedded servers come with `asmg serve`)"
        )
    schema = settings.read_features()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Parts]]:
        with suppress(NotReady):
            await require_sessions(postgres_dsn)
        database = Database(postgres_dsn, connection_seconds=settings.connection_seconds)
        redis = connect(redis_url)
        places = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url}
        artifacts = ArtifactStore(
            database, redis, fetch_apart=lambda digest, folder: fetch_apart(digest, folder, places)
        )
        notices = Notices(redis)

        async def champion() -> Champion:
            try:
                return await current_champion(database)
            except NotReady:  # there is none, unless Postgres is away
                await ensure_prior(database, artifacts, settings.prior_ctr)
                return await current_champion(database)

        store = HistoryStore(redis, database, length=settings.history_length, on_fallback=metrics.history_fallbacks.inc)
        histories = Histories(
            store,
            seconds=settings.history_cache_seconds,
            clicks=notices.clicks,
            deadline_seconds=settings.history_deadline_seconds,
        )
        serving = ServingModel(
            fetch_champion=champion,
            fetch_file=artifacts.fetch_file,
            notices=notices.swap_notices,
            folder=settings.serving_dir,
            poll_seconds=settings.swap_poll_seconds,
            on_swap=lambda snapshot: _count_swap(metrics, snapshot),
            on_trouble=metrics.swap_failures.inc,
            check_seconds=settings.snapshot_check_seconds,
            on_damage=metrics.snapshot_damage.inc,
        )
        most_streams = max(1, min(MAX_STREAMS, settings.max_connections // 2))
        watch = PeriodWatch(database, notices, most=most_streams, stopping=stopping)
        limiter = RateLimiter(
            RateBuckets(redis),
            rate=settings.rate_limit,
            burst_seconds=settings.rate_burst_seconds,
            on_refusal=metrics.rate_limited.inc,
        )
        ingestion = Ingestion(database, histories)
        writes = BoundedCalls(MAX_WRITES, settings.store_deadline_seconds, "Postgres")
        lookups = BoundedCalls(MAX_LOOKUPS, LOOKUP_SECONDS, "Postgres")

        async def store_impressions(shown: Sequence[Impression]) -> IngestResult:
            storing = ingest_impressions(database, histories, shown, settings.attribution_window)
            result = await writes.run(storing)
            metrics.note_events("impressions", result.accepted, result.duplicates, len(result.conflicts))
            return result

        impressions = ImpressionLog(store_impressions, seconds=settings.impression_deadline_seconds)
        keys = KeyCache(database, on_refusal=metrics.rate_limited.inc)
        parts = Parts(
            settings=settings,
            schema=schema,
            front=front,
            database=database,
            redis=redis,
            artifacts=artifacts,
            histories=histories,
            notices=notices,
            periods=watch,
            serving=serving,
            keys=keys,
            limiter=limiter,
            ingestion=ingestion,
            writes=writes,
            lookups=lookups,
            impressions=impressions,
            metrics=metrics,
            stopping=stopping,
        )
        followers = [
            start_alone(serving.run(), name="serve the champion"),
            start_alone(histories.listen(), name="hear of clicks"),
            start_alone(keys.follow(), name="follow the keys"),
            start_alone(watch.listen(), name="hear of progress"),
        ]
        try:
            # The server accepts connections after this, so none is answered with 503 only because a process is new.
            with suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    await keys.wait_learned()
                    await asyncio.to_thread(count_parts, b"{}")
                    await serving.wait_loaded()
            yield {"parts": parts}
        finally:
            await end_tasks(*followers)
            await impressions.close()
            await writes.close()
            await lookups.close()
            await ingestion.close()
            await limiter.close()
            await histories.close()
            await redis.aclose()
            await database.close()

    app = _Application(
        schema,
        title="asmg-service",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # `service.http.routers.docs` has it, with a policy
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        telemetry=NO_TELEMETRY,
        responses={"default": {"model": Problem, "description": "A problem document"}},
    )
    bodies = Bodies(MAX_BODIES_BYTES)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, bodies=bodies)
    app.add_middleware(Observe, metrics=metrics)  # the last one added is the outermost
    install_problem_handlers(app)
    for module in ROUTERS:
        app.include_router(module.router)
    routes = _routes(app)
    front = Front(
        root_path=settings.root_path,
        trusted_proxies=settings.trusted_proxies,
        origins=settings.cors_origins,
        parts={route.path.split("/")[1] for route in routes},
    )
    # Outermost of all, before the framework's own middleware. From here on nothing can be added to the application.
    answers = by_path(predict.router, predict.ANSWERS) | by_path(interactions.router, interactions.ANSWERS)
    shortcut = Shortcut(app.build_middleware_stack(), front, answers, metrics, bodies)
    app.middleware_stack = AtFront(shortcut, front, routes, metrics)
    return app


class _Application(FastAPI):
    """The framework's, whose description names the fields of a schema."""

    def __init__(self, fields: Schema, **settings: Any) -> None:
        super().__init__(**settings)
        self._fields = fields

    def openapi(self) -> dict[str, Any]:
        """The description of the API, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = described(super().openapi(), self._fields)
        return self.openapi_schema


def _routes(app: FastAPI) -> list[Route]:
    """Those of the routers, and what FastAPI has added by itself: the description of the API."""
    found = [*app.routes, *(route for module in ROUTERS for route in module.router.routes)]
    return [route for route in found if isinstance(route, Route)]


def _count_swap(metrics: Metrics, snapshot: Snapshot) -> None:
    metrics.model_version.set(snapshot.version)
    metrics.swaps.inc()
