"""The application: its routes, and middleware around them. Importing this module has no side effects.

`service.processes.api` calls `create_app` in each api process; other servers can call
`create_app_from_environment`.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from socket import socket

from fastapi import FastAPI
from starlette.routing import Route

from service.errors import ConfigurationError
from service.http.app_state import AppState
from service.http.bodies.read import Bodies
from service.http.cors import Cors
from service.http.described_app import DescribedApp
from service.http.hot_routes import HotRoute, HotRoutes
from service.http.metrics import Metrics
from service.http.middleware import BodyLimit, CrossOrigin, Observe
from service.http.path_prefix import PathPrefix
from service.http.problems import install_problem_handlers
from service.http.routers import (
    admin,
    alerts,
    console,
    docs,
    guardrails,
    interactions,
    items,
    keys,
    ops,
    overview,
    periods,
    predict,
    users,
    webhooks,
)
from service.http.running_state import running_state
from service.http.scrape import show_metrics
from service.http.traced import Traced
from service.limits import MAX_BODIES_BYTES, MAX_BODY_BYTES
from service.settings import Settings
from service.telemetry.tracing import active_tracing

__all__ = ["create_app", "create_app_from_environment"]

ROUTERS = (
    predict,
    interactions,
    items,
    users,
    periods,
    admin,
    alerts,
    guardrails,
    webhooks,
    keys,
    overview,
    ops,
    docs,
    console,
)


def create_app_from_environment() -> FastAPI:
    """The application with the settings of the `ASMG_…` variables, for servers that call a factory.

    Raises:
        ConfigurationError: no servers are named; only `asmg serve` starts them.
    """
    return create_app(Settings())


def create_app(
    settings: Settings, *, stopping: Callable[[], bool] = lambda: False, metrics_listener: socket | None = None
) -> FastAPI:
    """The application for one Postgres and one Redis.

    It starts without them, not ready, and becomes ready when they answer.

    Args:
        settings: with both DSNs.
        stopping: whether the process has been told to end; event streams end then.
        metrics_listener: a listening socket on which `/metrics` is answered while the application runs.

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
        async with running_state(settings, metrics, cors, prefix, stopping) as state:
            with show_metrics(state, metrics_listener):
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
    if (tracing := active_tracing()) is not None:
        app.middleware_stack = Traced(app.middleware_stack, tracing, prefix)
    return app
