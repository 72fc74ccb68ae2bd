"""Log contexts: work that several requests share, or that outlives one, is logged without a request id."""

import ast
import asyncio
import contextvars
import logging
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from service.context import NameRequest, current_request_id
from service.http.connection import Connection
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key
from tests.service.api_support import Api, event, publish, running_app, served_app, settings_for
from tests.service.raw_http import Connection as RawConnection

ROOT = Path(__file__).resolve().parents[2]

STARTS_WORK = {
    "add_done_callback",
    "call_at",
    "call_later",
    "call_soon",
    "call_soon_threadsafe",
    "create_task",
    "ensure_future",
    "run_coroutine_threadsafe",
    "run_in_executor",
    "submit",
    "Thread",
    "Timer",
}
"""Calls after which something goes on by itself."""

MAY: dict[tuple[str, str], str] = {
    ("tasks.py", "create_task"): "the helpers themselves",
    ("tasks.py", "ensure_future"): "the helpers themselves",
    ("tasks.py", "add_done_callback"): "takes a task off a list",
    ("use_cases/auth.py", "add_done_callback"): "takes a task off a list",
    ("use_cases/group_commit.py", "add_done_callback"): "takes a task off a list",
    ("use_cases/histories.py", "add_done_callback"): "takes a task off a list",
    ("use_cases/key_lookups.py", "add_done_callback"): "takes a look-up off a list",
    ("serving/swap.py", "add_done_callback"): "takes a task off a list",
    ("serving/swap.py", "run_in_executor"): "it passes no context on, and is called by a task without one",
    ("serving/sealed.py", "Thread"): "a thread has an empty context",
    ("http/ping.py", "add_done_callback"): "looks at an exception, so that asyncio does not complain",
    ("http/scrape.py", "run_coroutine_threadsafe"): "a thread of the metrics' port, which has an empty context",
    ("telemetry/port.py", "Thread"): "a thread has an empty context",
    ("http/connection/guard.py", "call_later"): "aborts a connection or checks its deadlines; logs nothing",
    ("http/connection/guard.py", "call_soon"): "gives uvicorn a request, which answers each in an empty context",
    ("http/connection/transport.py", "call_soon"): "sends what was written for a client; logs nothing",
    ("processes/stop_request.py", "call_soon_threadsafe"): "sets an event of a command",
    ("processes/child.py", "Thread"): "a thread has an empty context",
    ("use_cases/update/stage.py", "run_coroutine_threadsafe"): "the worker, which answers no requests",
    ("storage/postgres/leadership.py", "Thread"): "a thread has an empty context",
    ("storage/postgres/leadership.py", "run_coroutine_threadsafe"): "the worker, which answers no requests",
    ("storage/postgres/leadership.py", "call_soon_threadsafe"): "sets an event of the thread, or ends its loop",
    ("demo/client.py", "create_task"): "a client, which answers no requests",
    ("demo/traffic.py", "create_task"): "a client, which answers no requests",
}
"""Where one may be all the same, and why."""


def test_nothing_starts_work_without_saying_whose_it_is() -> None:
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                if name in STARTS_WORK:
                    found.add((path.relative_to(ROOT / "service").as_posix(), str(name)))
    assert found - set(MAY) == set(), "use service.tasks.start_alone or start_for_caller"
    assert set(MAY) - found == set(), "this exception is none any more"


class Started:
    """The tasks of an event loop: what they run, and in the name of which request they were started."""

    def __init__(self) -> None:
        self.by_name: dict[str, set[str | None]] = {}
        self._tasks: list[tuple[asyncio.Task[Any], str, str | None]] = []

    def __call__(
        self, loop: asyncio.AbstractEventLoop, work: Any, *, context: contextvars.Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        name = getattr(work, "__qualname__", type(work).__name__)
        request_id = (contextvars.copy_context() if context is None else context).get(current_request_id)
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context, **options)
        self.by_name.setdefault(name, set()).add(request_id)
        self._tasks.append((task, name, request_id))
        return task

    def alive_for_a_request(self) -> list[tuple[str, str]]:
        return [(name, request_id) for task, name, request_id in self._tasks if request_id and not task.done()]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, with the request that it belongs to."""
    naming = NameRequest()
    caplog.handler.addFilter(naming)
    with caplog.at_level(logging.INFO):
        yield caplog
    caplog.handler.removeFilter(naming)


async def call(api: Api, request_id: str, method: str, path: str, **options: Any) -> httpx.Response:
    """A request in a task of its own, as a server has it."""
    headers = {**options.pop("headers", {}), "X-Request-ID": request_id}
    work: Coroutine[Any, Any, httpx.Response] = api.client.request(method, path, headers=headers, **options)
    return await asyncio.create_task(work)


SHARED = {
    "KeyLookups._look_up",
    "GroupCommit._run_group",
    "Histories._read_redis",
    "Histories._read_postgres",
    "Account.charge",
    "PeriodWatch._poll",
    "ServingModel._follow",
    "Hosts.connect",  # to Postgres
    "ConnectionPool.ensure_connection",  # to Redis
}
"""What is done for several requests at once, or goes on after the one that begins it."""


async def test_what_is_shared_belongs_to_no_request(
    postgres_dsn: str, redis_url: str, tmp_path: Path, database: Database, log: pytest.LogCaptureFixture
) -> None:
    """The first requests of a process, at once: they start everything that is started on first use."""
    loop, started = asyncio.get_running_loop(), Started()
    loop.set_task_factory(started)
    try:
        # A flip that nobody but a request notices: the process itself looks again after an hour.
        settings = settings_for(postgres_dsn, redis_url, tmp_path, swap_poll_seconds=3600.0, swap_lead_seconds=0.3)
        async with running_app(settings) as api:
            # Which the process has not seen; a quarter of its burst is less than the calls below: they are settled.
            _, key = await create_key(database, "frontend", SCOPES, rate_limit=40)
            headers = {"X-API-Key": key}
            await publish(database, api.state.artifacts, 1, 0.125, lead_seconds=0.3)
            await api.state.serving.refresh()
            await asyncio.sleep(0.3)
            question = {"items": ["a"], "log_impressions": True}
            answers = await asyncio.gather(
                *(
                    call(
                        api, f"predict-{n}", "POST", "/predict", json={**question, "user_id": f"u{n}"}, headers=headers
                    )
                    for n in range(8)
                ),
                *(
                    call(
                        api, f"ingest-{n}", "POST", "/interactions", json={"interactions": [event(n)]}, headers=headers
                    )
                    for n in range(8)
                ),
                *(call(api, f"ready-{n}", "GET", "/readyz") for n in range(2)),
            )
            assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
            assert answers[0].json()["model_version"] == 1
            closed = await call(api, "close", "POST", "/periods/close", headers=headers)
            assert closed.status_code == 202
            async with database.unit_of_work() as work:
                await work.connection.exec_driver_sql("UPDATE periods SET status = 'updated' WHERE number = 1")
                await work.commit()
            watched = await call(api, "watch", "GET", "/periods/1/events", headers=headers)
            assert "event: end" in watched.text
            await asyncio.sleep(0.3)  # by then the requests are over, and what is theirs too
            assert started.alive_for_a_request() == []
    finally:
        loop.set_task_factory(None)
    assert {name: started.by_name.get(name, "not seen") for name in SHARED} == {name: {None} for name in SHARED}
    lines = {
        record.getMessage(): record.__dict__["request_id"]
        for record in log.records
        if record.name.startswith("service")
    }
    assert lines["serving model version 1"] == "-"


async def test_a_line_of_a_request_names_that_request(
    api: Api, database: Database, log: pytest.LogCaptureFixture
) -> None:
    """Every SQLAlchemy line during many concurrent requests names one that was under way, or none."""
    logging.getLogger("sqlalchemy.engine.Engine").setLevel(logging.INFO)
    try:
        paths = {
            f"r{n}": path for n, path in enumerate(["/periods", "/admin/models", "/admin/audit", "/periods/1"] * 5)
        }
        await asyncio.gather(*(call(api, request_id, "GET", path) for request_id, path in paths.items()))
        of = {"/periods": "FROM periods", "/admin/models": "FROM model_versions", "/admin/audit": "FROM audit"}
        for request_id, path in paths.items():
            said = [record.getMessage() for record in log.records if record.__dict__["request_id"] == request_id]
            assert any(of.get(path, "FROM periods") in line for line in said), (request_id, path)
            for other, words in of.items():
                if not path.startswith(other):
                    assert not any(words in line and "JOIN" not in line for line in said if other != "/admin/models")
    finally:
        logging.getLogger("sqlalchemy.engine.Engine").setLevel(logging.NOTSET)


def test_what_comes_after_a_request_on_its_connection_is_not_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large body makes the request pause reading and go on with it, in its own context."""
    named: list[str | None] = []
    answering = Connection.answering

    def noted(connection: Connection, send: Send) -> Send:
        named.append(current_request_id.get())
        return answering(connection, send)

    monkeypatch.setattr(Connection, "answering", noted)
    body = b'{"interactions": [' + b" " * 700_000 + b"]}"
    head = (
        "POST /interactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Request-ID: large-1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with served_app(settings) as url, RawConnection(url, seconds=20) as connection:
        connection.send(head.encode() + body)
        assert connection.answer()[0] == 422
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.answer()[0] == 200
        connection.send(b"no request at all\r\n\r\n")
        status, headers, document = connection.answer()
    assert named == [None, None]
    assert (status, document["request_id"]) == (400, headers["x-request-id"])
    assert document["request_id"] != "large-1"
