"""The log: which request a line names, and that nothing of a failed login appears."""

import asyncio
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.context import NameRequest
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key, revoke_key
from tests.conftest import in_thread
from tests.service.api_support import served_app
from tests.service.programs import Program, program

ROOT = Path(__file__).resolve().parents[2]
BODY_MARK, HEADER_MARK = "bodymark5d1f", "headermark8a42"
QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}

# Imported by every Python of the installation before anything else, so that what the programs themselves set is not in
# force: all that any library says is written.
LOG_EVERYTHING = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(pathname)s %(message)s")
logging.getLogger("sqlalchemy").setLevel(logging.INFO)  # each statement; by itself it says warnings only
"""


async def make_keys(dsn: str) -> dict[str, str]:
    """A good key, and others that were good once."""
    database = Database(dsn, pool_size=1)
    try:
        made = {"good": (await create_key(database, "good", SCOPES))[1]}
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        _, made["expired"] = await create_key(database, "expired", SCOPES, expires_at=soon)
        key_id, made["revoked"] = await create_key(database, "revoked", SCOPES)
        await revoke_key(database, key_id)
        await asyncio.sleep(max(0.0, soon.timestamp() - time.time()))
    finally:
        await database.close()
    return made


@pytest.mark.slow
def test_nothing_of_a_failed_login_is_logged(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """In all output of the real processes at the most detailed level: no key or part of one, in headers or bodies."""
    made = in_thread(asyncio.run, make_keys(postgres_dsn))
    bad = {
        "expired": made["expired"],
        "revoked": made["revoked"],
        "wrong secret": made["revoked"][:17] + "_" + "W" * 43,
        "wrong id": "asmg_badbadbadbad_" + "I" * 43,
        "malformed": "asmg_malformed_" + "M" * 60,
        "another's": "ghp_" + "G" * 36,
    }
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LOG_EVERYTHING)
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / "data")}
    with program(tmp_path, PYTHONPATH=f"{folder}:{ROOT}", **given) as running:
        with httpx.Client(base_url=running.url, headers={"X-Mark": HEADER_MARK}, timeout=20) as client:
            good = {"Authorization": f"Bearer {made['good']}"}
            assert client.post("/predict", json=QUESTION, headers=good).status_code == 200
            for key in bad.values():
                knock(client, running, key)
            seen = client.get("/metrics").text
        logged = running.out + running.err
    assert "DEBUG asyncio" in logged, "not everything was logged"
    parts = {kind: key.split("_", 1)[1] for kind, key in bad.items()} | {
        # Not behind the last `_`: the secret may hold some, and what is left may be a letter.
        f"{kind}, the secret": key.split("_", 2)[-1]
        for kind, key in bad.items()
    }
    parts |= {f"{kind}, the id": made[kind].split("_")[1] for kind in ("expired", "revoked")}
    parts |= {"body": BODY_MARK, "header": HEADER_MARK, "the good key": made["good"].split("_", 2)[2]}
    for kind, part in parts.items():
        assert part not in logged, f"{kind} is in the log"
        assert part not in seen, f"{kind} is in the metrics"


def knock(client: httpx.Client, running: Program, key: str) -> None:
    """Try to get in with a key that is none, in every way."""
    body = {**QUESTION, "user_id": BODY_MARK}
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Basic {key}"}):
        for method, path in (
            ("POST", "/predict"),
            ("POST", "/predict/batch"),
            ("POST", "/interactions"),
            ("PUT", "/items"),
            ("PUT", "/users"),
            ("POST", "/admin/rollback"),
            ("GET", "/admin/models"),
            ("GET", f"/periods?limit=1&key={key}"),
        ):
            response = client.request(method, path, headers=headers, json=body)
            assert response.status_code == 401, (method, path)
        assert client.get(f"/nowhere/{key}", headers=headers).status_code == 404
        assert client.delete(f"/predict?api_key={key}", headers=headers).status_code == 405
        large = BODY_MARK * 800_000  # over every limit
        assert client.put("/items", headers=headers, content=large).status_code == 413
    assert client.post(f"/predict?api_key={key}", json=body).status_code == 401
    # What no HTTP client sends: a header that is none, a body that ends too early, and no HTTP at all.
    for request in (
        f"POST /predict HTTP/1.1\r\nHost: a\r\nX-API-Key {key}\r\n\r\n{BODY_MARK}",
        f"POST /predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\x00\r\nContent-Length: 5\r\n\r\n{BODY_MARK}",
        f"POST /predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nContent-Length: 500\r\n\r\n{BODY_MARK}",
        f"{key} {BODY_MARK}\r\n\r\n",
    ):
        with socket.create_connection((running.host, running.port), timeout=10) as connection:
            connection.sendall(request.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, with the request that it belongs to, as `configure_logging` has it."""
    naming = NameRequest()
    caplog.handler.addFilter(naming)
    yield caplog
    caplog.handler.removeFilter(naming)


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, target: str) -> Iterator[str]:
    """Makes a function of the service fail; the words of its error."""
    words = f"{target} broke at row 17"

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(words)

    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        yield words


FAILURES = [
    ("GET", "/admin/models", "service.http.routers.admin.list_models"),
    ("GET", "/periods/1", "service.http.routers.periods.get_period"),
    ("GET", "/users/ann/gone", "service.http.routers.users.get_user"),
    ("DELETE", "/users/ann/gone", "service.http.routers.users.request_deletion"),
    ("GET", "/items/ann/gone", "service.http.routers.items.get_item"),
    ("DELETE", "/items/ann/gone", "service.http.routers.users.request_deletion"),
    ("PUT", "/items", "service.http.routers.items.put_items"),
    ("PUT", "/users", "service.http.routers.users.put_users"),
    ("POST", "/predict", "service.http.routers.predict.predict"),
    ("POST", "/predict/batch", "service.http.routers.predict.predict"),
    ("GET", "/metrics", "service.http.metrics.generate_latest"),
]
TEMPLATES = {
    "/periods/1": "/periods/{number}",
    "/users/ann/gone": "/users/{user_id}",
    "/items/ann/gone": "/items/{item_id}",
}
BODIES = {
    "/items": {"items": [{"item_id": "i", "categories": []}]},
    "/users": {"users": [{"user_id": "u", "features": {}}]},
    "/predict": {"user_id": "u", "items": ["a"], "history": []},
    "/predict/batch": {"requests": [QUESTION]},
}


def test_a_failing_handler_answers_500_and_only_the_log_says_why(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    with served_app(settings) as url, httpx.Client(base_url=url) as client:
        for number, (method, path, target) in enumerate(FAILURES):
            log.clear()
            request_id = f"failing-{number}"
            with broken(monkeypatch, target) as words:
                response = client.request(method, path, json=BODIES.get(path), headers={"X-Request-ID": request_id})
            assert response.status_code == 500, path
            assert response.json() == {
                "type": "urn:asmg:problem:internal-error",
                "title": "Internal error",
                "status": 500,
                "detail": "the service failed to answer; its log has the cause",
                "instance": path,
                "request_id": request_id,
            }
            assert response.headers["x-request-id"] == request_id
            for told in ("Traceback", "RuntimeError", words, ".py", "row 17"):
                assert told not in response.text
                assert told not in str(response.headers)
            [record] = errors_of(log)
            assert (record.getMessage(), request_id_of(record)) == (f"{TEMPLATES.get(path, path)} failed", request_id)
            assert "ann/gone" not in log.text
            assert record.exc_info is not None
            assert words in str(record.exc_info[1])
            assert client.get("/healthz").status_code == 200


def test_a_stream_that_breaks_is_cut_and_tells_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    with served_app(settings) as url, broken(monkeypatch, "service.http.routers.periods.PERIOD_JSON.dump_json"):
        received = b""
        with (
            httpx.Client(base_url=url) as client,
            client.stream("GET", "/periods/1/events", headers={"X-Request-ID": "stream-1"}) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for chunk in response.iter_raw():
                received += chunk
    assert response.status_code == 200  # that much was said before anything broke
    assert received == b""
    [record] = errors_of(log)
    assert request_id_of(record) == "stream-1"


def errors_of(log: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in log.records if record.levelno >= logging.ERROR]


def request_id_of(record: logging.LogRecord) -> str:
    return str(record.__dict__["request_id"])


def test_a_log_line_names_its_request_also_from_a_thread_or_a_task_of_it() -> None:
    program_text = """
import asyncio, logging
from service.context import current_request_id
from service.processes.logs import configure_logging
from service.telemetry.settings import TelemetrySettings

configure_logging(TelemetrySettings())
log = logging.getLogger("x")

async def request(number):
    current_request_id.set(f"request-{number}")
    await asyncio.sleep(0)
    log.info("itself %d", number)
    await asyncio.to_thread(log.info, "thread %d", number)
    await asyncio.create_task(later(number))

async def later(number):
    log.info("task %d", number)

async def main():
    log.info("nobody")
    await asyncio.gather(*(asyncio.create_task(request(n)) for n in (1, 2)))
    log.info("nobody again")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program_text], capture_output=True, text=True, check=True)
    lines = [re.fullmatch(r"\S+ \S+ INFO x\[\d+\] (\S+): (.+)", line) for line in done.stderr.splitlines()]
    said = {line[2]: line[1] for line in lines if line is not None}
    assert said == {
        "nobody": "-",
        "nobody again": "-",
        **{f"{what} {n}": f"request-{n}" for what in ("itself", "thread", "task") for n in (1, 2)},
    }


def test_an_error_of_the_database_does_not_hold_what_was_sent(postgres_dsn: str) -> None:
    """The error is logged with its text, and SQLAlchemy's error texts would otherwise contain all parameters."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    async def fail() -> str:
        database = Database(postgres_dsn, pool_size=1)
        try:
            async with database.read() as session:
                with pytest.raises(DBAPIError) as caught:
                    await session.connection.execute(text("SELECT 1 / 0, CAST(:value AS text)"), {"value": BODY_MARK})
                return str(caught.value)
        finally:
            await database.close()

    message = in_thread(lambda: asyncio.run(fail()))
    assert "division by zero" in message
    assert BODY_MARK not in message
