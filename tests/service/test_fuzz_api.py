"""Fuzzing of the running service: every answer comes in time, without 5xx, and agrees with the OpenAPI document.

A call that the schema forbids gets no 2xx, and a rejected call stores nothing. schemathesis makes the calls from the
OpenAPI document, following and violating its schemas; plain JSON Schema judges them. Hypothesis draws the same calls in
each run. `ASMG_TEST_FUZZ_CASES` is their approximate number; with `-s` the run prints how many each operation got:

    ASMG_TEST_FUZZ_CASES=10000 python -m pytest -q -s tests/service/test_fuzz_api.py
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis import Case, GenerationMode

from service.app import create_app
from service.limits import MAX_INTEGER_ID, MIN_INTEGER_ID
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key
from tests.conftest import Servers, database_dsn, flush, in_thread
from tests.service.api_support import event, ingest, served_app, settings_for
from tests.service.raw_http import Connection
from tests.service.stored import Store, Stored, looking_into
from tests.service.test_bodies import DOCUMENTS, EVENTS, GOOD, PIECES, encoded
from tests.service.update_support import copies

pytestmark = pytest.mark.slow

HTTP_METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}
DOCUMENT: dict[str, Any] = create_app(
    Settings(postgres_dsn="postgresql://nobody", redis_url="redis://nobody", data_dir=Path("/nowhere"))
).openapi()
OPERATIONS = sorted(
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in HTTP_METHODS & set(methods)
)
PATHS = {"predict": "/predict", "batch": "/predict/batch", **{name: f"/{name}" for name in EVENTS}}

CASES = int(os.environ.get("ASMG_TEST_FUZZ_CASES", "600"))
PROPERTIES = 2 * len(OPERATIONS) + 2 * len(PATHS) + 2
ANSWER_SECONDS = 5.0
"""By when each call is answered, on a busy host."""

tried: Counter[str] = Counter()
"""Cases by operation, of this run."""


def bounded(share: float = 1.0) -> settings:
    """The same examples in each run, whatever an earlier one found; `share` of what one of the properties gets."""
    return settings(
        # A fifth more, for where a description allows fewer.
        max_examples=max(5, round(1.2 * CASES / PROPERTIES * share)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),  # how examples are made is up to schemathesis
    )


class Running(NamedTuple):
    """The service, a key to it, and a look into what it stores.

    A key, for schemathesis makes up keys, and nothing but 401 would come of them.
    """

    url: str
    headers: dict[str, str]
    store: Store


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
        with served_app(made) as url, looking_into(dsn, servers.redis_url) as store:
            running = Running(url, {"Authorization": f"Bearer {key}"}, store)
            in_thread(asyncio.run, fill(running))
            started = time.monotonic()
            yield running
            seconds = time.monotonic() - started
            print(f"\n{tried.total()} cases in {seconds:.0f} s")
            for operation, cases in sorted(tried.items()):
                print(f"{cases:6} {operation}")


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


class Watch:
    """Times each call, and compares what is stored before and after where it was rejected."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._before: Stored | None = None
        self._started = 0.0

    def begin(self) -> None:
        if self._before is None:
            self._before = self._store.look()
        self._started = time.monotonic()

    def end(self, status: int | None) -> None:
        """`status`: of the answer; None for a connection that ended without one, where nobody knows what was done."""
        assert time.monotonic() - self._started < ANSWER_SECONDS
        if status is not None and status >= 400:
            assert self._before is not None and self._before.holds(self._store.look())
        else:
            self._before = None


@pytest.fixture
def watch(running: Running) -> Watch:
    return Watch(running.store)


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


def test_the_description_is_that_of_the_service(document: dict[str, Any]) -> None:
    assert document == DOCUMENT
    assert {("POST", path) for path in PATHS.values()} < set(OPERATIONS)


def test_what_is_stored_is_seen(running: Running) -> None:
    before = running.store.look()
    assert before.holds(running.store.look())
    item = {"item_id": "seen", "categories": ["a"]}
    for categories in (["a"], ["b"]):  # a row more, and a row that changed
        with httpx.Client(base_url=running.url, headers=running.headers) as client:
            assert client.put("/items", json={"items": [item | {"categories": categories}]}).is_success
        after = running.store.look()
        assert not before.holds(after)
        before = after


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("method, path", OPERATIONS)
def test_calls_by_the_description_and_against_it(
    running: Running, watch: Watch, document: dict[str, Any], method: str, path: str, mode: GenerationMode
) -> None:
    judge = Judge(document, method, path)
    operation = schemathesis.openapi.from_dict(document)[path][method]
    if not operation.body and not operation.query and not operation.path_parameters:
        assert call(judge, watch, {"method": method, "url": running.url + path, "headers": running.headers}) == 200
        tried[f"{method} {path}"] += 1
        return
    statuses = set()

    @bounded()
    @given(case=operation.as_strategy(generation_mode=mode))
    def calls(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = with_integers(case.body)
        statuses.add(call(judge, watch, case.as_transport_kwargs(running.url, running.headers)))
        tried[f"{method} {path}"] += 1

    calls()
    if "/predict" in path:
        # All that a prediction has to be is in its schema, except which versions there are (404): so these are told
        # apart without exception.
        assert 200 in statuses <= {200, 404} if mode is GenerationMode.POSITIVE else 422 in statuses


def with_integers(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and not to the service; and schemathesis makes doubles of the bounds."""
    if isinstance(value, dict):
        return {name: with_integers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_integers(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return max(MIN_INTEGER_ID, min(value, MAX_INTEGER_ID)) if type(value) is int else value


def call(judge: Judge, watch: Watch, arguments: dict[str, Any]) -> int:
    """Make one call and judge its answer."""
    prepared = requests.Request(**{name: arguments[name] for name in REQUEST & set(arguments)}).prepare()
    body = prepared.body or b""
    watch.begin()
    with requests.Session() as session, session.send(prepared, stream=True, timeout=10) as response:
        content_type = response.headers["content-type"]
        # A stream of events does not end before its period does.
        content = b"" if content_type.startswith("text/event-stream") else response.content
        body = body if isinstance(body, bytes) else str(body).encode()
        judge.check(body, response.status_code, content_type, content)
    watch.end(response.status_code)
    return response.status_code


REQUEST = {"method", "url", "headers", "params", "json", "data", "cookies"}


@pytest.mark.parametrize("kind", PATHS)
def test_documents_that_are_nearly_right(running: Running, watch: Watch, document: dict[str, Any], kind: str) -> None:
    judge = Judge(document, "POST", PATHS[kind])
    with httpx.Client(base_url=running.url, headers=running.headers | {"content-type": "application/json"}) as client:

        def send(body: bytes) -> int:
            watch.begin()
            response = client.post(PATHS[kind], content=body)
            judge.check(body, response.status_code, response.headers["content-type"], response.content)
            watch.end(response.status_code)
            tried[f"POST {PATHS[kind]}"] += 1
            return response.status_code

        @bounded()
        @given(DOCUMENTS[kind], st.data())
        def documents(value: Any, data: st.DataObject) -> None:
            body = encoded(value, data.draw)
            status = send(body)
            if kind not in EVENTS:  # whose schemas say nothing of the range of a time
                assert (status == 200) is (judge.allows(body) and no_half_characters(body))

        @bounded()
        @given(st.data())
        def tampered(data: st.DataObject) -> None:
            send(data.draw(tampered_with(st.sampled_from(GOOD[kind]), PIECES)))

        documents()
        tampered()


@st.composite
def tampered_with(draw: st.DrawFn, good: st.SearchStrategy[bytes], pieces: list[bytes]) -> bytes:
    """Bytes that were good, with a piece or two put in or in place of others."""
    data = draw(good)
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from(pieces) | st.binary(max_size=2))
        data = data[:start] + piece + data[start + draw(st.integers(0, 2)) :]
    return data


def no_half_characters(body: bytes) -> bool:
    """Python reads them from JSON; Unicode and the service do not."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#"), max_size=20)
NUMBERS = st.sampled_from(["0", "1", "-1", "2147483648", "9223372036854775808", "9" * 30, "1.5", "x", "%00", "é", ""])
HEADERS = {
    "Accept": ["*/*", "text/html", "application/xml", ""],
    "Authorization": ["", "Bearer", "Bearer x", "Basic YTpi", "Bearer asmg_000000000000_" + "x" * 43],
    "Connection": ["close", "keep-alive", "Upgrade", "x"],
    "Content-Encoding": ["gzip", "identity", "br", "\xff", "gzip, gzip"],
    "Content-Type": ["application/json", "text/plain", "application/json; charset=utf-16", "a" * 300, "\xff", ""],
    "Cookie": ["a=b", "\xff"],
    "Expect": ["100-continue", "200-ok"],
    "Forwarded": ["for=1.2.3.4", "x"],
    "Host": ["", "a b", "\xff", "x" * 300],
    "Idempotency-Key": ["k", "", "x" * 257, "\xff", "a\tb"],
    "Range": ["bytes=0-", "x"],
    "Upgrade": ["websocket", "h2c"],
    "X-API-Key": ["", "x", "\xff"],
    "X-Forwarded-For": ["::1", "\xff"],
    "X-Request-ID": ["x" * 257, "\xff", "a b", ""],
    "Last-Event-ID": ["1", "\xff"],
}


@st.composite
def any_request(draw: st.DrawFn, key: str) -> bytes:
    """A whole request of any method to any path with any headers, as bytes."""
    method, path = draw(st.sampled_from(OPERATIONS) | st.tuples(st.sampled_from(METHODS), st.just("/")))
    if draw(st.booleans()):
        method = draw(st.sampled_from(METHODS))
    path = path.replace("{number}", draw(NUMBERS)).replace("{version}", draw(NUMBERS))
    path += draw(st.sampled_from(["", "", "", "/", "/x", "?limit=0", "?before=x", "?limit=1&limit=2", "?%ff", "//"]))
    path += draw(st.just("") | WORDS)
    headers = draw(
        st.lists(
            st.sampled_from(sorted(HEADERS)).flatmap(
                lambda name: st.tuples(st.just(name), st.sampled_from(HEADERS[name]))
            ),
            max_size=4,
        )
    )
    if draw(st.integers(0, 3)):
        headers.append(("Authorization", key))
        headers.append(("Content-Type", "application/json"))
    body = draw(
        st.just(b"") | st.sampled_from([good for kind in GOOD.values() for good in kind]) | st.binary(max_size=50)
    )
    if draw(st.booleans()):
        headers.append(("Content-Length", str(len(body))))
    else:
        headers.append(("Transfer-Encoding", "chunked"))
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE", "get", "X"]
HTTP_PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b":",
        b"0\r\n\r\n",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"%",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(b"GET /healthz HTTP/1.1\r\n\r\n", b"-1", b"ffffffffffffffffff", b"99999999999999999999"),
]


def test_any_method_path_and_headers(running: Running, watch: Watch) -> None:
    @bounded(2.0)
    @given(any_request(running.headers["Authorization"]))
    def requests_of_any_kind(request: bytes) -> None:
        speak(running, watch, request)
        tried["any method, path and headers"] += 1

    requests_of_any_kind()


def test_bytes_that_are_nearly_requests(running: Running, watch: Watch) -> None:
    @bounded(2.0)
    @given(tampered_with(any_request(running.headers["Authorization"]), HTTP_PIECES))
    def nearly_requests(data: bytes) -> None:
        speak(running, watch, data)
        tried["bytes that are nearly requests"] += 1

    nearly_requests()


def speak(running: Running, watch: Watch, data: bytes) -> None:
    """Send bytes: the first answer, where one comes, is no fault; and the connection ends when the client ends it."""
    watch.begin()
    with Connection(running.url) as connection:
        connection.send(data)
        status = connection.first_status(seconds=0.2)
        connection.end()
    watch.end(status)
    assert status is None or 200 <= status < 500, data
