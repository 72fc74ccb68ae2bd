"""`/healthz`, `/readyz`, `/metrics`: liveness, readiness and metrics, which need no key."""

import asyncio
import math
import time
from collections.abc import Awaitable

from fastapi import APIRouter, Response

from service.errors import NotReady
from service.http.app_state import AppState, State
from service.http.metrics import CONTENT_TYPE_LATEST
from service.http.schemas import Health, Readiness
from service.serving.swap import ServingModel
from service.tasks import start_for_caller
from service.use_cases.alerts import alert_counts
from service.use_cases.model_status import gate_summary
from service.use_cases.processes import list_processes
from service.use_cases.status import label_totals, period_counts
from service.use_cases.webhooks.endpoints import delivery_counts

router = APIRouter(tags=["operations"])

PROBE_SECONDS = 1.5
"""How long readiness and metrics wait for Postgres and Redis; less than the timeout of most uptime probes."""


# Uptime probes and load balancers often send HEAD.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def get_health() -> Health:
    """Answers as long as the event loop turns; says nothing of Postgres, Redis or a model."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can the process predict and store?")
async def get_readiness(state: State) -> Readiness:
    """Ready when a model is loaded and Postgres answers; without Redis the service is slower, not down. A process that
    cannot load the newest model goes on with the one it has, and says so here; with `ASMG_SWAP_LAGGARDS=refuse` it is
    not ready then.
    """
    postgres, redis = await asyncio.gather(_probe(state.database.ping()), _probe(state.redis.ping()))
    snapshot = state.serving.current()
    if postgres != "ok":
        raise NotReady(f"Postgres: {postgres}")
    return Readiness(
        model_version=snapshot.version,
        period=snapshot.period,
        checks={
            "model": _model(state.serving),
            "swap": state.serving.turns.trouble or "ok",
            "postgres": postgres,
            "redis": redis,
        },
    )


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(state: State) -> Response:
    """The text exposition format; what Postgres does not tell in time is as it was."""
    await asyncio.gather(_probe(_note_stored(state)), _probe(_note_worker(state)))
    # With several api processes it reads files, which is done in a thread.
    return Response(await asyncio.to_thread(state.metrics.render), media_type=CONTENT_TYPE_LATEST)


async def _note_stored(state: AppState) -> None:
    state.metrics.note_labels(await label_totals(state.database))
    state.metrics.note_periods(await period_counts(state.database))
    alerts, deliveries = await alert_counts(state.database), await delivery_counts(state.database)
    state.metrics.note_notifications(alerts, deliveries)
    gate = await gate_summary(state.database)
    state.metrics.note_gate(gate.decisions, gate.in_a_row, gate.losses())
    listed = await list_processes(state.database)
    ready = sum(process.ready for process in listed.processes)
    behind = sum(process.behind for process in listed.processes)
    state.metrics.note_processes(listed.champion, len(listed.processes), ready, behind)


async def _note_worker(state: AppState) -> None:
    at = await state.notices.leader_at()
    state.metrics.note_worker(math.inf if at is None else max(0.0, time.time() - at))


def _model(serving: ServingModel) -> str:
    version = serving.current().version
    if serving.trouble is not None:
        return f"version {version} is served on; the champion was not loaded: {serving.trouble}"
    return "ok" if serving.damage is None else f"version {version}: {serving.damage}"


async def _probe(ping: Awaitable[object]) -> str:
    """`ok` or a description of the error; takes at most `PROBE_SECONDS`."""
    task = start_for_caller(ping)
    # Not `asyncio.timeout`, which waits until the cancelled call has ended: with a server that hangs, closing the
    # connection can hang too.
    done, _ = await asyncio.wait([task], timeout=PROBE_SECONDS)
    if not done:
        task.cancel()
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return f"no answer within {PROBE_SECONDS} s"
    error = task.exception()
    return "ok" if error is None else f"no answer: {type(error.__cause__ or error).__name__}"
