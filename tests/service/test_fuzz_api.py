"""The running service against its own description: whatever is sent, no 5xx, and no 2xx for what the schema forbids.

schemathesis makes the calls from the OpenAPI document, by and against its schemas; what they have to be is judged by
plain JSON Schema. Hypothesis draws the same calls in each run.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis import Case, GenerationMode

from service.storage.database import Database
from service.use_cases.auth import SCOPES, create_key
from tests.conftest import Servers, database_dsn, flush, in_thread
from tests.service.api_support import event, ingest, served_app, settings_for
from tests.service.test_bodies import DOCUMENTS, EVENTS, GOOD, PIECES, encoded
from tests.service.update_support import copies

pytestmark = pytest.mark.slow

OPERATIONS = [
    ("GET", "/admin/audit"),
    ("GET", "/admin/models"),
    ("GET", "/admin/models/{version}"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/periods"),
    ("GET", "/periods/{number}"),
    ("GET", "/periods/{number}/events"),
    ("GET", "/readyz"),
    ("POST", "/admin/models/{version}/pin"),
    ("POST", "/admin/models/{version}/unpin"),
    ("POST", "/admin/rollback"),
    ("POST", "/clicks"),
    ("POST", "/impressions"),
    ("POST", "/interactions"),
    ("POST", "/periods/close"),
    ("POST", "/predict"),
    ("POST", "/predict/batch"),
    ("PUT", "/items"),
]
EXAMPLES = 60
HTTP_METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}


def bounded(examples: int = EXAMPLES) -> settings:
    """The same examples in each run, whatever an earlier one found."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),  # how examples are made is up to schemathesis
    )


class Running(NamedTuple):
    """The service, and a key to it: schemathesis makes up keys, and nothing but 401 would come of them."""

    url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def running(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """A running service with one closed period and something in the open one."""
    flush(servers.redis_url)
    with copies(servers, migrated_template, database_numbers) as copy:
        dsn = database_dsn(servers, copy())
        key = in_thread(asyncio.run, make_key(dsn))
        made = settings_for(dsn, servers.redis_url, tmp_path_factory.mktemp("fuzz"), swap_lead_seconds=0)
        with served_app(made) as url:
            running = Running(url, {"Authorization": f"Bearer {key}"})
            in_thread(asyncio.run, fill(running))
            yield running


async def make_key(dsn: str) -> str:
    database = Database(dsn)
    _, key = await create_key(database, "fuzz", SCOPES)
    await database.close()
    return key


async def fill(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url, headers=running.headers) as client:
        assert (await ingest(client, event(1), event(3))).is_success
        assert (await client.post("/periods/close")).is_success
        assert (await ingest(client, event(2), event(4))).is_success


@pytest.fixture(scope="module")
def document(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{running.url}/openapi.json").json()
    return found


class Judge:
    """What the description of one operation says of bodies and answers."""

    def __init__(self, document: dict[str, Any], method: str, path: str) -> None:
        described = document["paths"][path][method.lower()]
        parts = {"components": document["components"]}
        self._body = self._answer = None
        if (body := described.get("requestBody")) is not None:
            self._body = Draft202012Validator({**body["content"]["application/json"]["schema"], **parts})
        self._optional = body is None or not body["required"]
        answer = described["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
        if answer:
            self._answer = Draft202012Validator({**answer, **parts})
        self.problem = Draft202012Validator({"$ref": "#/components/schemas/Problem", **parts})

    def allows(self, body: bytes) -> bool:
        """Whether the description allows this body."""
        if self._body is None or (not body and self._optional):
            return True
        try:
            return self._body.is_valid(json.loads(body))
        except (ValueError, RecursionError):
            return False

    def check(self, body: bytes, status: int, content_type: str, content: bytes) -> None:
        """That the answer to a call with this body is one that may be given."""
        assert 200 <= status < 500, (status, content[:500])
        if status < 300:
            assert self.allows(body), (status, body[:500])
            if self._answer is not None:
                self._answer.validate(json.loads(content))
        elif status >= 400:
            assert content_type == "application/problem+json"
            found = json.loads(content)
            self.problem.validate(found)
            assert found["status"] == status


def test_every_operation_is_tried(document: dict[str, Any]) -> None:
    described = [
        (method.upper(), path) for path, methods in document["paths"].items() for method in HTTP_METHODS & set(methods)
    ]
    assert sorted(described) == OPERATIONS


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("method, path", OPERATIONS)
def test_calls_by_the_description_and_against_it(
    running: Running, document: dict[str, Any], method: str, path: str, mode: GenerationMode
) -> None:
    judge = Judge(document, method, path)
    operation = schemathesis.openapi.from_dict(document)[path][method]
    if not operation.body and not operation.query and not operation.path_parameters:
        assert call(judge, {"method": method, "url": running.url + path}) == 200
        return
    statuses = set()

    @bounded()
    @given(case=operation.as_strategy(generation_mode=mode))
    def calls(case: Case) -> None:
        statuses.add(call(judge, case.as_transport_kwargs(running.url, running.headers)))

    calls()
    if "/predict" in path:
        # All that a prediction has to be is in its schema, so these are told apart without exception.
        assert statuses == {200} if mode is GenerationMode.POSITIVE else 422 in statuses


def call(judge: Judge, arguments: dict[str, Any]) -> int:
    """Make one call and judge its answer."""
    prepared = requests.Request(**{name: arguments[name] for name in REQUEST & set(arguments)}).prepare()
    body = prepared.body or b""
    with requests.Session() as session, session.send(prepared, stream=True, timeout=10) as response:
        content_type = response.headers["content-type"]
        # A stream of events does not end before its period does.
        content = b"" if content_type.startswith("text/event-stream") else response.content
        body = body if isinstance(body, bytes) else str(body).encode()
        judge.check(body, response.status_code, content_type, content)
        return response.status_code


REQUEST = {"method", "url", "headers", "params", "json", "data", "cookies"}
PATHS = {"predict": "/predict", "batch": "/predict/batch", **{name: f"/{name}" for name in EVENTS}}


@pytest.mark.parametrize("kind", PATHS)
def test_documents_that_are_nearly_right(running: Running, document: dict[str, Any], kind: str) -> None:
    judge = Judge(document, "POST", PATHS[kind])
    with httpx.Client(base_url=running.url, headers=running.headers | {"content-type": "application/json"}) as client:

        def send(body: bytes) -> int:
            response = client.post(PATHS[kind], content=body)
            judge.check(body, response.status_code, response.headers["content-type"], response.content)
            return response.status_code

        @bounded(200)
        @given(DOCUMENTS[kind], st.data())
        def documents(value: Any, data: st.DataObject) -> None:
            body = encoded(value, data.draw)
            status = send(body)
            if kind not in EVENTS:  # whose schemas say nothing of the range of a time
                assert (status == 200) is (judge.allows(body) and no_half_characters(body))

        @bounded(200)
        @given(st.data())
        def tampered(data: st.DataObject) -> None:
            body = data.draw(st.sampled_from(GOOD[kind]))
            for _ in range(data.draw(st.integers(1, 2))):
                start = data.draw(st.integers(0, len(body)))
                piece = data.draw(st.sampled_from(PIECES) | st.binary(max_size=2))
                body = body[:start] + piece + body[start + data.draw(st.integers(0, 2)) :]
            send(body)

        documents()
        tampered()


def no_half_characters(body: bytes) -> bool:
    """Python reads them from JSON; Unicode and the service do not."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
