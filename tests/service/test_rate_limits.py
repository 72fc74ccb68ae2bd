"""What a key may send, counted by one process; `test_rate_limits_shared` tests several."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from service.cli import app as program
from service.errors import InvalidInput, RateLimited, Unauthorized
from service.limits import MAX_RATE, UNKNOWN_KEYS_BURST, UNKNOWN_KEYS_RATE
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ApiKey
from service.storage.redis.rate_buckets import DEBT_SECONDS, RateBuckets
from service.use_cases import auth, key_lookups
from service.use_cases.auth import KeyCache, RateLimiter
from service.use_cases.keys import create_key, limit_key, list_keys, revoke_key
from service.use_cases.rate_limit import Bucket
from tests.conftest import in_thread
from tests.service.api_support import Api, event, running_app, served_app, settings_for

QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}


@given(
    rate=st.floats(0.5, 1000),
    burst=st.floats(1, 50),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_a_bucket_admits_what_one_that_counts_tokens_does(rate: float, burst: float, gaps: list[float]) -> None:
    bucket, tokens, now = Bucket(rate, burst), burst, 1e6
    for gap in gaps:
        now += gap
        tokens = min(burst, tokens + gap * rate)
        wait = bucket.take(now)
        if abs(tokens - 1) < 1e-3:  # rounding decides; what it decided is taken over
            tokens = max(tokens, 1.0) if not wait else min(tokens, 1.0)
        else:
            assert (wait == 0) == (tokens >= 1)
        if wait:
            assert wait == pytest.approx((1 - tokens) / rate, abs=2e-3 / rate + 1e-5)
        else:
            tokens -= 1


async def test_redis_counts_what_all_have_used(redis: Redis) -> None:
    buckets = [RateBuckets(redis), RateBuckets(redis)]
    started = time.monotonic()

    async def charge(process: int, seconds: float, since: float = 0.0) -> float:
        left = await buckets[process].charge("k", seconds=seconds, burst_seconds=2.0, since=since)
        assert left is not None
        return left

    def soon(value: float) -> object:
        """The value, or what it has grown to meanwhile."""
        elapsed = time.monotonic() - started
        return pytest.approx(value + elapsed / 2, abs=elapsed / 2 + 1e-3)

    assert await charge(0, 0.5) == pytest.approx(1.5, abs=1e-3)
    assert await charge(1, 1.0) == soon(0.5)
    assert await charge(0, 1.0) == soon(-0.5)
    assert await redis.pttl("asmg:rate:k") == pytest.approx(1000 * (2.5 + 2), abs=1000)
    # Debts have an end, and so has what is kept of them.
    assert await charge(1, 1000.0) == pytest.approx(-DEBT_SECONDS, abs=0.1)
    assert await redis.pttl("asmg:rate:k") <= 1000 * (DEBT_SECONDS + 2 * 2.0) + 1
    # What two used at the same time, each over half a second, was not there twice.
    await redis.delete("asmg:rate:k")
    assert await charge(0, 0.4, since=0.5) == pytest.approx(2.1, abs=1e-3)  # the bucket is full, and more than that
    assert await charge(1, 0.4, since=0.5) == pytest.approx(1.7, abs=0.1)
    assert await buckets[0].charge("another", seconds=0.5, burst_seconds=2.0, since=0) == pytest.approx(1.5, abs=1e-3)


@pytest.fixture
async def limiter(redis: Redis) -> AsyncIterator[RateLimiter]:
    limiter = RateLimiter(RateBuckets(redis), rate=2.0, burst_seconds=1.5)
    yield limiter
    await limiter.close()


def key_of(name: str, rate: float | None = None) -> ApiKey:
    return ApiKey(key_id=name, name=name, secret_hash="", scopes=("predict",), rate_limit=rate)


def taken_at_once(limiter: RateLimiter, key: ApiKey, most: int = 20) -> int:
    for count in range(most):
        try:
            limiter.admit(key)
        except RateLimited as refusal:
            assert refusal.retry_after >= 1
            return count
    return most


async def test_a_key_has_the_limit_of_the_setting_or_its_own(limiter: RateLimiter) -> None:
    assert taken_at_once(limiter, key_of("as set")) == 3  # 1.5 s of it
    assert taken_at_once(limiter, key_of("quick", 6.0)) == 9
    assert taken_at_once(limiter, key_of("slow", 0.25)) == 1  # never less than one
    assert taken_at_once(limiter, key_of("free", 0.0)) == 20
    # A limit that is changed holds from then on.
    assert taken_at_once(limiter, key_of("slow", 4.0)) == 6


async def test_how_long_to_wait_is_said_in_whole_seconds(limiter: RateLimiter) -> None:
    key = key_of("slow", 0.1)
    limiter.admit(key)
    with pytest.raises(RateLimited, match=r"at most 0\.1 requests a second") as refusal:
        limiter.admit(key)
    assert refusal.value.retry_after == 10


async def test_keys_that_rest_are_forgotten_and_others_not(
    limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MOST_ACCOUNTS", 10)
    busy = key_of("busy", 0.01)
    limiter.admit(busy)
    for number in range(30):
        limiter.admit(key_of(f"{number}", MAX_RATE))
        await asyncio.sleep(0.002)
    assert len(limiter) <= 10
    with pytest.raises(RateLimited):
        limiter.admit(busy)


async def test_who_is_over_the_limit_is_named_in_the_log_once_a_minute(
    limiter: RateLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        taken_at_once(limiter, key_of("greedy"))
    assert caplog.text.count("key greedy (greedy) makes more than its 2 requests a second") == 1


def counted(text: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith("asmg_rate_limited_total")]
    return float(line.split(" ")[-1])


@pytest.fixture
def key(postgres_dsn: str) -> str:
    """A key with a request each 100 s, and ten of them at once."""

    async def make() -> str:
        database = Database(postgres_dsn, pool_size=1)
        try:
            return (await create_key(database, "test", ["predict", "ingest"], rate_limit=0.01))[1]
        finally:
            await database.close()

    return in_thread(asyncio.run, make())


@pytest.fixture
def client(key: str, postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = settings_for(postgres_dsn, redis_url, tmp_path, rate_burst_seconds=1000.0)
    with served_app(settings) as url, httpx.Client(base_url=url, headers={"X-API-Key": key}) as client:
        yield client


def test_a_request_counts_once_whichever_way_it_goes(client: httpx.Client) -> None:
    batch = {"requests": [QUESTION] * 5}
    events = {"interactions": [event(n) for n in range(5)]}
    calls = [
        client.build_request("POST", "/predict", json=QUESTION),  # the key is not known yet
        client.build_request("POST", "/predict", json=QUESTION),  # at once
        client.build_request("POST", "/predict", json={"user_id": "new", "items": ["a"]}),  # not at once: a history
        client.build_request("POST", "/predict", json={"user_id": "u"}),  # nor what is wrong
        client.build_request("POST", "/predict/batch", json=batch),
        client.build_request("POST", "/interactions", json=events),
        client.build_request("GET", "/periods"),
        client.build_request("GET", "/periods/9"),
        client.build_request("GET", "/admin/models"),  # nor what the key may not do
        client.build_request("POST", "/periods/close"),
    ]
    for call in calls:
        assert client.send(call).status_code in (200, 403, 404, 422)
    refused = [
        client.send(call)
        for call in (
            *calls,
            client.build_request(
                "POST", "/predict", content=iter([b"{"]), headers={"Content-Type": "application/json"}
            ),
        )
    ]
    for response in refused:
        assert response.status_code == 429
        assert 80 <= int(response.headers["retry-after"]) <= 100
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"]
        document = response.json()
        said = {
            "type": "urn:asmg:problem:rate-limited",
            "title": "Too many requests",
            "status": 429,
            "detail": "expected at most 0.01 requests a second with this key; received more",
            "instance": response.request.url.path,
        }
        assert said.items() <= document.items()
    # Those need no key, and are not counted.
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.post("/predict", json=QUESTION, headers={"X-API-Key": "none"}).status_code == 401
    text = client.get("/metrics").text
    assert counted(text) == len(refused)
    assert 'asmg_requests_total{route="/predict",status="429"} 5.0' in text.splitlines()


async def test_without_a_limit_and_without_a_key_nothing_is_counted(api: Api, redis: Redis) -> None:
    for _ in range(50):
        assert (await api.client.post("/predict", json=QUESTION)).status_code == 200
    assert await redis.keys("asmg:rate:*") == []
    _, key = await create_key(api.state.database, "test", ["predict"])
    await asyncio.sleep(1.1)  # for so long it is believed that there is none
    for _ in range(50):
        assert (await api.client.post("/predict", json=QUESTION, headers={"X-API-Key": key})).status_code == 200
    assert await redis.keys("asmg:rate:*") == []


async def test_the_setting_limits_keys_without_a_limit_of_their_own(settings: Settings, database: Database) -> None:
    _, plain = await create_key(database, "plain", ["predict"])
    _, free = await create_key(database, "free", ["predict"], rate_limit=0)
    async with running_app(settings.model_copy(update={"rate_limit": 0.01})) as api:
        for key, statuses in ((plain, [200, 429, 429]), (free, [200, 200, 200])):
            for status in statuses:
                response = await api.client.post("/predict", json=QUESTION, headers={"X-API-Key": key})
                assert response.status_code == status


async def test_keys_that_nobody_has_cost_the_database_only_so_much(api: Api, database: Database) -> None:
    _, key = await create_key(database, "real", ["predict"])
    _, unseen = await create_key(database, "unseen", ["predict"])

    async def ask(key: str) -> httpx.Response:
        return await api.client.post("/predict", json=QUESTION, headers={"X-API-Key": key})

    assert (await ask(key)).status_code == 200
    started = time.monotonic()
    made_up = [f"asmg_{number:012x}_{'x' * 43}" for number in range(UNKNOWN_KEYS_BURST + 300)]
    answers = await asyncio.gather(*map(ask, made_up))
    looked_up = [answer.status_code for answer in answers].count(401)
    seconds = time.monotonic() - started
    assert UNKNOWN_KEYS_BURST <= looked_up <= UNKNOWN_KEYS_BURST + UNKNOWN_KEYS_RATE * seconds + 1
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == len(answers) - looked_up > 0
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert counted((await api.client.get("/metrics")).text) >= len(refused)
    # A key that was seen lately is looked up all the same, and one that was not as soon as there is room.
    await asyncio.sleep(1.05)
    assert (await ask(key)).status_code == 200
    assert (await ask(unseen)).status_code == 200


async def test_keys_that_nobody_has_do_not_push_out_those_that_somebody_has(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_lookups, "MAX_VERDICTS", 5)
    cache = KeyCache(database, ttl_seconds=60)
    _, key = await create_key(database, "real", ["predict"])
    await cache.authenticate(key)
    for number in range(20):
        with pytest.raises(Exception, match="valid API key"):
            await cache.authenticate(f"asmg_{number:012x}_{'x' * 43}")
        assert cache.known(key.encode()) is not None
        assert len(cache.verdicts) <= 5


async def test_only_keys_that_nobody_has_count_as_unknown(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_lookups, "UNKNOWN_KEYS_RATE", 1e-6)
    monkeypatch.setattr(key_lookups, "UNKNOWN_KEYS_BURST", 30)
    cache = KeyCache(database, ttl_seconds=0)
    made_up = (f"asmg_{number:012x}_{'x' * 43}" for number in itertools.count())
    for _ in range(10):
        with pytest.raises(Unauthorized):
            await cache.authenticate(next(made_up))
    keys = [(await create_key(database, "real", ["predict"]))[1] for _ in range(20)]
    for _ in range(2):  # looked up as unknown ones, then again as known ones
        for key in keys:
            await cache.authenticate(key)
    for _ in range(20):
        with pytest.raises(Unauthorized):
            await cache.authenticate(next(made_up))
    with pytest.raises(RateLimited, match="too many unknown ones came"):
        await cache.authenticate(next(made_up))


@pytest.mark.parametrize("rate", [-1.0, 1e-9, 1e7, float("nan"), float("inf")])
async def test_a_rate_that_cannot_be_is_refused(rate: float, database: Database) -> None:
    with pytest.raises(InvalidInput, match="requests a second"):
        await create_key(database, "test", ["predict"], rate_limit=rate)
    assert await list_keys(database) == []
    with pytest.raises(ValueError, match="requests a second"):
        Settings(rate_limit=rate)


async def test_the_limit_of_a_key_can_be_changed(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "test", ["predict"])

    async def statuses() -> list[int]:
        await asyncio.sleep(1.05)  # for so long a process believes what it knows of a key
        headers = {"X-API-Key": key}
        return [(await api.client.post("/predict", json=QUESTION, headers=headers)).status_code for _ in range(3)]

    assert await statuses() == [200, 200, 200]
    assert await limit_key(database, key_id, 0.01, reason="too greedy")
    assert await statuses() == [200, 429, 429]
    assert await limit_key(database, key_id, None)
    assert await statuses() == [200, 200, 200]
    with pytest.raises(InvalidInput, match="requests a second"):
        await limit_key(database, key_id, -1)
    assert await revoke_key(database, key_id)
    assert not await limit_key(database, key_id, 5)
    async with database.read() as session:
        noted = [entry for entry in await session.audit.list(10) if entry.action == "limit_key"]
    assert [entry.detail["rate_limit"] for entry in noted] == [None, 0.01]
    assert noted[-1].reason == "too greedy"


def test_a_limit_is_set_at_the_command_line(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}

    def keys(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(program, ["keys", *arguments], env={**given, "COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    key_id = keys("create", "some", "--scope", "predict", "--rate", "2.5").stdout.split("_")[1]
    assert re.search(r"some\b.*\b2\.5/s", keys("list").stdout)
    assert keys("limit", key_id, "--rate", "0").stdout == f"asmg: key {key_id} has its new limit\n"
    assert re.search(r"some\b.*\bany\b", keys("list").stdout)
    refused = keys("create", "x", "--scope", "predict", "--rate", "-1", code=1)
    assert "expected a rate of 0.001 to 1000000 requests a second, or 0; received -1" in refused.stderr
    assert "there is no valid key 000000000000" in keys("limit", "000000000000", code=1).stderr
