"""`asmg serve` and related programs, really started, killed and stopped."""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import httpx
import psutil
import pytest
from sqlalchemy import make_url

from service.errors import ConfigurationError
from service.processes import supervisor
from service.processes.installation import installation, require_redis
from service.processes.listening import listen
from service.processes.supervisor import Supervisor
from tests.conftest import Servers, create_database, database_dsn, drop_database, in_thread
from tests.service.api_support import event, make_keys, settings_for
from tests.service.programs import Program, asmg, program, wait_for

pytestmark = pytest.mark.slow

QUESTION = {"user_id": "u", "items": ["a", "b"]}


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_life_with_servers_of_its_own(data_dir: Path, tmp_path: Path) -> None:
    place = ("--data-dir", str(data_dir))
    with program(tmp_path, "--host", "0.0.0.0", "--workers", "2", "--no-worker", *place) as first:
        # Without a key it does not listen where it was told to, and says so in one line.
        assert first.host == "127.0.0.1"
        said = [line for line in first.err.splitlines() if line.startswith("asmg:")]
        assert len(said) == 1
        assert "asmg keys create" in said[0]
        with httpx.Client(base_url=first.url) as client:
            assert client.post("/predict", json=QUESTION).json()["scores"] == pytest.approx([0.5, 0.5])

            made = asmg("keys", "create", "all", "--scope", "predict,ingest", "--scope", "admin", *place)
            key = made.stdout.strip()
            key_id = key.split("_")[1]
            headers = {"Authorization": f"Bearer {key}"}
            wait_for(lambda: client.post("/predict", json=QUESTION).status_code == 401, 5)
            assert client.post("/predict", json=QUESTION, headers=headers).status_code == 200
            assert key_id in asmg("keys", "list", *place, COLUMNS="200").stdout
            assert client.post("/interactions", json={"interactions": [event(1)]}, headers=headers).is_success

        failures, served = kill_a_child_under_load(first, headers)
        assert failures == []
        assert served > 50
        assert_metrics_are_of_all_processes(first, headers)

        # A request in flight ends well: this one answers a second and a half after it was sent.
        body = {"to_version": 0, "sequence": "keep", "reason": "a slow call"}
        children = first.children()
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(httpx.post, f"{first.url}/admin/rollback", json=body, headers=headers, timeout=20)
            time.sleep(0.5)
            first.stop(signal.SIGINT)
            assert slow.result().status_code == 200
        assert all(is_gone(child) for child in children)
        assert not (data_dir / "postgres" / "postmaster.pid").exists()

    # The second start goes on where the first ended, and listens where it is told to, for there is a key.
    with program(tmp_path, "--host", "0.0.0.0", "--no-worker", *place) as second:
        assert second.host == "0.0.0.0"
        assert httpx.get(f"{second.url}/periods/1", headers=headers).json()["events"] == 1
        children = second.children()
        second.process.kill()
        second.process.join()
        wait_for(lambda: all(is_gone(child) for child in children), 15)

    # What a killed program leaves behind is taken over.
    with program(tmp_path, "--no-worker", *place) as third:
        assert httpx.get(f"{third.url}/periods/1", headers=headers).json()["events"] == 1
        assert asmg("keys", "revoke", key_id, *place).stdout == f"asmg: key {key_id} is revoked\n"
        assert "no valid key" in asmg("keys", "revoke", key_id, *place, code=1).stderr
        wait_for(
            lambda: httpx.post(f"{third.url}/predict", json=QUESTION, headers=headers, verify=False).status_code == 401,
            5,
        )


def kill_a_child_under_load(served_by: Program, headers: dict[str, str]) -> tuple[list[str], int]:
    """Failed connections and answered requests while one of two api processes is killed and comes back."""
    failures: list[str] = []
    served = 0
    stop = Event()

    def ask() -> None:
        nonlocal served
        while not stop.is_set():
            # A connection each: one that the killed process held open cannot but break.
            try:
                response = httpx.post(
                    f"{served_by.url}/predict", json=QUESTION, headers=headers, timeout=10, verify=False
                )
                assert response.status_code == 200
                served += 1
            except httpx.ConnectError as error:
                failures.append(repr(error))
            except httpx.TransportError:
                pass  # it was with the process that was killed

    victim, survivor = served_by.children()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        time.sleep(0.3)
        victim.kill()
        wait_for(lambda: len(served_by.children()) == 2 and victim not in served_by.children())
        time.sleep(1)
        wait_for(lambda: served > 50)  # on a busy host it takes longer
        stop.set()
        asking.result()
    assert survivor.is_running()
    assert re.search(r"api \d ended with code -9; it is started again", served_by.err)
    return failures, served


def assert_metrics_are_of_all_processes(served_by: Program, headers: dict[str, str]) -> None:
    def predictions() -> float:
        text = httpx.get(f"{served_by.url}/metrics").text
        match = re.search(r'^asmg_requests_total{route="/predict",status="200"} (\S+)$', text, re.MULTILINE)
        assert match is not None
        return float(match[1])

    before = predictions()
    for _ in range(10):
        httpx.post(f"{served_by.url}/predict", json=QUESTION, headers=headers)
    assert {predictions() for _ in range(10)} == {before + 10}


def test_a_port_that_is_taken(servers: Servers, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = asmg("serve", "--port", port, "--no-worker", code=1, **given)
    assert f"asmg: cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_configured_servers(servers: Servers, database_numbers: Iterator[int], redis_url: str, tmp_path: Path) -> None:
    name = f"asmg_test_serve_{os.getpid()}_{next(database_numbers)}"
    create_database(servers, name, "template0")
    dsn = database_dsn(servers, name)
    given = {"ASMG_POSTGRES_DSN": dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    try:
        refused = asmg("serve", "--port", "0", code=1, **given)
        assert "run `asmg migrate` first" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert "asmg migrate" in asmg("keys", "list", code=1, **given).stderr
        with program(tmp_path, "--migrate", **given) as running:
            assert len(running.children()) == 1  # the api, and no worker unless asked for
            assert httpx.get(f"{running.url}/readyz").json()["model_version"] == 0
        assert asmg("migrate", **given).stdout == "asmg: the schema is up to date\n"
        with program(tmp_path, **given):
            pass
    finally:
        drop_database(servers, name)


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    half = asmg("serve", code=2, ASMG_POSTGRES_DSN="postgresql://nowhere/x", ASMG_DATA_DIR=str(tmp_path))
    assert "ASMG_REDIS_URL" in half.stderr
    away = {"ASMG_POSTGRES_DSN": "postgresql://127.0.0.1:1/x", "ASMG_REDIS_URL": "redis://127.0.0.1:1"}
    for command in (["serve", "--port", "0"], ["migrate"], ["keys", "list"], ["worker"]):
        result = asmg(*command, code=1, ASMG_DATA_DIR=str(tmp_path), **away)
        assert "Postgres does not answer" in result.stderr
        assert "Traceback" not in result.stderr
    assert "ASMG_PORT" in asmg("serve", code=2, ASMG_PORT="70000", ASMG_DATA_DIR=str(tmp_path)).stderr


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the supervisor; it goes on when a test says so."""
    clock = SimpleNamespace(now=0.0, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


def test_a_child_that_keeps_dying_is_started_less_and_less_often(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Supervisor({"flaky": [sys.executable, "-S", "-c", "raise SystemExit(3)"]}, environment={})
    delays: list[float] = []

    def has_died_again() -> bool:
        flaky.start_missing()
        found = re.findall(r"flaky ended with code 3; it is started again in (\S+) s", caplog.text)
        if len(found) == len(delays):
            return False
        delays.append(float(found[-1]))
        return True

    for _ in range(8):
        wait_for(has_died_again)
        clock.now += delays[-1]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_child_that_ran_for_a_while_is_started_again_soon(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its earlier failures do not count any more."""
    healthy = tmp_path / "healthy"
    run = "import pathlib, sys, time; time.sleep(60) if pathlib.Path(sys.argv[1]).exists() else sys.exit(3)"
    child = Supervisor({"child": [sys.executable, "-S", "-c", run, str(healthy)]}, environment={})

    def has_logged(line: str) -> bool:
        child.start_missing()
        return line in caplog.text

    wait_for(lambda: has_logged("child ended with code 3; it is started again in 0.5 s"))
    clock.now += 0.5
    wait_for(lambda: has_logged("child ended with code 3; it is started again in 1.0 s"))
    healthy.touch()
    clock.now += 1
    child.start_missing()
    [running] = (process for process in psutil.Process().children() if str(healthy) in process.cmdline())
    clock.now += 31
    running.kill()
    wait_for(lambda: has_logged("child ended with code -9; it is started again in 0.5 s"))


def test_a_child_that_does_not_end_is_killed_when_hurried(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ignore = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    ready = tmp_path / "ready"
    stubborn = Supervisor({"stubborn": [sys.executable, "-c", ignore, str(ready)]}, environment={})
    stubborn.start_missing()
    wait_for(ready.exists)
    [child] = (process for process in psutil.Process().children() if str(ready) in process.cmdline())
    hurry = Event()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stubborn.stop, hurried=hurry.is_set)
        time.sleep(0.3)
        assert not stopping.done()
        hurry.set()
        stopping.result(5)
    assert is_gone(child)
    assert "stubborn did not end; it is killed" in caplog.text


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6 loopback")


@pytest.mark.parametrize(
    ("asked", "bound", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", ["127.0.0.1"]),
        ("127.0.0.5", "127.0.0.5", ["127.0.0.5"]),
        ("::ffff:127.0.0.1", "127.0.0.1", ["127.0.0.1"]),
        pytest.param("::1", "::1", ["::1"], marks=needs_ipv6),
        pytest.param("::", "::", ["::1", "127.0.0.1"], marks=needs_ipv6),
    ],
)
def test_where_it_listens(asked: str, bound: str, reached: list[str]) -> None:
    with listen(asked, 0) as listener:
        assert listener.getsockname()[0] == bound
        for address in reached:
            socket.create_connection((address, listener.getsockname()[1]), timeout=5).close()


def test_an_address_of_no_interface_is_said_as_it_stands_in_urls() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on \[2001:db8::1\]:8000: "):
        listen("2001:db8::1", 8000)


@needs_ipv6
def test_ipv6_without_a_key_and_with_one(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """`::1` is a loopback address: the service listens there and on no other address."""
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    with program(tmp_path, "--host", "::1", "--no-worker", **given) as running:
        assert running.host == "[::1]"
        assert "only this host can call the service (::1)" in running.err
        url = f"http://{running.host}:{running.port}/predict"
        assert httpx.post(url, json=QUESTION).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{running.port}/healthz")
        key, _ = in_thread(asyncio.run, make_keys(postgres_dsn))
        wait_for(lambda: httpx.post(url, json=QUESTION, verify=False).status_code == 401, 5)
        assert httpx.post(url, json=QUESTION, headers={"X-API-Key": key}).status_code == 200


AWAY = "redis://:s3cret-word@127.0.0.1:1/0"


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["worker"]], ids=["serve", "worker"])
def test_a_redis_that_does_not_answer_at_the_start_ends_it(
    postgres_dsn: str, tmp_path: Path, command: list[str]
) -> None:
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": AWAY, "ASMG_DATA_DIR": str(tmp_path)}
    assert asmg(*command, code=1, **given).stderr == (
        "asmg: the Redis of ASMG_REDIS_URL does not answer: ConnectionError; "
        "ASMG_START_WITHOUT_REDIS=true starts without it, slower\n"
    )


def test_a_redis_that_does_not_answer_at_the_start_where_that_is_allowed(
    postgres_dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(postgres_dsn, AWAY, tmp_path)
    with pytest.raises(ConfigurationError, match="the Redis of ASMG_REDIS_URL does not answer"):
        require_redis(settings)
    assert not caplog.text
    require_redis(settings.model_copy(update={"start_without_redis": True}))
    assert "the Redis of ASMG_REDIS_URL does not answer: ConnectionError; the service starts without it" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_postgres_that_refuses_is_said_in_one_line(
    servers: Servers, postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """The embedded one has no passwords, but no such database and no such user either."""
    for dsn, reason in (
        (database_dsn(servers, "s3cret_name"), "has no database of this name"),
        (make_url(postgres_dsn).set(username="s3cret_user").render_as_string(), "does not let this user in"),
    ):
        with pytest.raises(ConfigurationError) as raised, installation(settings_for(dsn, redis_url, tmp_path)):
            pass
        assert str(raised.value) == f"the Postgres of ASMG_POSTGRES_DSN {reason}"
        assert raised.value.__suppress_context__
