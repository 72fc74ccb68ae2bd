"""Path prefixes of proxies, and browser pages of other origins, on every code path that sends an answer."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Scope

from service.http.path_prefix import PathPrefix
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key
from tests.conftest import in_thread
from tests.service.api_support import Api, all_calls, event, make_keys, running_app, served_app, settings_for
from tests.service.raw_http import Connection

QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}
SHOP = "https://shop.example"
ASKED = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}


def served_with(postgres_dsn: str, redis_url: str, folder: Path, **changes: Any) -> Iterator[httpx.Client]:
    key, rare = in_thread(asyncio.run, make_keys(postgres_dsn))
    settings = settings_for(postgres_dsn, redis_url, folder, **changes)
    headers = {"X-API-Key": key, "X-Rare": rare}
    with served_app(settings) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def shop(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A service whose pages of one origin may call, behind a real socket."""
    yield from served_with(
        postgres_dsn, redis_url, tmp_path, cors_origins=(SHOP, "http://localhost:3000"), body_deadline_seconds=0.4
    )


def may_read(headers: httpx.Headers, origin: str = SHOP) -> bool:
    """Whether a page of the origin may read the response; each header stands there once."""
    vary = [name for name in headers.get_list("vary", split_commas=True) if name.lower() == "origin"]
    assert vary == ["origin"], headers
    given = headers.get_list("access-control-allow-origin")
    assert len(given) <= 1
    assert "access-control-allow-credentials" not in headers
    if given:
        exposed = headers.get_list("access-control-expose-headers", split_commas=True)
        assert {"x-request-id", "retry-after", "location"} <= set(exposed)
    return given == [origin]


def test_every_call_of_a_page_is_allowed_before_it_is_made(shop: httpx.Client) -> None:
    del shop.headers["X-API-Key"]
    asked = 0
    for method, path in all_calls():
        headers = {
            "Origin": SHOP,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,x-api-key,content-type,content-encoding,idempotency-key",
        }
        response = shop.options(path, headers=headers)
        assert (response.status_code, response.content) == (204, b""), path
        assert may_read(response.headers)
        assert method in response.headers["access-control-allow-methods"].split(", ")
        allowed = set(response.headers["access-control-allow-headers"].split(", "))
        assert {*headers["Access-Control-Request-Headers"].split(","), "x-request-id"} <= allowed
        assert int(response.headers["access-control-max-age"]) > 0
        assert response.headers["x-request-id"]
        asked += 1
    assert f'asmg_requests_total{{route="preflight",status="204"}} {asked}.0' in shop.get("/metrics").text


def test_what_is_no_question_of_an_allowed_page_is_answered_as_ever(shop: httpx.Client) -> None:
    for path, headers, status in (
        ("/predict", {}, 405),
        ("/predict", {"Origin": SHOP}, 405),
        ("/predict", {"Access-Control-Request-Method": "POST"}, 405),
        ("/predict", ASKED | {"Origin": "https://other.example"}, 405),
        ("/predict", ASKED | {"Origin": "null"}, 405),
        ("/predict", ASKED | {"Origin": f"{SHOP}.evil.example"}, 405),
        ("/predict", ASKED | {"Origin": "http://shop.example"}, 405),
        ("/nowhere", ASKED, 404),
    ):
        response = shop.options(path, headers=headers)
        assert response.status_code == status
        assert "access-control-allow-methods" not in response.headers
        assert may_read(response.headers) is (headers.get("Origin") == SHOP)


def test_a_page_may_read_every_answer(shop: httpx.Client) -> None:
    seen = set()

    def call(method: str, path: str, **changes: Any) -> None:
        headers = {**changes.pop("headers", {})}
        for origin, may in (
            (SHOP, True),
            ("http://localhost:3000", True),
            ("https://other.example", False),
            ("", False),
        ):
            own = {"Origin": origin} if origin else {}
            response = shop.request(method, path, headers={**headers, **own}, **changes)
            seen.add(response.status_code)
            assert may_read(response.headers, origin) is may, (path, response.status_code)

    call("POST", "/predict", json=QUESTION)
    call("POST", "/predict", json=QUESTION, headers={"X-API-Key": shop.headers["X-Rare"]})
    call("POST", "/predict", json={})
    call("POST", "/predict", content=b"{}")
    call("POST", "/predict", json=QUESTION, headers={"X-API-Key": "none"})
    call("POST", "/predict/batch", json={"requests": [QUESTION]})
    call("POST", "/interactions", json={"interactions": [event(1)]})
    call("POST", "/interactions", content=b"x" * 9 * 2**20)
    call("POST", "/periods/close", json={"expected_period": 77})
    for path in ("/periods", "/healthz", "/docs", "/openapi.json", "/metrics", "/nowhere"):
        call("GET", path)
    call("DELETE", "/predict")
    assert {200, 401, 404, 405, 409, 413, 415, 422, 429} <= seen


def test_a_page_may_read_why_its_body_was_refused(shop: httpx.Client) -> None:
    key = f"X-API-Key: {shop.headers['X-API-Key']}\r\nContent-Type: application/json"
    head = f"POST /interactions HTTP/1.1\r\nHost: a\r\n{key}\r\nOrigin: {SHOP}\r\nContent-Length: 9\r\n\r\nx"
    with Connection(str(shop.base_url)) as connection:
        connection.send(head.encode())
        status, headers, _ = connection.answer()
    assert status == 408
    assert may_read(httpx.Headers(headers))


async def test_by_default_no_page_of_another_origin_may_anything(api: Api) -> None:
    for method, path in {("OPTIONS", path) for _, path in all_calls()} | {("POST", "/predict"), ("GET", "/nowhere")}:
        response = await api.client.request(method, path, headers=ASKED)
        assert response.status_code in ((405,) if method == "OPTIONS" else (401, 404))
        assert not [name for name in response.headers if name.startswith("access-control") or name == "vary"]


async def test_all_origins_where_that_is_said(settings: Settings, database: Database) -> None:
    _, key = await create_key(database, "page", ["predict"])
    async with running_app(settings.model_copy(update={"cors_origins": ("*",)})) as api:
        for origin in (SHOP, "null", "https://other.example"):
            response = await api.client.options("/predict", headers=ASKED | {"Origin": origin})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (204, "*")
            headers = {"Origin": origin, "X-API-Key": key}
            response = await api.client.post("/predict", json=QUESTION, headers=headers)
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")
            assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("origins", [(SHOP,), ("*",)])
async def test_before_the_first_key_an_allowed_page_may_not_call_either(
    settings: Settings, origins: tuple[str, ...]
) -> None:
    async with running_app(settings.model_copy(update={"cors_origins": origins})) as api:
        for path, body in (("/predict", QUESTION), ("/predict/batch", {"requests": [QUESTION]})):
            assert (await api.client.post(path, json=body, headers={"Origin": SHOP})).status_code == 401
        assert (await api.client.get("/admin/models", headers={"Origin": SHOP})).status_code == 401
        assert (await api.client.get("/admin/models")).status_code == 200


# Path prefixes.


def request_scope(path: str, *headers: tuple[bytes, bytes], client: str | None = "10.0.0.7") -> Scope:
    place = None if client is None else (client, 50000)
    return {"type": "http", "method": "GET", "path": path, "headers": list(headers), "client": place}


SEGMENTS = sorted({path.split("/")[1] for _, path in all_calls()})


@pytest.mark.parametrize(
    "prefix", ["/ctr", "/a/b", "/admin", "/admin/models", "/periods", "/predict", "/docs", "/items", "/ctr/predict"]
)
def test_a_path_is_found_whether_the_proxy_took_the_prefix_off_or_not(prefix: str) -> None:
    prefixes = PathPrefix(root_path=prefix, first_segments=SEGMENTS)
    for _, path in all_calls():
        for asked in (path, prefix + path):
            scope = request_scope(asked)
            for _ in range(2):
                assert prefixes.route_path(scope) == path
            assert (scope["root_path"], scope["path"]) == (prefix, prefix + path)
    for path in (f"{prefix}x/predict", "/nowhere", f"{prefix}/nowhere"):
        assert prefixes.route_path(request_scope(path)) in (path, "/nowhere")


def test_without_a_prefix_a_path_is_what_it_is() -> None:
    scope = request_scope("/ctr/predict", (b"x-forwarded-prefix", b"/ctr"))
    assert PathPrefix(first_segments=SEGMENTS).route_path(scope) == "/ctr/predict"
    assert "root_path" not in scope


@pytest.mark.parametrize("client", ["10.0.0.7", "::1", "::ffff:10.0.0.7", "192.168.1.1"])
def test_a_trusted_proxy_says_the_prefix(client: str) -> None:
    trusted = ["10.0.0.0/24", "::1", "192.168.1.1"]
    prefixes = PathPrefix(root_path="/own", trusted_proxies=trusted, first_segments=SEGMENTS)
    for given, wanted in (("/ctr", "/ctr"), ("/ctr/", "/ctr"), ("/a/b.c_d~e-1", "/a/b.c_d~e-1"), ("/", "")):
        scope = request_scope("/predict", (b"x-forwarded-prefix", given.encode()), client=client)
        assert prefixes.route_path(scope) == "/predict"
        assert scope.get("root_path", "") == wanted
        assert scope["path"] == f"{wanted}/predict"


@pytest.mark.parametrize("client", ["10.0.1.7", "::2", "::ffff:10.0.1.7", "unix", "", None])
def test_nobody_else_does(client: str | None) -> None:
    for root_path in ("", "/own"):
        trusted = ["10.0.0.0/24", "::1"]
        prefixes = PathPrefix(root_path=root_path, trusted_proxies=trusted, first_segments=SEGMENTS)
        scope = request_scope("/predict", (b"x-forwarded-prefix", b"/ctr"), client=client)
        assert prefixes.route_path(scope) == "/predict"
        assert scope["path"] == f"{root_path}/predict"


@pytest.mark.parametrize(
    "given",
    [
        [b"ctr"],
        [b"//evil.example"],
        [b"/\\evil.example"],
        [b"https://evil.example"],
        [b"/a//b"],
        [b"/a/../b"],
        [b"/."],
        [b"/a?b"],
        [b"/a#b"],
        [b"/a%2fb"],
        [b"/a b"],
        [b"/a\r\nX: y"],
        [b'/"><script>'],
        [b"/a, /b"],
        [b"/\xc3\xa9"],
        [b"/" + b"a" * 256],
        [b"/a", b"/b"],
    ],
)
def test_what_is_no_prefix_counts_for_nothing(given: list[bytes]) -> None:
    prefixes = PathPrefix(root_path="/own", trusted_proxies=["10.0.0.7"], first_segments=SEGMENTS)
    scope = request_scope("/predict", *((b"x-forwarded-prefix", value) for value in given))
    assert prefixes.route_path(scope) == "/predict"
    assert scope["root_path"] == "/own"


@pytest.mark.parametrize("is_passed_on", [True, False])
@pytest.mark.parametrize("how", ["--root-path", "X-Forwarded-Prefix"])
async def test_what_is_told_begins_with_the_prefix(
    settings: Settings, database: Database, how: str, is_passed_on: bool
) -> None:
    _, key = await create_key(database, "all", SCOPES)
    headers = {"X-API-Key": key, "X-Forwarded-Prefix": "/shop/ctr"}
    changes: dict[str, Any] = {"root_path": "/shop/ctr"}
    if how == "X-Forwarded-Prefix":
        changes = {"trusted_proxies": ("127.0.0.1",)}
    async with running_app(settings.model_copy(update=changes)) as api:
        api.client.headers.update(headers)
        before = "/shop/ctr" if is_passed_on else ""
        page = (await api.client.get(f"{before}/docs")).text
        assert "url: '/shop/ctr/openapi.json'" in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f'"/shop/ctr/docs/{name}"' in page
            assert (await api.client.get(f"{before}/docs/{name}")).status_code == 200
        assert (await api.client.get(f"{before}/openapi.json")).json()["servers"] == [{"url": "/shop/ctr"}]
        assert (await api.client.post(f"{before}/predict", json=QUESTION)).status_code == 200
        body = {"interactions": [event(1)]}
        assert (await api.client.post(f"{before}/interactions", json=body)).status_code == 200
        closed = await api.client.post(f"{before}/periods/close")
        assert closed.status_code == 202
        assert closed.json()["status_url"] == closed.headers["location"] == "/shop/ctr/periods/1"
        assert (await api.client.get(f"{before}/periods/1")).json()["status"] == "sealed"
        missing = await api.client.get(f"{before}/periods/77")
        assert (missing.status_code, missing.json()["instance"]) == (404, "/shop/ctr/periods/77")
        counted = (await api.client.get(f"{before}/metrics")).text
        for route in ("/predict", "/interactions", "/periods/close"):
            assert f'asmg_requests_total{{route="{route}",' in counted
        for path, methods in (("/predict", "POST"), ("/periods", "GET"), ("/users/u/1", "DELETE, GET")):
            refused = await api.client.patch(before + path)
            assert (refused.status_code, refused.headers["allow"]) == (405, methods)
        # And by the prefix of nobody.
        assert (await api.client.get("/other/predict")).status_code == 404


def test_predictions_behind_a_prefix(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    for client in served_with(postgres_dsn, redis_url, tmp_path, root_path="/ctr"):
        for path in ("/predict", "/ctr/predict", "/ctr/predict"):
            assert client.post(path, json=QUESTION).status_code == 200
        rare = {"X-API-Key": client.headers["X-Rare"]}
        client.post("/ctr/predict", json=QUESTION, headers=rare)
        refused = client.post("/ctr/predict", json=QUESTION, headers=rare)
        assert (refused.status_code, refused.json()["instance"]) == (429, "/ctr/predict")
        assert client.post("/ctr/ctr/predict", json=QUESTION).status_code == 404
        [line] = re.findall(r'asmg_requests_total\{route="/predict",status="200"\} (\S+)', client.get("/metrics").text)
        assert float(line) == 4
        assert json.loads(client.get("/ctr/openapi.json").content)["servers"] == [{"url": "/ctr"}]
