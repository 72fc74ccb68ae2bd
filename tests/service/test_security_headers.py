"""Every response of a served process has the security headers."""

import asyncio
import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from sqlalchemy import text

from service.storage.postgres.database import Database
from tests.conftest import in_thread
from tests.service.api_support import all_calls, event, make_keys, served_app, settings_for
from tests.service.programs import program

pytestmark = pytest.mark.slow

QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}
OPEN = ("/healthz", "/readyz", "/metrics", "/docs", "/console", "/openapi.json")
FULL = (
    "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$",
    "CREATE TRIGGER full_disk BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION full_disk()",
)


@dataclass(frozen=True)
class Served:
    """An api process."""

    client: httpx.Client
    dsn: str
    rare: str
    """A key that may call once in 1,000 s."""

    def break_database(self, *statements: str) -> None:
        in_thread(asyncio.run, execute(self.dsn, *statements))

    def raw(self, data: bytes) -> tuple[int, httpx.Headers]:
        """The status and the head of what is answered to these bytes."""
        place = urlsplit(str(self.client.base_url))
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(data)
            answer = b""
            while b"\r\n\r\n" not in answer:
                part = connection.recv(65536)
                assert part, "the connection was closed without an answer"
                answer += part
        status, *lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
        return int(status.split(b" ")[1]), httpx.Headers([line.split(b": ", 1) for line in lines])


async def execute(dsn: str, *statements: str) -> None:
    database = Database(dsn, pool_size=1)
    async with database.unit_of_work() as work:
        for statement in statements:
            await work.connection.execute(text(statement))
        await work.commit()
    await database.close()


@pytest.fixture
def process(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Served]:
    key, rare = in_thread(asyncio.run, make_keys(postgres_dsn))
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    with program(tmp_path, "--no-worker", **given) as running, client_of(running.url, key) as client:
        yield Served(client, postgres_dsn, rare)


@pytest.fixture
def served(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Served]:
    """The same in a thread."""
    key, rare = in_thread(asyncio.run, make_keys(postgres_dsn))
    settings = settings_for(postgres_dsn, redis_url, tmp_path)
    with served_app(settings) as url, client_of(url, key) as client:
        yield Served(client, postgres_dsn, rare)


def client_of(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=30)


def check(headers: httpx.Headers) -> None:
    """Each once, and none that says what serves."""
    for name, value in (("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")):
        assert headers.get_list(name) == [value], headers
    assert "no-store" in headers.get_list("cache-control"), headers
    for name in ("server", "x-powered-by", "strict-transport-security", "access-control-allow-origin"):
        assert name not in headers
    if "html" in headers.get("content-type", ""):
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


def test_on_every_endpoint_and_every_error(process: Served) -> None:
    served, client = process, process.client
    seen: set[int] = set()

    def call(method: str, path: str, expected: int | None = None, **changes: object) -> None:
        with client.stream(method, path, **changes) as response:
            check(response.headers)
            seen.add(response.status_code)
            assert expected is None or response.status_code == expected

    good = {
        ("POST", "/predict"): QUESTION,
        ("POST", "/predict/batch"): {"requests": [QUESTION]},
        ("POST", "/interactions"): {"interactions": [event(1)]},
        ("PUT", "/items"): {"items": [{"item_id": "a", "categories": ["c"]}]},
        ("PUT", "/users"): {"users": [{"user_id": "u", "features": {}}]},
        ("POST", "/admin/rollback"): {"to_version": 0, "sequence": "keep", "reason": "test"},
        ("POST", "/periods/close"): {},
    }
    calls = set(all_calls())
    assert good.keys() < calls
    assert {("GET", path) for path in OPEN} < calls
    for method, path in calls:
        if (method, path) not in good:
            call(method, path)
        call(method, path, headers={"X-API-Key": "none"})
        call(method, path, headers={"X-API-Key": served.rare})
        call("DELETE", path, None if ("DELETE", path) in calls else 405)
        call("HEAD", path)
        call("OPTIONS", path)
    for (method, path), body in good.items():
        for key, value, status in (
            ("headers", {"X-API-Key": "none"}, 401),
            ("headers", {"X-API-Key": served.rare}, 429),
            ("content", b"x" * 9 * 2**20, 413),
            ("content", b"{}", 415),
            ("json", {"no": 1}, 422),
        ):
            call(method, path, status, **{key: value})
        headers = {"Content-Type": "application/json"}
        call(method, path, 400, content=b"{", headers=headers)
        call(method, path, 413, content=(b"x" * 2**20 for _ in range(9)), headers=headers)
        for _ in range(2):  # at the second prediction the key and the history are in memory
            call(method, path, **({} if path == "/periods/close" else {"expected": 200}), json=body)
    call("GET", "/periods/1/events", 200)
    call("GET", "/nowhere", 404)
    call("GET", "/periods/77", 404)
    call("POST", "/periods/close", 409, json={"expected_period": 77})
    served.break_database(*FULL, "ALTER TABLE model_versions RENAME COLUMN gate TO broken")
    call("PUT", "/items", 503, json={"items": [{"item_id": "b", "categories": []}]})
    call("GET", "/admin/models", 500)
    assert seen >= {200, 202, 400, 401, 404, 405, 409, 413, 415, 422, 429, 500, 503}
    # And what no application sees.
    for data, expected in (
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbroken header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n", 431),
    ):
        status, headers = served.raw(data)
        assert status == expected
        check(headers)


def test_the_head_of_a_prediction_is_small(served: Served) -> None:
    body = json.dumps(QUESTION).encode()
    key = served.client.headers["X-API-Key"]
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: {key}\r\n"
    data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(2):
        status, headers = served.raw(data)
    assert status == 200
    check(headers)
    assert sum(len(name) + len(value) + 4 for name, value in headers.raw) < 256


class Loaded(HTMLParser):
    """What a page loads, and its own scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self._inline = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert not any(name.startswith("on") or name == "style" for name in given), "no policy can name those"
        self._inline = tag == "script" and "src" not in given
        if tag == "script" and given.get("src"):
            self.loaded.append(("script-src", str(given["src"])))
        elif tag == "link":
            kind = "style-src" if given["rel"] == "stylesheet" else "img-src"
            self.loaded.append((kind, str(given["href"])))

    def handle_data(self, data: str) -> None:
        if self._inline:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inline = False


def test_the_policy_of_the_docs_allows_what_the_page_needs_and_no_more(served: Served) -> None:
    response = served.client.get("/docs", headers={"X-API-Key": ""})
    policy = {name: values for name, *values in map(str.split, response.headers["content-security-policy"].split(";"))}
    assert policy["default-src"] == ["'none'"]
    page = Loaded(response.text)
    assert len(page.scripts) == 1
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["script-src"]
    assert sorted(page.loaded) == [
        ("img-src", "data:,"),
        ("script-src", "/docs/swagger-ui-bundle.js"),
        ("style-src", "/docs/swagger-ui.css"),
    ]
    for kind, address in page.loaded:
        if kind == "img-src":
            assert policy[kind] == ["data:"]
            continue
        assert "'self'" in policy[kind]
        loaded = served.client.get(address, headers={"X-API-Key": ""})
        assert loaded.status_code == 200
        assert loaded.headers["content-type"].partition(";")[0] in ("text/javascript", "text/css")
        check(loaded.headers)
        assert len(loaded.content) > 100_000
    # No other host is named: not by the policy, and not by what the style sheet would load.
    assert "//" not in response.headers["content-security-policy"]
    assert "//" not in re.sub(r"<title>.*?</title>", "", response.text)
    style = served.client.get("/docs/swagger-ui.css").text
    assert all(place.startswith(("data:", "#")) for place in re.findall(r"url\([\"']?([^\"')]+)", style))
    assert "@import" not in style
    for name in ("redoc.standalone.js", "favicon.png", "..%2f__init__.py", "swagger-ui.css/"):
        assert served.client.get(f"/docs/{name}").status_code in (404, 422)
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "'unsafe-eval'" not in policy["script-src"]
    # It talks to this service alone: it reads the description of the API, and tries calls.
    assert policy["connect-src"] == ["'self'"]
    [described] = re.findall(r"url: '(.*?)'", response.text)
    assert urljoin(str(response.url), described) == str(served.client.base_url.join("/openapi.json"))
    assert served.client.get(described).json()["openapi"].startswith("3.")
    assert '"validatorUrl": null' in response.text
