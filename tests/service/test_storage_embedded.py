"""The embedded servers: real processes, real kills."""

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis as redis_sync
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from service.errors import EmbeddedServerError
from service.storage.embedded.servers import EmbeddedServers
from tests.conftest import in_thread

USER = """
import sys
from pathlib import Path
from service.storage.embedded.servers import EmbeddedServers
with EmbeddedServers(Path(sys.argv[1])):
    print("started", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder with a short path, and nothing that runs in it afterwards."""
    with tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "data"


@pytest.fixture
def start_user(data_dir: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that use the folder until a line comes."""
    users: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        user = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        users.append(user)
        assert user.stdout is not None
        assert user.stdout.readline() == "started\n"
        return user

    yield start
    for user in users:
        user.kill()
        user.communicate()
    with EmbeddedServers(data_dir):  # the last user stops what killed ones left
        pass


def test_the_log_of_postgres_ends(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        started = (data_dir / "postgres" / "log").read_text()
        query(servers, "DO $$ BEGIN RAISE WARNING 'to be found again'; END $$")
        logs = list((data_dir / "postgres" / "logs").iterdir())
        assert [re.fullmatch(r"postgres-[A-Z][a-z]{2}\.log", path.name) is not None for path in logs] == [True]
        assert "to be found again" in logs[0].read_text()
        names = ("log_rotation_age", "log_rotation_size", "log_truncate_on_rotation")
        assert [query(servers, f"SHOW {name}") for name in names] == [[("1d",)], [("0",)], [("on",)]]
        assert (data_dir / "postgres" / "log").read_text() == started


def leave(user: subprocess.Popen[str]) -> None:
    user.communicate("\n", timeout=60)
    assert user.returncode == 0


def query(servers: EmbeddedServers, statement: str) -> list[tuple[object, ...]]:
    async def run() -> list[tuple[object, ...]]:
        engine = create_async_engine(servers.postgres_dsn)
        async with engine.begin() as connection:
            result = await connection.execute(text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
        await engine.dispose()
        return rows

    return in_thread(asyncio.run, run())


def pids(data_dir: Path) -> tuple[int, int]:
    """Of Postgres and Redis."""
    lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    return int(lines[0]), int((data_dir / "redis" / "redis.pid").read_text())


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stopping_stops_and_starting_again_continues(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        first = pids(data_dir)
        assert all(map(runs, first))
        query(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        with redis_sync.Redis.from_url(servers.redis_url) as client:
            assert client.set("lost", 1)
            assert client.config_get("port") == {"port": "0"} or client.config_get("port") == {b"port": b"0"}
        assert query(servers, "SHOW listen_addresses") == [("",)]
    assert not any(map(runs, first))
    with pytest.raises(EmbeddedServerError, match="expected the embedded servers to be started"):
        _ = servers.postgres_dsn

    with EmbeddedServers(data_dir) as servers:
        second = pids(data_dir)
        assert query(servers, "SELECT answer FROM kept") == [(42,)]
        with redis_sync.Redis.from_url(servers.redis_url) as client:
            assert client.get("lost") is None
    assert not any(map(runs, second))


def test_the_first_of_two_processes_leaves_and_the_other_works_on(
    data_dir: Path, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start_user()
    started = pids(data_dir)
    second = start_user()
    assert pids(data_dir) == started
    leave(first)
    assert all(map(runs, started))
    with EmbeddedServers(data_dir) as third:
        assert query(third, "SELECT 1") == [(1,)]
    assert all(map(runs, started))
    leave(second)
    assert not any(map(runs, started))


def test_many_start_at_once_and_share_one_pair_of_servers(data_dir: Path) -> None:
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for user in users:
        assert user.stdout is not None
        assert user.stdout.readline() == "started\n"
    started = pids(data_dir)
    assert all(map(runs, started))
    for user in users:
        leave(user)
    assert not any(map(runs, started))


def test_servers_that_a_killed_process_left_are_attached_to(
    data_dir: Path, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    user = start_user()
    orphans = pids(data_dir)
    user.send_signal(signal.SIGKILL)
    user.communicate()
    assert all(map(runs, orphans))
    with EmbeddedServers(data_dir) as servers:
        assert pids(data_dir) == orphans
        assert query(servers, "SELECT 1") == [(1,)]
    assert not any(map(runs, orphans))


def test_servers_that_were_killed_come_back_with_what_was_committed(data_dir: Path) -> None:
    with EmbeddedServers(data_dir) as servers:
        query(servers, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        for pid in pids(data_dir):
            os.kill(pid, signal.SIGKILL)
        with EmbeddedServers(data_dir) as again:
            assert query(again, "SELECT count(*) FROM kept") == [(1000,)]
            with redis_sync.Redis.from_url(again.redis_url) as client:
                assert client.ping()
        restarted = pids(data_dir)
        assert all(map(runs, restarted))
    assert not any(map(runs, restarted))


def test_a_pid_file_that_names_another_process_is_stale(data_dir: Path) -> None:
    with EmbeddedServers(data_dir):
        pass
    pid_file = data_dir / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{data_dir / 'postgres'}\n{int(time.time())}\n5432\n/tmp\n\n0 0\nready\n")
    with EmbeddedServers(data_dir) as servers:
        assert query(servers, "SELECT 1") == [(1,)]


def test_a_cluster_that_was_never_finished_is_made_anew(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("18\n")
    (data_dir / "postgres.unfinished").touch()
    with EmbeddedServers(data_dir) as servers:
        assert query(servers, "SELECT 1") == [(1,)]
    assert not (data_dir / "postgres.unfinished").exists()


def test_a_path_too_long_for_a_socket_works(data_dir: Path) -> None:
    folder = data_dir / ("long " * 20).strip() / "x"
    with EmbeddedServers(folder) as servers:
        assert query(servers, "SELECT 1") == [(1,)]
        with redis_sync.Redis.from_url(servers.redis_url) as client:
            assert client.ping()
        started = pids(folder)
        socket = Path(servers.redis_url.removeprefix("unix://"))
        assert not socket.is_relative_to(folder)
        assert socket.exists()
    assert not any(map(runs, started))
    assert not socket.parent.exists()


def test_no_redis_at_all_is_a_clear_error_and_leaves_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerError, match="expected redis-server or valkey-server on the PATH"):
        EmbeddedServers(data_dir).__enter__()
    assert (data_dir / "users.json").read_text() == "[]"
    assert not (data_dir / "postgres" / "postmaster.pid").exists()
