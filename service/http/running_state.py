"""Build what the application consists of when it starts, and close it when it ends; `service.app` calls it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from service.errors import NotReady
from service.http.app_state import AppState
from service.http.bodies.parse import count_parts
from service.http.cors import Cors
from service.http.metrics import Metrics
from service.http.path_prefix import PathPrefix
from service.limits import LOOKUP_SECONDS, MAX_LOOKUPS, MAX_STREAMS, MAX_WRITES
from service.serving.clock import ServerClock
from service.serving.snapshot import Snapshot
from service.serving.swap import ServingModel
from service.serving.turns import Champion
from service.settings import Settings
from service.storage.artifacts.objects import configured_objects
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.pooler import require_sessions
from service.storage.postgres.repositories import Impression
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.storage.redis.rate_buckets import RateBuckets
from service.tasks import BoundedCalls, end_tasks, start_alone
from service.use_cases.auth import KeyCache, RateLimiter
from service.use_cases.bootstrap import current_champions, ensure_prior
from service.use_cases.chosen_version import ChosenVersions
from service.use_cases.histories import Histories
from service.use_cases.impressions import ImpressionLog
from service.use_cases.ingest import Ingestion, IngestResult, ingest_impressions
from service.use_cases.probes import probe_servers
from service.use_cases.registration import Registration
from service.use_cases.watch import PeriodWatch

__all__ = ["running_state"]

START_SECONDS = 30.0
"""How long a process that starts waits for its keys and its model; it then starts without, not ready."""


@asynccontextmanager
async def running_state(
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
        objects = configured_objects(settings)
        artifacts = ArtifactStore(database, redis, objects, to_postgres=settings.artifacts_to_postgres)
        clock = ServerClock()
        serving = _serving_model(settings, database, artifacts, notices, metrics, clock)

        def note_lag() -> None:
            metrics.note_turns(serving.turns.ready_version, serving.turns.lag_seconds)

        registration = Registration(database, notices, serving, clock, settings, on_beat=note_lag)
        serving.on_ready = registration.wake
        streams = max(1, min(MAX_STREAMS, settings.max_connections // 2))
        state = AppState(
            settings=settings,
            schema=settings.read_features(),
            prefix=prefix,
            cors=cors,
            database=database,
            redis=redis,
            artifacts=artifacts,
            objects=objects,
            histories=histories,
            notices=notices,
            periods=PeriodWatch(database, notices, most=streams, stopping=stopping),
            serving=serving,
            chosen=ChosenVersions(database, artifacts, lambda: serving.snapshots, settings.serving_dir / "chosen"),
            clock=clock,
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
            start_alone(serving.run(), name="serve the champion"),
            start_alone(registration.run(), name="register this process"),
            start_alone(histories.listen(), name="hear of clicks"),
            start_alone(state.keys.follow(), name="follow the keys"),
            start_alone(state.periods.listen(), name="hear of progress"),
            start_alone(probe_servers(database, redis, metrics.servers), name="probe the servers"),
        ]
        stack.push_async_callback(end_tasks, *followers)
        # The server accepts connections after this, so that no request gets 503 only because the process is new.
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await state.keys.wait_learned()
                await asyncio.to_thread(count_parts, b"{}")
                await state.serving.wait_loaded()
                await registration.wait_registered()
        yield state


def _serving_model(
    settings: Settings,
    database: Database,
    artifacts: ArtifactStore,
    notices: Notices,
    metrics: Metrics,
    clock: ServerClock,
) -> ServingModel:
    async def champions() -> Sequence[Champion]:
        try:
            return await current_champions(database)
        except NotReady:  # there is none, or Postgres does not answer
            await ensure_prior(database, artifacts, settings.prior_ctr)
            return await current_champions(database)

    def count_swap(snapshot: Snapshot) -> None:
        metrics.model_version.set(snapshot.version)
        metrics.swaps.inc()

    return ServingModel(
        fetch_champions=champions,
        fetch_file=artifacts.fetch_file,
        notices=notices.swap_notices,
        folder=settings.serving_dir,
        poll_seconds=settings.swap_poll_seconds,
        clock=clock,
        lead_seconds=settings.swap_lead_seconds,
        refuses=settings.swap_laggards == "refuse",
        on_swap=count_swap,
        on_trouble=metrics.swap_failures.inc,
        check_seconds=settings.snapshot_check_seconds,
        on_damage=metrics.snapshot_damage.inc,
    )
