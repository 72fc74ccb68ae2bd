"""Who may call what."""

import asyncio
import re
import time
from contextlib import AbstractAsyncContextManager

import pytest

from service.errors import NotReady, Unauthorized
from service.settings import Settings
from service.storage.database import Database, ReadSession
from service.use_cases.auth import SCOPES, KeyCache, create_key, list_keys, revoke_key
from tests.service.api_support import Api, event, running_app

CALLS = {
    ("POST", "/predict"): {"predict"},
    ("POST", "/predict/batch"): {"predict"},
    ("POST", "/interactions"): {"ingest"},
    ("POST", "/impressions"): {"ingest"},
    ("POST", "/clicks"): {"ingest"},
    ("PUT", "/items"): {"ingest"},
    ("POST", "/periods/close"): {"admin"},
    ("GET", "/periods"): {"admin", "ingest"},
    ("GET", "/periods/1"): {"admin", "ingest"},
    ("GET", "/periods/9/events"): {"admin", "ingest"},
    ("GET", "/admin/models"): {"admin"},
    ("GET", "/admin/models/0"): {"admin"},
    ("POST", "/admin/rollback"): {"admin"},
}
QUESTION = {"user_id": "u", "items": ["a"]}
OPEN = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")


async def test_every_scope_with_every_call(api: Api, database: Database) -> None:
    keys = {scope: (await create_key(database, scope, [scope]))[1] for scope in SCOPES}
    for (method, path), allowed in CALLS.items():
        for scope, key in keys.items():
            for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
                # Not JSON, so that nothing changes: a caller who is let in gets to hear about that.
                response = await api.client.request(method, path, headers=headers, content=b"{")
                if scope in allowed:
                    assert response.status_code not in (401, 403), (method, path, scope)
                else:
                    assert response.status_code == 403
                    assert any(repr(name) in response.json()["detail"] for name in allowed)
        for headers in ({}, {"X-API-Key": "asmg_000000000000_" + "x" * 43}, {"Authorization": "Basic YTpi"}):
            response = await api.client.request(method, path, headers=headers, content=b"{")
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["content-type"] == "application/problem+json"
    for path in OPEN:
        assert (await api.client.get(path)).status_code == 200


async def test_where_a_key_may_stand(api: Api, database: Database) -> None:
    _, key = await create_key(database, "reader", ["predict"])
    bodies = {"/predict": QUESTION, "/predict/batch": {"requests": [QUESTION]}, "/admin/models": None}
    none = "asmg_000000000000_" + "x" * 43
    for path, body in bodies.items():
        let_in = 200 if body else 403
        for headers, status in (
            ([("Authorization", f"Bearer {key}")], let_in),
            ([("authorization", f"bearer  {key} ")], let_in),
            ([("X-API-Key", key)], let_in),
            ([("Authorization", "Basic YTpi"), ("X-API-Key", key)], let_in),
            ([("X-API-Key", none), ("Authorization", f"Bearer {key}")], let_in),
            ([("Authorization", f"Bearer {none}"), ("X-API-Key", key)], 401),
            ([("X-API-Key", none), ("X-API-Key", key)], 401),
            ([("Authorization", "Bearer"), ("X-API-Key", key)], 401),
            ([("Authorization", key)], 401),
            ([("X-API-Key", "")], 401),
            ([("X-API-Key", b"\xff\xfe")], 401),
            ([("Cookie", key)], 401),
        ):
            response = await api.client.request("POST" if body else "GET", path, json=body, headers=headers)
            assert response.status_code == status, (path, headers)


async def test_before_the_first_key_only_this_host_may_call(settings: Settings, database: Database) -> None:
    async with running_app(settings, client_host="::1") as api:
        assert (await api.client.post("/predict", json=QUESTION)).status_code == 200
    async with running_app(settings, client_host="192.0.2.7") as api:
        for path, body in (("/predict", QUESTION), ("/predict/batch", {"requests": [QUESTION]})):
            response = await api.client.post(path, json=body)
            assert response.status_code == 401
            assert "asmg keys create" in response.json()["detail"]
        assert (await api.client.get("/readyz")).status_code == 200


async def test_before_the_first_key_a_proxy_is_nobody_of_this_host(api: Api) -> None:
    for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP"):
        headers = {name: "192.0.2.7"}
        assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 401
        assert (await api.client.get("/admin/models", headers=headers)).status_code == 401
    assert (await api.client.post("/predict", json=QUESTION)).status_code == 200


async def test_a_key_that_is_remembered_still_needs_the_scope(api: Api, database: Database) -> None:
    """And is remembered for a second, not longer."""
    _, key = await create_key(database, "writer", ["ingest"])
    _, reader = await create_key(database, "reader", ["predict"])
    headers = {"X-API-Key": key}
    assert (await api.client.post("/interactions", json={"interactions": [event(1)]}, headers=headers)).is_success
    assert api.parts.keys.known(key.encode()) is not None
    for path, body in (("/predict", QUESTION), ("/predict/batch", {"requests": [QUESTION]})):
        assert (await api.client.post(path, json=body, headers=headers)).status_code == 403
    headers = {"X-API-Key": reader}
    assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 200
    assert api.parts.keys.known(reader.encode()) is not None
    assert api.parts.keys.known(reader[:-1].encode()) is None
    assert api.parts.keys.known(b"\xff") is None
    assert await revoke_key(database, reader.split("_")[1])
    await asyncio.sleep(1.05)
    assert api.parts.keys.known(reader.encode()) is None
    for _ in range(2):  # the refusal is remembered too, and not for a key
        assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 401
        assert api.parts.keys.known(reader.encode()) is None


async def test_after_the_last_key_was_revoked_nobody_may_call(settings: Settings, database: Database) -> None:
    key_id, _ = await create_key(database, "only", ["predict"])
    assert await revoke_key(database, key_id)
    async with running_app(settings) as api:
        assert (await api.client.post("/predict", json=QUESTION)).status_code == 401


async def test_a_revoked_key_is_refused_within_a_second(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "short lived", ["ingest"])
    headers = {"X-API-Key": key}
    assert (await api.client.post("/interactions", json={"interactions": [event(1)]}, headers=headers)).is_success
    assert await revoke_key(database, key_id)
    assert not await revoke_key(database, key_id)
    await asyncio.sleep(1.05)
    response = await api.client.post("/interactions", json={"interactions": [event(2)]}, headers=headers)
    assert response.status_code == 401


async def test_the_audit_names_the_key(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "night job", SCOPES)
    headers = {"X-API-Key": key}
    await api.client.post("/interactions", json={"interactions": [event(1)]}, headers=headers)
    assert (await api.client.post("/periods/close", headers=headers)).status_code == 202
    async with database.read() as session:
        actions = {entry.action: entry.actor for entry in await session.audit.list(10)}
    assert actions == {"create_key": "command line", "close_period": f"night job ({key_id})"}


async def test_keys_are_stored_hashed_and_differ(database: Database) -> None:
    made = [await create_key(database, f"key {number}", ["predict", "admin"]) for number in range(3)]
    listed = await list_keys(database)
    assert [key.key_id for key in listed] == [key_id for key_id, _ in made]
    assert all(key.scopes == ("predict", "admin") for key in listed)
    for key_id, plain in made:
        assert re.fullmatch(rf"asmg_{key_id}_[\w-]{{43}}", plain)
        assert plain.rpartition("_")[2] not in repr(listed)
        assert all(plain not in key.secret_hash for key in listed)


async def test_what_makes_no_key(database: Database) -> None:
    for name, scopes in (("name", []), ("name", ["write"]), ("  ", ["predict"])):
        with pytest.raises(ValueError, match="expected"):
            await create_key(database, name, scopes)
    assert not await list_keys(database)


class Counting:
    """A database that counts its sessions, and can be away or hang."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads = 0
        self.away = False
        self.hanging = False

    def read(self) -> AbstractAsyncContextManager[ReadSession]:
        self.reads += 1
        if self.away:
            raise NotReady("away")
        return _Hanging() if self.hanging else self.database.read()


class _Hanging:
    async def __aenter__(self) -> ReadSession:
        await asyncio.sleep(3600)
        raise AssertionError

    async def __aexit__(self, *_: object) -> None: ...


async def test_many_requests_cost_one_look_up(database: Database) -> None:
    _, key = await create_key(database, "busy", ["predict"])
    counting = Counting(database)
    cache = KeyCache(counting)  # type: ignore[arg-type]
    await asyncio.gather(*(cache.authenticate(key) for _ in range(100)))
    await asyncio.gather(*(cache.authenticate(key) for _ in range(100)))
    assert counting.reads == 1
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await cache.authenticate(key[:-1] + ("A" if key[-1] != "A" else "B"))
    assert counting.reads == 2
    with pytest.raises(Unauthorized):
        await cache.authenticate("no key at all")
    assert counting.reads == 2


async def test_a_known_key_is_believed_while_postgres_is_away_or_hangs(database: Database) -> None:
    _, key = await create_key(database, "lasting", ["predict"])
    _, other = await create_key(database, "not seen", ["predict"])
    counting = Counting(database)
    cache = KeyCache(counting, ttl_seconds=0.01, grace_seconds=0.6)  # type: ignore[arg-type]
    await cache.authenticate(key)
    await asyncio.sleep(0.02)
    counting.away = True
    assert (await cache.authenticate(key)).name == "lasting"
    with pytest.raises(NotReady):
        await cache.authenticate(other)
    counting.away, counting.hanging = False, True
    await asyncio.sleep(0.02)
    started = time.monotonic()
    assert (await cache.authenticate(key)).name == "lasting"
    assert time.monotonic() - started < 0.5
    for lookup in cache._lookups.values():
        lookup.cancel()
    counting.away = True
    await asyncio.sleep(0.7)
    with pytest.raises(NotReady):
        await cache.authenticate(key)
