"""Who may call what, as one table: every endpoint with every kind of key, in both headers.

An endpoint that is not in the table fails the tests, so that whoever adds one has to enter who may call it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from service.http.hot_routes import HotRoutes
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key, revoke_key
from tests.service.api_support import Api, running_app, served_app

ANYBODY = frozenset({"anybody"})
"""Of calls that need no key, and get none looked at."""


NO_ID = "x" * 257


@dataclass(frozen=True)
class Call:
    """One endpoint, and a request to it that changes nothing."""

    method: str
    path: str
    """As the routes have it; `{number}` and `{version}` become 0, `{key_id}` one that nobody has, other ids a text that
    is too long to be one.
    """
    scopes: frozenset[str]
    """A key with one of them is let in."""
    status: int
    """What a caller gets who is let in."""
    body: Any = None

    @property
    def target(self) -> str:
        path = self.path.replace("{number}", "0").replace("{version}", "0").replace("{key_id}", "0" * 12)
        path = path.replace("{name}", "style.css" if path.startswith("/console/") else "swagger-ui.css")
        return path.replace("{user_id}", NO_ID).replace("{item_id}", NO_ID)


def scopes(*names: str) -> frozenset[str]:
    return frozenset(names)


QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}

TABLE = [
    Call("POST", "/predict", scopes("predict"), 200, QUESTION),
    Call("POST", "/predict/batch", scopes("predict"), 200, {"requests": [QUESTION]}),
    Call("POST", "/interactions", scopes("ingest"), 422, {"interactions": []}),
    Call("POST", "/impressions", scopes("ingest"), 422, {"impressions": []}),
    Call("POST", "/clicks", scopes("ingest"), 422, {"clicks": []}),
    Call("PUT", "/items", scopes("ingest"), 422, {"items": []}),
    Call("PUT", "/users", scopes("ingest"), 422, {"users": []}),
    Call("GET", "/items/{item_id}", scopes("admin"), 422),
    Call("DELETE", "/items/{item_id}", scopes("admin"), 422),
    Call("GET", "/users/{user_id}", scopes("admin"), 422),
    Call("DELETE", "/users/{user_id}", scopes("admin"), 422),
    Call("POST", "/periods/close", scopes("admin"), 409, {"expected_period": 0}),
    Call("GET", "/periods", scopes("admin", "ingest"), 200),
    Call("GET", "/periods/{number}", scopes("admin", "ingest"), 404),
    Call("GET", "/periods/{number}/events", scopes("admin", "ingest"), 404),
    Call("POST", "/periods/{number}/retry", scopes("admin"), 422, {}),
    Call("POST", "/periods/{number}/skip", scopes("admin"), 422, {}),
    Call("GET", "/admin/models", scopes("admin"), 200),
    Call("GET", "/admin/models/{version}", scopes("admin"), 200),
    Call("GET", "/admin/models/{version}/breakdown", scopes("admin"), 200),
    Call("POST", "/admin/models/{version}/pin", scopes("admin"), 422, {}),
    Call("POST", "/admin/models/{version}/unpin", scopes("admin"), 422, {}),
    Call("POST", "/admin/rollback", scopes("admin"), 422, {}),
    Call("GET", "/admin/audit", scopes("admin"), 200),
    Call("GET", "/admin/processes", scopes("admin"), 200),
    Call("GET", "/admin/guardrails", scopes("admin"), 200),
    Call("GET", "/admin/canary", scopes("admin"), 200),
    Call("POST", "/admin/canary/promote", scopes("admin"), 422, {}),
    Call("POST", "/admin/canary/revert", scopes("admin"), 422, {}),
    Call("GET", "/admin/replay", scopes("admin"), 422),
    Call("GET", "/admin/samples", scopes("admin"), 200),
    Call("GET", "/admin/alerts", scopes("admin"), 200),
    Call("POST", "/admin/alerts/{number}/acknowledge", scopes("admin"), 422, {}),
    Call("GET", "/admin/webhooks", scopes("admin"), 200),
    Call("POST", "/admin/webhooks", scopes("admin"), 422, {}),
    Call("DELETE", "/admin/webhooks/{number}", scopes("admin"), 404),
    Call("POST", "/admin/webhooks/{number}/rotate", scopes("admin"), 404),
    Call("POST", "/admin/webhooks/{number}/on", scopes("admin"), 422, {}),
    Call("POST", "/admin/webhooks/{number}/off", scopes("admin"), 422, {}),
    Call("GET", "/admin/webhooks/deliveries", scopes("admin"), 200),
    Call("POST", "/admin/webhooks/deliveries/{number}/redeliver", scopes("admin"), 404),
    Call("GET", "/admin/overview", scopes("admin"), 200),
    Call("GET", "/admin/keys", scopes("admin"), 200),
    Call("POST", "/admin/keys", scopes("admin"), 422, {}),
    Call("POST", "/admin/keys/{key_id}/revoke", scopes("admin"), 422, {}),
    Call("POST", "/admin/keys/{key_id}/limit", scopes("admin"), 422, {}),
    Call("GET", "/healthz", ANYBODY, 200),
    Call("GET", "/readyz", ANYBODY, 200),
    Call("GET", "/metrics", ANYBODY, 200),
    Call("GET", "/docs", ANYBODY, 200),
    Call("GET", "/docs/{name}", ANYBODY, 200),
    Call("GET", "/console", ANYBODY, 200),
    Call("GET", "/console/{name}", ANYBODY, 200),
    Call("GET", "/openapi.json", ANYBODY, 200),
]

HEADS = {"/healthz", "/readyz", "/docs", "/console", "/openapi.json"}
"""Paths that also answer HEAD."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE")

NO_KEYS = ("expired", "revoked", "wrong id", "wrong secret", "cut", "other case", "too long", "empty", "not ASCII")
"""Kinds of what may be presented and is no valid key."""


@pytest.fixture
async def keys(database: Database) -> Mapping[str, bytes]:
    """What a client may present, by kind: a key of each scope, and all that is none."""
    made = {scope: (await create_key(database, scope, [scope]))[1] for scope in SCOPES}
    soon = datetime.now(UTC) + timedelta(seconds=0.2)
    _, made["expired"] = await create_key(database, "expired", SCOPES, expires_at=soon)
    key_id, made["revoked"] = await create_key(database, "revoked", SCOPES)
    assert await revoke_key(database, key_id)
    good = made["admin"]
    made["wrong id"] = "asmg_000000000000" + good[17:]
    made["wrong secret"] = good[:-10] + "0123456789"
    made["cut"] = good[:-1]
    made["other case"] = good.swapcase()
    made["too long"] = good + good[5:] * 50
    made["empty"] = ""
    await asyncio.sleep(max(0.0, soon.timestamp() - time.time()))
    return {kind: key.encode() for kind, key in made.items()} | {"not ASCII": good.encode() + b"\xff\xfe"}


@pytest.fixture(params=["in process", "served"])
async def client(
    request: pytest.FixtureRequest, keys: Mapping[str, bytes], settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application itself, and of a server."""
    if request.param == "in process":
        async with running_app(settings) as api:
            yield api.client
    else:
        with served_app(settings) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                yield client


async def ask(client: httpx.AsyncClient, call: Call, headers: Mapping[str, bytes], query: str = "") -> httpx.Response:
    """The answer; one that only says that a server was too slow, on a busy machine, is asked for again."""
    for _ in range(5):
        response = await client.request(call.method, call.target + query, json=call.body, headers=dict(headers))
        if response.status_code != 503:
            break
        await asyncio.sleep(float(response.headers["retry-after"]))
    return response


def in_both_headers(key: bytes) -> list[dict[str, bytes]]:
    return [{"Authorization": (b"Bearer " + key).strip()}, {"X-API-Key": key}]


async def test_every_endpoint_with_every_kind_of_key(client: httpx.AsyncClient, keys: Mapping[str, bytes]) -> None:
    wrong: list[str] = []
    said: set[str] = set()
    for _ in range(2):  # the second time a server has the keys in memory, and what is none as well
        for call in TABLE:
            for kind, key in keys.items():
                for headers in in_both_headers(key):
                    response = await ask(client, call, headers)
                    if call.scopes is ANYBODY or kind in call.scopes:
                        expected = call.status
                    else:
                        expected = 401 if kind in NO_KEYS else 403
                    if response.status_code != expected:
                        wrong.append(f"{call.method} {call.path}, {kind}: {response.status_code}, not {expected}")
                    elif expected in (401, 403):
                        said.add(assert_refused(response, call))
    assert wrong == []
    # Which of the reasons it was is nobody's business.
    assert len([detail for detail in said if "scope" not in detail]) == 1


async def test_no_endpoint_lets_in_who_shows_no_key(client: httpx.AsyncClient, keys: Mapping[str, bytes]) -> None:
    key = keys["admin"]
    elsewhere: list[tuple[dict[str, bytes], str]] = [
        ({}, ""),
        ({"Authorization": key}, ""),
        ({"Authorization": b"Basic " + key}, ""),
        ({"Cookie": b"X-API-Key=" + key + b"; Authorization=" + key}, ""),
        ({"Proxy-Authorization": b"Bearer " + key}, ""),
        ({"X-Forwarded-For": b"127.0.0.1", "Host": b"localhost"}, ""),
        ({}, f"?api_key={key.decode()}&X-API-Key={key.decode()}&access_token={key.decode()}"),
    ]
    for call in TABLE:
        for headers, query in elsewhere:
            response = await ask(client, call, headers, query)
            if call.scopes is ANYBODY:
                assert response.status_code == call.status, (call, headers)
            else:
                assert response.status_code == 401, (call, headers)
                assert_refused(response, call)


def assert_refused(response: httpx.Response, call: Call) -> str:
    """What a refusal looks like; the reason that it gives."""
    document = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert document.keys() == {"type", "title", "status", "detail", "instance", "request_id"}
    assert document["instance"] == call.target
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["status"] == response.status_code
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)
    if response.status_code == 403:
        assert any(repr(scope) in document["detail"] for scope in call.scopes)
    return str(document["detail"])


async def test_other_methods_are_refused_and_say_which_there_are(
    client: httpx.AsyncClient, keys: Mapping[str, bytes]
) -> None:
    known = {call.target: {other.method for other in TABLE if other.target == call.target} for call in TABLE}
    for path, methods in known.items():
        for method in set(METHODS) - methods:
            for headers in ({}, {"X-API-Key": keys["admin"]}):
                response = await client.request(method, path, headers=headers)
                if method == "HEAD" and path in HEADS:
                    assert response.status_code == 200
                    assert response.content == b""
                    continue
                assert response.status_code == 405, (method, path)
                if method == "CONNECT" and response.headers.get("connection") == "close":
                    assert response.headers["allow"] == "", "a real server has no path for it: this is no proxy"
                    continue
                allowed = set(response.headers["allow"].split(", "))
                assert methods <= allowed <= methods | {"HEAD"}, (method, path)
                if method == "HEAD":
                    assert response.headers["content-type"] == "application/problem+json"
                else:
                    assert response.json()["status"] == 405


async def test_a_browser_gets_no_leave_to_call_from_another_origin(
    client: httpx.AsyncClient, keys: Mapping[str, bytes]
) -> None:
    asked = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    for call in TABLE:
        for method in ("OPTIONS", call.method):
            response = await client.request(method, call.target, headers=asked, json=call.body)
            assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_every_endpoint_of_the_application_is_in_the_table(api: Api) -> None:
    described = {
        (method.upper(), path)
        for path, methods in api.app.openapi()["paths"].items()
        for method in methods
        if method in ("get", "put", "post", "delete", "options", "head", "patch", "trace")
    }
    # What has no methods, such as a mounted application, is in no table and has to be thought about.
    routed = {
        (method, route.path_format or route.path)
        for route in iter_route_contexts(api.app.routes)
        for method in route.methods or {"MOUNT"}
    }
    routed -= {("HEAD", path) for path in HEADS}
    hot = api.app.middleware_stack
    assert isinstance(hot, HotRoutes)
    answered_before_routing = {("POST", path) for path in hot.routes}
    known = {(call.method, call.path) for call in TABLE}
    assert len(known) == len(TABLE)
    assert described | routed | answered_before_routing == known
    assert {path for _, path in known} - {path for _, path in described} == {
        "/docs",
        "/docs/{name}",
        "/console",
        "/console/{name}",
        "/openapi.json",
    }


def test_a_scope_that_nothing_needs_is_none() -> None:
    assert {scope for call in TABLE for scope in call.scopes - ANYBODY} == set(SCOPES)
