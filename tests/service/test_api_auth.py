"""API keys: who may call which endpoint."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace

import pytest

from service.errors import InvalidInput, NotReady, Unauthorized
from service.settings import Settings
from service.storage.postgres.database import Database, ReadSession
from service.use_cases import key_lookups
from service.use_cases.audit import command_line
from service.use_cases.auth import KeyCache
from service.use_cases.keys import SCOPES, create_key, list_keys, revoke_key
from tests.service.api_support import Api, event, running_app

QUESTION = {"user_id": "u", "items": ["a"]}


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
    for own in ("::1", "::ffff:127.0.0.1"):
        async with running_app(settings, client_host=own) as api:
            assert (await api.client.post("/predict", json=QUESTION)).status_code == 200
    async with running_app(settings, client_host="192.0.2.7") as api:
        for path, body in (("/predict", QUESTION), ("/predict/batch", {"requests": [QUESTION]})):
            response = await api.client.post(path, json=body)
            assert response.status_code == 401
            assert "asmg keys create" in response.json()["detail"]
        assert (await api.client.get("/readyz")).status_code == 200


async def test_before_the_first_key_a_proxy_is_nobody_of_this_host(api: Api) -> None:
    for name in ("Forwarded", *(f"X-Forwarded-{what}" for what in ("For", "Host", "Prefix", "Proto")), "X-Real-IP"):
        headers = {name: "192.0.2.7"}
        assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 401
        assert (await api.client.get("/admin/models", headers=headers)).status_code == 401
    assert (await api.client.post("/predict", json=QUESTION)).status_code == 200


async def test_before_the_first_key_no_page_makes_a_browser_of_this_host_call(api: Api) -> None:
    """A page of another origin can make a browser post, and through a host name that resolves to this host it could
    also read the answer.
    """
    own = {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}
    for headers, status in (
        (own, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.example.com"}, 401),
        ({"Host": "rebound.example.com:8000", "Origin": "http://rebound.example.com:8000"}, 401),
        ({"Host": "localhost.example.com"}, 401),
        (own | {"Origin": "https://example.com"}, 401),
        (own | {"Origin": "http://127.0.0.1:9999"}, 401),
        (own | {"Origin": "null"}, 401),
    ):
        assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == status, headers
        assert (await api.client.get("/admin/models", headers=headers)).status_code == status, headers


async def test_a_key_that_is_remembered_still_needs_the_scope(api: Api, database: Database) -> None:
    """The key is remembered for a second, not longer."""
    _, key = await create_key(database, "writer", ["ingest"])
    _, reader = await create_key(database, "reader", ["predict"])
    headers = {"X-API-Key": key}
    await api.state.keys.authenticate(key)
    assert api.state.keys.known(key.encode()) is not None
    for path, body in (("/predict", QUESTION), ("/predict/batch", {"requests": [QUESTION]})):
        assert (await api.client.post(path, json=body, headers=headers)).status_code == 403
    headers = {"X-API-Key": reader}
    assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 200
    assert api.state.keys.known(reader.encode()) is not None
    assert api.state.keys.known(reader[:-1].encode()) is None
    assert api.state.keys.known(b"\xff") is None
    assert await revoke_key(database, reader.split("_")[1])
    await asyncio.sleep(1.05)
    assert api.state.keys.known(reader.encode()) is None
    for _ in range(2):  # the refusal is remembered too, and not for a key
        assert (await api.client.post("/predict", json=QUESTION, headers=headers)).status_code == 401
        assert api.state.keys.known(reader.encode()) is None


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
    assert actions == {"create_key": command_line(), "close_period": f"night job ({key_id})"}


async def test_keys_are_stored_hashed_and_differ(database: Database) -> None:
    made = [await create_key(database, f"key {number}", ["predict", "admin"]) for number in range(3)]
    listed = await list_keys(database)
    assert [key.key_id for key in listed] == [key_id for key_id, _ in made]
    assert all(key.scopes == ("predict", "admin") for key in listed)
    for key_id, plain in made:
        found = re.fullmatch(rf"asmg_{key_id}_([\w-]{{43}})", plain)
        assert found is not None
        assert found[1] not in repr(listed)
        assert all(plain not in key.secret_hash for key in listed)


async def test_what_makes_no_key(database: Database) -> None:
    for name, scopes in (
        ("name", []),
        ("name", ["write"]),
        ("  ", ["predict"]),
        ("n" * 101, ["predict"]),
        ("line\nline", ["predict"]),
        ("nul\0", ["predict"]),
    ):
        with pytest.raises(InvalidInput, match="expected"):
            await create_key(database, name, scopes)
    now = datetime.now(UTC)
    for expires_at in (now, now - timedelta(days=1), now + timedelta(days=3651)):
        with pytest.raises(InvalidInput, match="expected a key to expire later than now and within 3650 days"):
            await create_key(database, "name", ["predict"], expires_at=expires_at)
    assert not await list_keys(database)
    assert await create_key(database, "n" * 100, ["predict"], expires_at=now + timedelta(days=3650))


async def test_whether_a_key_is_right_is_decided_by_a_comparison_in_constant_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that comparison decides: if it says no, the right key is refused; if it says yes, any key is accepted."""
    _, key = await create_key(database, "one", ["predict"])
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    compared: list[tuple[str, str]] = []

    def comparing(verdict: bool) -> None:
        def compare_digest(one: str, other: str) -> bool:
            compared.append((one, other))
            return verdict

        monkeypatch.setattr(key_lookups, "hmac", SimpleNamespace(compare_digest=compare_digest))

    comparing(False)
    with pytest.raises(Unauthorized):
        await KeyCache(database).authenticate(key)
    comparing(True)
    assert (await KeyCache(database).authenticate(wrong)).name == "one"
    # And it is hashes that are compared, of one length.
    assert [sha256(each.encode()).hexdigest() for each in (key, wrong)] == [given for _, given in compared]
    assert {stored for stored, _ in compared} == {sha256(key.encode()).hexdigest()}


class Counting:
    """A database that counts its sessions, and can be away or hang."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads = 0
        self.away = False
        self.hanging = False
        self._end = asyncio.Event()

    def read(self) -> AbstractAsyncContextManager[ReadSession]:
        self.reads += 1
        if self.away:
            raise NotReady("away")
        return self._hang() if self.hanging else self.database.read()

    @asynccontextmanager
    async def _hang(self) -> AsyncIterator[ReadSession]:
        await self._end.wait()
        raise NotReady("away")
        yield

    def let_go(self) -> None:
        """Have the sessions that hang fail."""
        self._end.set()


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
    counting.let_go()
    counting.away = True
    await asyncio.sleep(0.7)
    with pytest.raises(NotReady):
        await cache.authenticate(key)


async def test_keys_are_known_before_they_are_used(database: Database) -> None:
    """So that Postgres may fail in between: for a new process, and for a key that was not used for long."""
    _, key = await create_key(database, "unused", ["predict"])
    revoked_id, revoked = await create_key(database, "revoked", ["predict"])
    await revoke_key(database, revoked_id)
    counting = Counting(database)
    counting.away = True
    cache = KeyCache(counting, ttl_seconds=0.02)  # type: ignore[arg-type]
    following = asyncio.create_task(cache.follow())
    await asyncio.sleep(0.1)  # it tries again until Postgres answers
    assert not following.done()
    with pytest.raises(NotReady):
        await cache.authenticate(key)
    counting.away = False
    await asyncio.wait_for(cache.wait_learned(), 5)
    counting.away = True
    await asyncio.sleep(0.05)
    assert (await cache.authenticate(key)).name == "unused"
    assert not await cache.open_access()
    with pytest.raises(NotReady):
        await cache.authenticate(revoked)
    following.cancel()


@pytest.mark.parametrize("postgres", ["answers", "away", "hanging"])
async def test_a_key_is_refused_from_the_moment_at_which_it_expires(
    database: Database, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_lookups, "PATIENCE_SECONDS", 0.02)
    expires_at = datetime.now(UTC) + timedelta(seconds=1)
    _, key = await create_key(database, "short", ["predict"], expires_at=expires_at)
    counting = Counting(database)
    cache = KeyCache(counting, ttl_seconds=0.05, grace_seconds=60)  # type: ignore[arg-type]
    assert (await cache.authenticate(key)).expires_at == expires_at
    counting.away, counting.hanging = postgres == "away", postgres == "hanging"
    while datetime.now(UTC) < expires_at - timedelta(seconds=0.5):
        assert (await cache.authenticate(key)).name == "short"
        assert cache.known(key.encode()) is not None
        await asyncio.sleep(0.02)
    await asyncio.sleep(max(0.0, expires_at.timestamp() - time.time()))
    reads = counting.reads
    for _ in range(3):
        assert cache.known(key.encode()) is None
        with pytest.raises(Unauthorized):
            await cache.authenticate(key)
    assert counting.reads == reads  # that needs nobody to tell
    counting.let_go()


async def test_a_key_that_expires_is_refused_while_its_last_answer_is_still_believed(database: Database) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=0.2)
    _, key = await create_key(database, "short", ["predict"], expires_at=expires_at)
    cache = KeyCache(database, ttl_seconds=60)
    assert (await cache.authenticate(key)).name == "short"
    assert cache.known(key.encode()) is not None
    await asyncio.sleep(max(0.0, expires_at.timestamp() - time.time()))
    assert cache.known(key.encode()) is None
    with pytest.raises(Unauthorized):
        await cache.authenticate(key)


async def test_a_key_that_was_never_seen_waits_for_a_database_that_hangs_so_long_and_no_longer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_lookups, "DEADLINE_SECONDS", 0.1)
    counting = Counting(database)
    counting.hanging = True
    cache = KeyCache(counting)  # type: ignore[arg-type]
    with pytest.raises(NotReady, match="did not answer within"):
        await cache.authenticate("asmg_000000000000_" + "x" * 43)
    counting.let_go()
