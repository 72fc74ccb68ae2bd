"""Nothing in Redis grows without bound: every key is of a known kind, and each kind is limited."""

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from service.storage.redis.connection import purge
from service.storage.redis.histories import HistoryStore
from service.use_cases.keys import SCOPES, create_key
from service.use_cases.retention import prune
from tests.service.api_support import running_app
from tests.service.update_support import bench, interactions, periods

BURST = 30
# As docs/operations.md has it. Kind of key: seconds that it lives at most, how many there are at most (None: one a user
# of the last hour), and how many members one has at most.
KINDS: dict[str, tuple[int, int | None, int | None]] = {
    r"asmg:past:.+": (3600, None, 90),
    r"asmg:features:.+": (3600, None, None),
    r"asmg:past-lease:.+": (10, None, None),
    r"asmg:rate:[0-9a-f]{12}": (2 * BURST + 60, 1, None),  # one a key, and there is one key
    r"asmg:progress": (24 * 3600, 1, None),
    r"asmg:leader": (24 * 3600, 1, None),
    r"asmg:hot:(serving|hidden)": (24 * 3600, 2, 2),
    r"asmg:artifact:[0-9a-f]{64}": (24 * 3600, 4, 1 + 128),  # two of each kind; 128 chunks of 1 MiB and their number
}


SETTINGS = {"swap_lead_seconds": 0, "keep_versions": 2, "rate_limit": 10_000, "rate_burst_seconds": BURST}


class NoDatabase:
    """For a reader that dies before it fills what it took a lease for."""

    def read(self) -> None:
        raise ConnectionError


async def members(redis: Redis, key: str) -> int | None:
    sizes: dict[bytes, Any] = {b"zset": redis.zcard, b"list": redis.llen, b"hash": redis.hlen}
    size = sizes.get(await redis.type(key))
    return None if size is None else await size(key)


async def test_every_key_has_a_bound(postgres_dsn: str, redis_url: str, tmp_path: Path, redis: Redis) -> None:
    async with (
        bench(postgres_dsn, redis_url, tmp_path, **SETTINGS) as b,
        running_app(b.settings) as api,
    ):
        _, api.client.headers["X-API-Key"] = await create_key(b.database, "all", SCOPES)
        await asyncio.sleep(1.05)  # until the process has noticed that there are keys
        for period in periods(4):
            await b.log(period, close=False)
            for click in interactions(period)[:40]:  # of users with and without a history, more than 30 clicks of one
                body = {"user_id": click.user_id, "items": [click.item_id]}
                assert (await api.client.post("/predict", json=body)).status_code == 200
            late = [
                {"event_id": f"{period.number} late {n}", "user_id": "busy", "item_id": "i1", "label": 1,
                 "timestamp": 1_790_000_000_000 + n}
                for n in range(20)
            ]  # fmt: skip
            assert (await api.client.post("/interactions", json={"interactions": late})).status_code == 200
            assert (await api.client.post("/predict", json={"user_id": "busy", "items": ["i1"]})).status_code == 200
            assert (await api.client.post("/periods/close")).status_code == 202
            await b.update(period.number)
            await b.context.notices.note_leader(0.0)
            await prune(b.database, period.number, b.settings)
            assert (await api.client.get(f"/periods/{period.number}")).json()["status"] == "updated"
    with suppress(ConnectionError):
        await HistoryStore(redis, NoDatabase()).get("nobody")  # type: ignore[arg-type]

    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for key in sorted(name.decode() for name in await redis.keys()):
        (kind,) = [kind for kind in KINDS if re.fullmatch(kind, key)]
        found[kind].append(key)
        seconds, _, most = KINDS[kind]
        assert 0 < await redis.ttl(key) <= seconds, key
        size = await members(redis, key)
        assert (size is None) == (most is None), key
        assert size is None or most is None or size <= most, key
    for kind, keys in found.items():
        most = KINDS[kind][1]
        assert keys, kind
        assert most is None or len(keys) <= most, keys
    assert 30 <= (await members(redis, "asmg:past:busy") or 0) <= 90
    assert len(found[r"asmg:artifact:[0-9a-f]{64}"]) == 4


async def test_purging_removes_what_is_ours_alone(redis: Redis) -> None:
    await redis.mset({f"asmg:past:{n}": n for n in range(2500)} | {"other:key": 1})
    assert await purge(redis) == 2500
    assert await redis.keys("*") == [b"other:key"]
    assert await purge(redis) == 0
