"""The application as the API tests use it: the real one, on the test run's Postgres and Redis."""

import asyncio
import pkgutil
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.http import routers
from service.http.app_state import AppState
from service.processes.api import server_config
from service.processes.listening import listen
from service.serving.fields import FieldValues
from service.serving.prior import prior_snapshot
from service.serving.snapshot import Prediction, Snapshot
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, ModelKind, ModelVersion
from service.use_cases.keys import SCOPES, create_key

NOON = "2024-05-01T12:00:00Z"


@dataclass(frozen=True)
class Api:
    """A running application, called without a network."""

    app: FastAPI
    client: httpx.AsyncClient
    state: AppState


def settings_for(postgres_dsn: str, redis_url: str, folder: Path, **changes: Any) -> Settings:
    """Quick swaps, all else as shipped."""
    values = {"swap_lead_seconds": 0.2, "swap_poll_seconds": 0.05, "prior_ctr": 0.25, **changes}
    return Settings(postgres_dsn=postgres_dsn, redis_url=redis_url, data_dir=folder, **values)


@asynccontextmanager
async def running_app(settings: Settings, *, client_host: str = "127.0.0.1") -> AsyncIterator[Api]:
    """The application between start and end of its lifespan."""
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            # What a server does with the state that the lifespan yields.
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state, client=(client_host, 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield Api(app, client, state["app"])


@contextmanager
def served_app(settings: Settings, port: int = 0) -> Iterator[str]:
    """The application behind a real server in a thread, on any port or on this one; its address. Ends like a process
    that is told to.
    """
    server: uvicorn.Server
    app = create_app(settings, stopping=lambda: server.should_exit)
    server = uvicorn.Server(server_config(app))
    with listen("127.0.0.1", port) as sock:
        thread = Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def all_calls() -> Iterator[tuple[str, str]]:
    """Every method and path that the service has, hidden ones too."""
    yield "GET", "/openapi.json"
    for module in pkgutil.iter_modules(routers.__path__):
        router = getattr(import_module(f"service.http.routers.{module.name}"), "router", None)
        for route in () if router is None else router.routes:
            assert isinstance(route, APIRoute)
            for method in route.methods:
                yield method, re.sub(r"\{.*?\}", "1", route.path)


async def make_keys(dsn: str) -> tuple[str, str]:
    """A key of all scopes, and one that may call once in 1,000 s."""
    database = Database(dsn, pool_size=1)
    _, key = await create_key(database, "all", SCOPES)
    _, rare = await create_key(database, "rare", SCOPES, rate_limit=0.001)
    await database.close()
    return key, rare


async def eventually(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


def recorded_histories(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The histories of the predictions from now on, as hashes; it fills while they are made."""
    seen: list[list[int]] = []
    score = Snapshot.score

    def noted(
        snapshot: Snapshot,
        asked: NDArray[np.uint64],
        history: NDArray[np.uint64],
        recent: NDArray[np.int32],
        values: FieldValues,
    ) -> Prediction:
        seen.append(history.tolist())
        return score(snapshot, asked, history, recent, values)

    monkeypatch.setattr(Snapshot, "score", noted)
    return seen


def event(number: int, **changes: Any) -> dict[str, Any]:
    """An interaction as a client sends it."""
    base = {"event_id": f"e{number}", "user_id": f"u{number % 7}", "item_id": f"i{number % 5}"}
    return {**base, "label": number % 2, "timestamp": NOON, **changes}


def impression(request: str, user: str, items: str, at: datetime | str = NOON, **more: Any) -> dict[str, Any]:
    """An impression as a client sends it; each letter is an item."""
    return {"request_id": request, "user_id": user, "items": list(items), "timestamp": sent(at), **more}


def click(request: str, item: str, at: datetime | str = NOON, **more: Any) -> dict[str, Any]:
    """A click as a client sends it."""
    return {"request_id": request, "item_id": item, "timestamp": sent(at), **more}


def sent(at: datetime | str) -> str:
    """A time as a client sends it."""
    return at if isinstance(at, str) else at.isoformat()


async def ingest(client: httpx.AsyncClient, *events: dict[str, Any]) -> httpx.Response:
    """Send interactions."""
    return await client.post("/interactions", json={"interactions": list(events)})


async def publish(
    database: Database,
    artifacts: ArtifactStore,
    version: int,
    ctr: float,
    *,
    lead_seconds: float | None,
    content: bytes | None = None,
) -> datetime:
    """Make a version the champion that answers `ctr` to everything, or what its `content` says; the moment from which
    on. Without a lead it is announced only, and the answer is the moment of that.
    """
    digest = await artifacts.put(prior_snapshot(ctr) if content is None else content, "serving")
    async with database.unit_of_work() as work:
        await work.models.insert(
            ModelVersion(
                version=version,
                period=version,
                kind=ModelKind.GENERATED,
                parent_version=version - 1,
                serving_digest=digest,
                state={"generator": digest},
                scores={"generated": {"auc": 0.6}},
                gate={"decision": "generated"},
                created_by="test",
                created_at=datetime.now(UTC),
            )
        )
        alias = None
        for name in (AliasName.CHAMPION, AliasName.HEAD):
            lead = 0 if name is AliasName.HEAD and lead_seconds is None else lead_seconds
            alias = await work.models.set_alias(name, version, lead_seconds=lead, actor="test", reason="test")
        await work.commit()
    assert alias is not None and alias.active_from is not None
    return alias.active_from
