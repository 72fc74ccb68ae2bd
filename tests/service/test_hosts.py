"""Three api hosts on one Postgres and one Redis: versions take over together, and a host that lags is told.

Each host is the application with a data folder of its own, whose connections go through proxies of the test (`Wire`).
They can be cut and slowed down.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import make_url

from service.serving.clock import MAX_ERROR_SECONDS, ServerClock
from service.serving.prior import prior_snapshot
from service.serving.snapshot import Snapshot
from service.serving.turns import Champion, Turns
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName
from service.storage.redis.notices import Notices
from service.tasks import end_tasks
from service.use_cases.keys import SCOPES, create_key
from service.use_cases.takeover import release_champion
from tests.service.api_support import Api, eventually, publish, running_app, settings_for
from tests.service.serving_support import random_model

PACE: dict[str, Any] = {"swap_lead_seconds": 0.8, "swap_wait_seconds": 0.5, "api_lease_seconds": 2.5}
SLOW = 100_000
"""Bytes a second of a slow wire."""
PIECE = 8192


@dataclass
class Wire:
    """Forwards the connections of one host to a server."""

    upstream: str | tuple[str, int]
    """Path of a Unix socket, or host and port."""
    cut: bool = False
    rate: float = float("inf")
    """Bytes a second of each connection from the server."""
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        with suppress(OSError):
            if not self.cut:
                opening = (
                    asyncio.open_unix_connection(self.upstream)
                    if isinstance(self.upstream, str)
                    else asyncio.open_connection(*self.upstream)
                )
                their_reader, their_writer = await opening
                self._writers.add(their_writer)
                await asyncio.wait(
                    [
                        asyncio.create_task(self._pass_on(reader, their_writer, slow=False)),
                        asyncio.create_task(self._pass_on(their_reader, writer, slow=True)),
                    ]
                )
        writer.close()
        self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                if slow:
                    await asyncio.sleep(len(data) / self.rate)
                writer.write(data)
                await writer.drain()
        writer.close()

    def break_off(self) -> None:
        """End all connections, and each new one at once."""
        self.cut = True
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Wire"]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.break_off()
            await end_tasks(*self._tasks)


@dataclass
class Host:
    """An api host behind its wires."""

    api: Api
    wires: tuple[Wire, ...]

    async def ask(self) -> int | None:
        """The version that answers a prediction; None where it is refused."""
        response = await self.api.client.post("/predict", json={"user_id": "u", "items": ["a"]})
        if response.status_code != 200:
            assert response.status_code == 503, response.text
            assert response.headers["retry-after"]
            return None
        return int(response.json()["model_version"])

    def break_off(self) -> None:
        for wire in self.wires:
            wire.break_off()

    def mend(self) -> None:
        for wire in self.wires:
            wire.cut, wire.rate = False, float("inf")

    async def swap(self) -> tuple[int, str]:
        """Status of /readyz, and what it says of the swap, or else its problem."""
        response = await self.api.client.get("/readyz")
        document = response.json()
        return response.status_code, document["checks"]["swap"] if response.status_code == 200 else document["detail"]


@dataclass
class Site:
    """Three hosts, and a client that asks one after the other."""

    hosts: list[Host]
    settings: Settings
    database: Database
    notices: Notices
    seen: list[tuple[int, int]] = field(default_factory=list)
    """Host and version of each answer, in order."""
    refused: Counter[int] = field(default_factory=Counter)

    async def ask_on(self) -> None:
        while True:
            for number, host in enumerate(self.hosts):
                version = await host.ask()
                if version is None:
                    self.refused[number] += 1
                else:
                    self.seen.append((number, version))
                await asyncio.sleep(0.002)

    async def announce(self, version: int, content: bytes | None = None) -> None:
        """Publish as a worker does."""
        artifacts = self.hosts[0].api.state.artifacts
        await publish(self.database, artifacts, version, 0.01 * version, lead_seconds=None, content=content)
        await self.notices.publish_swap()
        await release_champion(self.database, self.settings)

    async def until(self, version: int, *numbers: int, seconds: float = 15) -> None:
        """Return when each of these hosts has answered with the version."""
        deadline = time.monotonic() + seconds
        start = len(self.seen)
        while not set(numbers) <= {number for number, found in self.seen[start:] if found == version}:
            assert time.monotonic() < deadline, (version, numbers, Counter(self.seen[start:]), self.refused)
            await asyncio.sleep(0.02)

    async def listed(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self.hosts[0].api.client.get("/admin/processes")).json()
        return document

    async def metric(self, name: str, host: int = 0) -> float:
        text = (await self.hosts[host].api.client.get("/metrics")).text
        return float(text.partition(f"\n{name} ")[2].split()[0])

    async def until_metric(self, name: str, *, host: int = 0, seconds: float = 10) -> None:
        """Return when it is more than 0; a host tells when it reports the next time."""
        deadline = time.monotonic() + seconds
        while await self.metric(name, host) <= 0:
            assert time.monotonic() < deadline, name
            await asyncio.sleep(0.05)


@asynccontextmanager
async def site(dsn: str, redis_url: str, folder: Path, database: Database, **changes: Any) -> AsyncIterator[Site]:
    _, key = await create_key(database, "client", SCOPES)
    async with AsyncExitStack() as stack:
        hosts = []
        for number in range(3):
            postgres = await stack.enter_async_context(Wire(upstream_of_postgres(dsn)).running())
            redis = await stack.enter_async_context(Wire(upstream_of_redis(redis_url)).running())
            settings = settings_for(
                make_url(dsn).set(host="127.0.0.1", port=postgres.port, query={}).render_as_string(hide_password=False),
                f"redis://127.0.0.1:{redis.port}/{database_of_redis(redis_url)}",
                folder / str(number),
                **PACE | changes,
            )
            api = await stack.enter_async_context(running_app(settings))
            api.client.headers["Authorization"] = f"Bearer {key}"
            hosts.append(Host(api, (postgres, redis)))
        made = Site(hosts, settings, database, hosts[0].api.state.notices)
        asking = asyncio.create_task(made.ask_on())
        try:
            yield made
            if asking.done():
                asking.result()
        finally:
            await end_tasks(asking)
            for host in hosts:
                host.mend()


def upstream_of_postgres(dsn: str) -> str | tuple[str, int]:
    url = make_url(dsn)
    host, port = url.query.get("host", url.host), int(str(url.query.get("port", url.port or 5432)))
    return f"{host}/.s.PGSQL.{port}" if str(host).startswith("/") else (str(host), port)


def upstream_of_redis(address: str) -> str | tuple[str, int]:
    url = urlsplit(address)
    return url.path if url.scheme == "unix" else (str(url.hostname), url.port or 6379)


def database_of_redis(address: str) -> int:
    url = urlsplit(address)
    return int(parse_qs(url.query).get("db", ["0"])[0] if url.scheme == "unix" else url.path.strip("/") or 0)


def large(version: int) -> bytes:
    """A snapshot that takes longer on a slow wire than all looks at the host that lags."""
    return random_model(version, dim=8, items=[f"item {number}" for number in range(45_000)]).encoded()


async def test_versions_never_go_back_whatever_becomes_of_a_host(
    postgres_dsn: str, redis_url: str, tmp_path: Path, database: Database
) -> None:
    """With hosts that refuse to be behind."""
    async with site(postgres_dsn, redis_url, tmp_path, database, swap_laggards="refuse") as three:
        _, _, third = three.hosts
        for version in (1, 2):
            await three.announce(version)
            await three.until(version, 0, 1, 2)

        # A slow wire: the others take over after the wait. The slow one says why it does not answer, and catches up.
        for wire in third.wires:
            wire.rate = SLOW
        await three.announce(3, large(3))
        await three.until(3, 0, 1)
        status, trouble = await third.swap()
        assert status == 503
        assert trouble.startswith("version 3 took over ")
        listed = await three.listed()
        assert (listed["champion"], len(listed["processes"])) == (3, 3)
        assert sorted(process["ready"] for process in listed["processes"]) == [False, True, True]
        deadline = time.monotonic() + 10
        while (ready := await three.metric('asmg_api_processes{state="ready"}')) != 2:  # what was known a moment ago
            assert time.monotonic() < deadline, ready
            await asyncio.sleep(0.05)
        third.mend()
        await three.until(3, 2)
        assert (await third.swap()) == (200, "ok")

        # A wire that is cut: the others take over when the registration of that host has expired, which it knows.
        third.break_off()
        await three.announce(4)
        await three.until(4, 0, 1)
        assert await third.ask() is None
        assert len((await three.listed())["processes"]) == 2
        third.mend()
        await three.until(4, 2)

        # Back, with everybody there.
        rolled = {"to_version": 2, "sequence": "keep", "reason": "worse"}
        before = len(three.seen)
        assert (await three.hosts[0].api.client.post("/admin/rollback", json=rolled)).status_code == 200
        assert [await host.ask() for host in three.hosts] == [2, 2, 2]
        after = [version for _, version in three.seen[before:]]
        assert after == sorted(after, reverse=True)
    versions = [version for _, version in three.seen[:before]]
    assert versions == sorted(versions)
    assert set(versions) == {0, 1, 2, 3, 4}


async def test_a_host_that_lags_serves_on_by_default_and_says_so(
    postgres_dsn: str, redis_url: str, tmp_path: Path, database: Database
) -> None:
    async with site(postgres_dsn, redis_url, tmp_path, database) as three:
        _, second, third = three.hosts
        for wire in third.wires:
            wire.rate = SLOW
        second.break_off()
        await three.announce(1, large(1))
        await three.until(1, 0)
        assert (await three.hosts[0].api.client.get("/readyz")).json()["model_version"] == 1
        await three.until(0, 1, 2)  # both answer, and tell:
        status, trouble = await third.swap()
        assert (status, trouble[:20]) == (200, "version 1 took over ")
        assert trouble.endswith(" s ago, and this process has not loaded it")
        assert (await second.swap())[0] == 503
        assert "Postgres" in (second.api.state.serving.turns.trouble or "")
        await three.until_metric('asmg_api_processes{state="behind"}')
        await three.until_metric("asmg_swap_lag_seconds", host=2)
        for host in (second, third):
            host.mend()
        await three.until(1, 1, 2)
        assert not any(three.refused.values())
    for number in range(3):
        versions = [version for host, version in three.seen if host == number]
        assert versions == sorted(versions)


async def test_where_nobody_has_it_a_version_waits(api: Api, database: Database, settings: Settings) -> None:
    """Nobody serves it, so a snapshot that cannot be loaded stops nobody; the next version takes over at once."""
    hasty = settings.model_copy(update={"swap_wait_seconds": 0.0})
    artifacts = api.state.artifacts
    await publish(database, artifacts, 1, 0, lead_seconds=None, content=b"no snapshot")
    await api.state.notices.publish_swap()
    await eventually(lambda: api.state.serving.trouble is not None)
    assert not await release_champion(database, hasty)
    assert api.state.serving.current().version == 0
    await publish(database, artifacts, 2, 0.125, lead_seconds=None)
    await eventually(lambda: api.state.serving.current().version == 2)
    async with database.read() as session:
        alias = await session.models.alias(AliasName.CHAMPION)
        assert alias is not None and alias.announced_at is not None and alias.active_from is not None
        assert [turn.version for turn in await session.takeovers.turns()] == [2]


class Skewed(ServerClock):
    """A clock that is wrong by a known amount."""

    def __init__(self, skew: float, error: float) -> None:
        super().__init__()
        self.true, self._skew, self._own_error = 0.0, skew, error

    def read(self) -> tuple[float, float]:
        return self.true + self._skew, self._own_error


def test_clocks_that_are_wrong_within_their_errors_give_no_older_answer_after_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.safetensors"
    path.write_bytes(prior_snapshot(0.5))
    loaded = Snapshot.open(path, 2, 2)
    moment = datetime.fromtimestamp(100, UTC)
    processes = []
    for skew in (-0.03, 0.0, 0.02):
        clock = Skewed(skew, 0.03)
        turns = Turns(clock, lead_seconds=1)
        turns.follow([Champion(2, 2, "d", moment, 2)], [loaded], looked=0)
        processes.append((clock, turns))
    newest, waited = 1, 0
    for millisecond in range(99_900, 100_100):
        for clock, turns in processes:
            clock.true = millisecond / 1000
            if turns.turning_seconds(*clock.read()) > 0:
                waited += 1
                continue
            turns.take(*clock.read())
            version = 2 if turns.served_move == 2 else 1
            assert version >= newest
            newest = version
    assert (newest, waited) == (2, 3 * 59)


def test_the_time_of_postgres_is_known_within_half_a_round_trip() -> None:
    clock = ServerClock()
    sent = time.clock_gettime(time.CLOCK_BOOTTIME)
    for delay, there in ((0.5, 0.1), (0.02, 0.019), (0.08, 0.0)):
        clock.note(sent=sent, received=sent + delay, server=7_000_000 + there)
    now, error = clock.read()
    true = 7_000_000 + time.clock_gettime(time.CLOCK_BOOTTIME) - sent
    assert 0.0099 < error < 0.02
    assert abs(now - true) <= error
    clock = ServerClock()
    clock.note(sent=sent, received=sent + 4, server=0)
    assert clock.read()[1] == MAX_ERROR_SECONDS
