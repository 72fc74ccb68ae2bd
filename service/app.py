"""The application: builds the state and the routes. Importing this module has no side effects.

`service.processes.supervisor` calls `create_app` in each api process; other servers can call
`create_app_from_environment`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.routing import Route

from service.errors import ConfigurationError, NotReady
from service.http.app_state import AppState
from service.http.bodies.parse import count_parts
from service.http.bodies.read import Bodies
from service.http.cors import Cors
from service.http.described_app import DescribedApp
from service.http.hot_routes import HotRoute, HotRoutes
from service.http.metrics import Metrics
from service.http.middleware import BodyLimit, CrossOrigin, Observe
from service.http.path_prefix import PathPrefix
from service.http.problems import install_problem_handlers
from service.http.routers import admin, docs, interactions, items, ops, periods, predict, users
from service.limits import LOOKUP_SECONDS, MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_LOOKUPS, MAX_STREAMS, MAX_WRITES
from service.serving.snapshot import Snapshot
from service.serving.swap import Champion, ServingModel
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.events import warm_up
from service.storage.postgres.pooler import require_sessions
from service.storage.postgres.repositories import Impression
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.storage.redis.rate_buckets import RateBuckets
from service.tasks import BoundedCalls, end_tasks, start_alone
from service.use_cases.auth import KeyCache, RateLimiter
from service.use_cases.bootstrap import current_champion, ensure_prior
from service.use_cases.histories import Histories
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import Ingestion, IngestResult, ingest_impressions
from service.use_cases.watch import PeriodWatch

__all__ = ["create_app", "create_app_from_environment"]

START_SECONDS = 30.0
"""How long a process that starts waits for its keys and its model; it then starts without, not ready."""

ROUTERS = (predict, interactions, items, users, periods, admin, ops, docs)


def create_app_from_environment() -> FastAPI:
    """The application with the settings of the `ASMG_…` variables, for servers that call a factory.

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
    if settings.postgres_dsn is None or settings.redis_url is None:
        raise ConfigurationError(
            "expected ASMG_POSTGRES_DSN and ASMG_REDIS_URL; received neither (embedded servers come with `asmg serve`)"
        )
    schema = settings.read_features()
    metrics, bodies, cors = Metrics(), Bodies(MAX_BODIES_BYTES), Cors(settings.cors_origins)
    routes = [route for module in ROUTERS for route in module.router.routes if isinstance(route, Route)]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, AppState]]:
        async with _running(settings, metrics, cors, prefix, stopping) as state:
            yield {"app": state}

    app = DescribedApp(schema, lifespan)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, bodies=bodies)
    app.add_middleware(Observe, metrics=metrics)  # the last one added is the outermost
    install_problem_handlers(app)
    for module in ROUTERS:
        app.include_router(module.router)
    routes += [route for route in app.routes if isinstance(route, Route)]  # FastAPI's own, such as /openapi.json
    prefix = PathPrefix(
        root_path=settings.root_path,
        trusted_proxies=settings.trusted_proxies,
        first_segments={route.path.split("/")[1] for route in routes},
    )
    # These go around the framework's own middleware. From here on nothing can be added to the application.
    hot = [route for route in routes if isinstance(route, HotRoute)]
    app.middleware_stack = HotRoutes(app.build_middleware_stack(), prefix, hot, metrics, bodies)
    if cors.is_enabled:
        app.middleware_stack = CrossOrigin(app.middleware_stack, cors, prefix, routes, metrics)
    return app


@asynccontextmanager
async def _running(
    settings: Settings, metrics: Metrics, cors: Cors, prefix: PathPrefix, stopping: Callable[[], bool]
) -> AsyncIterator[AppState]:
    """The state of a running application; what it has started ends with the block, in the opposite order."""
    postgres_dsn, redis_url = settings.postgres_dsn, settings.redis_url
    assert postgres_dsn is not None and redis_url is not None  # `create_app` has checked
    with suppress(NotReady):
        await require_sessions(postgres_dsn)
    async with AsyncExitStack() as stack:
        database = Database(postgres_dsn, connection_seconds=settings.connection_seconds)
        stack.push_async_callback(database.close)
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        notices = Notices(redis)
        histories = Histories(
            HistoryStore(redis, database, length=settings.history_length, on_fallback=metrics.history_fallbacks.inc),
            seconds=settings.history_cache_seconds,
            clicks=notices.clicks,
            deadline_seconds=settings.history_deadline_seconds,
        )
        stack.push_async_callback(histories.close)
        limiter = RateLimiter(
            RateBuckets(redis),
            rate=settings.rate_limit,
            burst_seconds=settings.rate_burst_seconds,
            on_refusal=metrics.rate_limited.inc,
        )
        stack.push_async_callback(limiter.close)
        ingestion = Ingestion(database, histories)
        stack.push_async_callback(ingestion.close)
        lookups = BoundedCalls(MAX_LOOKUPS, LOOKUP_SECONDS, "Postgres")
        stack.push_async_callback(lookups.close)
        writes = BoundedCalls(MAX_WRITES, settings.store_deadline_seconds, "Postgres")
        stack.push_async_callback(writes.close)

        async def store_impressions(shown: Sequence[Impression]) -> IngestResult:
            storing = ingest_impressions(database, histories, shown, settings.attribution_window)
            result = await writes.run(storing)
            metrics.note_events("impressions", result.accepted, result.duplicates, len(result.conflicts))
            return result

        impressions = ImpressionLog(store_impressions, seconds=settings.impression_deadline_seconds)
        stack.push_async_callback(impressions.close)
        artifacts = ArtifactStore(database, redis)
        streams = max(1, min(MAX_STREAMS, settings.max_connections // 2))
        state = AppState(
            settings=settings,
            schema=settings.read_features(),
            prefix=prefix,
            cors=cors,
            database=database,
            redis=redis,
            artifacts=artifacts,
            histories=histories,
            notices=notices,
            periods=PeriodWatch(database, notices, most=streams, stopping=stopping),
            serving=_serving_model(settings, database, artifacts, notices, metrics),
            keys=KeyCache(database, on_refusal=metrics.rate_limited.inc),
            limiter=limiter,
            ingestion=ingestion,
            writes=writes,
            lookups=lookups,
            impressions=impressions,
            metrics=metrics,
            stopping=stopping,
        )
        followers = [
            start_alone(state.serving.run(), name="serve the champion"),
            start_alone(histories.listen(), name="hear of clicks"),
            start_alone(state.keys.follow(), name="follow the keys"),
            start_alone(state.periods.listen(), name="hear of progress"),
        ]
        stack.push_async_callback(end_tasks, *followers)
        # The server accepts connections after this, so that no request gets 503 only because the process is new.
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await asyncio.to_thread(warm_up)
                await state.keys.wait_learned()
                await asyncio.to_thread(count_parts, b"{}")
                await state.serving.wait_loaded()
        yield state


def _serving_model(
    settings: Settings, database: Database, artifacts: ArtifactStore, notices: Notices, metrics: Metrics
) -> ServingModel:
    async def champion() -> Champion:
        try:
            return await current_champion(database)
        except NotReady:  # there is none, or Postgres does not answer
            await ensure_prior(database, artifacts, settings.prior_ctr)
            return await current_champion(database)

    def count_swap(snapshot: Snapshot) -> None:
        metrics.model_version.set(snapshot.version)
        metrics.swaps.inc()

    return ServingModel(
        fetch_champion=champion,
        fetch_file=artifacts.fetch_file,
        notices=notices.swap_notices,
        folder=settings.serving_dir,
        poll_seconds=settings.swap_poll_seconds,
        on_swap=count_swap,
        on_trouble=metrics.swap_failures.inc,
        check_seconds=settings.snapshot_check_seconds,
        on_damage=metrics.snapshot_damage.inc,
    )
