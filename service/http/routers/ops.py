"""`/healthz`, `/readyz`, `/metrics`: liveness, readiness and metrics, which need no key."""

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Response

from service.errors import NotReady
from service.http.app_state import AppState, State
from service.http.metrics import CONTENT_TYPE_LATEST
from service.http.ping import within_time
from service.http.schemas import Health, Readiness
from service.http.scrape import scrape
from service.serving.swap import ServingModel

__all__ = ["readiness_checks", "router"]

router = APIRouter(tags=["operations"])


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
    checks = await readiness_checks(state)
    snapshot = state.serving.current()
    if checks["postgres"] != "ok":
        raise NotReady(f"Postgres: {checks['postgres']}")
    return Readiness(model_version=snapshot.version, period=snapshot.period, checks=checks)


async def readiness_checks(state: AppState) -> dict[str, str]:
    """What is wrong with the model, the swap, Postgres and Redis, in words; `ok` where nothing is."""
    postgres, redis = await asyncio.gather(within_time(state.database.ping()), within_time(state.redis.ping()))
    return {
        "model": _model(state.serving),
        "swap": state.serving.turns.trouble or "ok",
        "postgres": postgres,
        "redis": redis,
    }


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(state: State) -> Response:
    """The text exposition format; what Postgres does not tell in time is as it was. With `ASMG_METRICS_PORT` it is
    on that port alone.
    """
    if state.settings.metrics_port is not None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the metrics are on a port of their own")
    return Response(await scrape(state), media_type=CONTENT_TYPE_LATEST)


def _model(serving: ServingModel) -> str:
    version = serving.current().version
    if serving.trouble is not None:
        return f"version {version} is served on; the champion was not loaded: {serving.trouble}"
    return "ok" if serving.damage is None else f"version {version}: {serving.damage}"
