"""The health of a worker: whether its work progresses, as another process of the host sees it."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from asmg.batch import PeriodData
from service import heartbeat, worker
from service.errors import NotReady
from service.heartbeat import Heartbeat, check_workers
from service.settings import Settings
from service.storage.redis.notices import Notices
from tests.service.programs import asmg, wait_for
from tests.service.update_doubles import Meddled
from tests.service.update_support import bench, periods, updater_of
from tests.service.worker_processes import forked_worker

LIMIT = 1.0


pytestmark = pytest.mark.usefixtures("one_thread")


def is_well(folder: Path, limit: float = LIMIT) -> bool:
    with suppress(NotReady):
        return check_workers(folder / "workers", limit) <= limit
    return False


class Clock:
    """The clock of `service.heartbeat`; it goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class TestFile:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(heartbeat, "time", clock)
        return clock

    def test_without_a_worker_the_check_fails(self, tmp_path: Path) -> None:
        with pytest.raises(NotReady, match="no worker with this data folder runs on this host"):
            check_workers(tmp_path / "none", LIMIT)

    def test_the_check_says_how_long_ago_the_last_beat_was(self, tmp_path: Path, clock: Clock) -> None:
        worker = Heartbeat(tmp_path / "workers")
        assert not is_well(tmp_path)  # not before it has done anything
        worker.beat()
        assert is_well(tmp_path)
        clock.now += 0.3
        assert check_workers(tmp_path / "workers", 0.4) == pytest.approx(0.3)
        with pytest.raises(NotReady, match=r"^worker \d+ has not got any further for 0\.3 s; expected at most 0\.2 s$"):
            check_workers(tmp_path / "workers", 0.2)
        worker.close()
        assert list((tmp_path / "workers").iterdir()) == []

    def test_many_beats_are_few_writes(self, tmp_path: Path, clock: Clock) -> None:
        worker = Heartbeat(tmp_path / "workers")
        worker.beat()
        (path,) = (tmp_path / "workers").iterdir()
        before = path.read_bytes()
        for _ in range(19):
            clock.now += 0.01
            worker.beat()
        assert path.read_bytes() == before  # of the first one; the others came within a fifth of a second
        clock.now += 0.02
        worker.beat()
        assert path.read_bytes() != before
        worker.close()

    def test_files_of_dead_workers_are_not_believed_and_removed(self, tmp_path: Path, clock: Clock) -> None:
        folder = tmp_path / "workers"
        folder.mkdir()
        left = folder / f"{socket.gethostname()}.4711.0123abcd.heartbeat"
        left.write_text(f"{clock.now:.6f}")
        assert not is_well(tmp_path)
        worker = Heartbeat(folder)
        worker.beat()
        assert is_well(tmp_path)
        assert not left.exists()
        worker.close()

    def test_one_that_stands_still_is_not_hidden_by_another(self, tmp_path: Path, clock: Clock) -> None:
        still, busy = Heartbeat(tmp_path / "workers"), Heartbeat(tmp_path / "workers")
        still.beat()
        clock.now += 0.3
        busy.beat()
        assert is_well(tmp_path)
        assert not is_well(tmp_path, 0.2)
        still.close()
        assert is_well(tmp_path, 0.2)
        busy.close()

    def test_of_containers_that_share_a_volume_each_sees_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "other")
            other = Heartbeat(tmp_path / "workers")
            other.beat()
            assert is_well(tmp_path, 60)
        assert not is_well(tmp_path, 60)
        other.close()

    def test_a_disk_that_takes_nothing_is_logged_once_and_stops_nothing(
        self, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "workers").write_text("no folder")
        worker = Heartbeat(tmp_path / "workers")
        for _ in range(3):
            worker.beat()
            clock.now += 0.25
        assert [record.message[:32] for record in caplog.records] == ["the heartbeat is not written: [E"]
        (tmp_path / "workers").unlink()
        worker.beat()
        assert is_well(tmp_path)
        worker.close()


class Slow(Meddled):
    """Takes its time before it trains, and reports progress meanwhile or does not."""

    def __init__(self, name: str, go_on: threading.Event, *, tells: bool) -> None:
        super().__init__(updater_of(name), lambda stage, data: None)
        self._go_on, self._tells = go_on, tells

    @override
    def run_stage(self, stage: str, state: Any, data: PeriodData, **options: Any) -> Any:
        while stage == "update_base" and not self._go_on.wait(0.05):
            if self._tells:
                options["progress"](0.5)
        return super().run_stage(stage, state, data, **options)


@pytest.mark.parametrize("tells", [True, False], ids=["trains", "hangs"])
async def test_a_long_training_is_well_and_one_that_hangs_is_not(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """The event loop of both keeps running: only progress of the work counts."""
    go_on = threading.Event()
    monkeypatch.setattr(worker, "configured_updater", lambda *_: Slow("iu", go_on, tells=tells))
    monkeypatch.setattr(worker, "NOTE_LEADER_SECONDS", 0.05)
    settings = Settings(
        postgres_dsn=postgres_dsn, redis_url=redis_url, data_dir=tmp_path, worker_poll_seconds=0.02, updater="iu"
    )
    async with bench(postgres_dsn, redis_url, tmp_path, updater="iu") as b:
        await b.log(periods(1)[0])
        task = asyncio.create_task(worker.run(settings))
        try:
            await until(lambda: stage_runs(b, "update_base"))
            await asyncio.sleep(1.5 * LIMIT)
            if tells:  # a busy host has some time for it; one that hangs would never be well again
                await until(lambda: asyncio.to_thread(is_well, tmp_path))
            assert is_well(tmp_path) is tells
            at = await Notices(b.redis).leader_at()
            assert at is not None
            assert (time.time() - at < 1.5 * LIMIT) is tells
            go_on.set()
            await until(lambda: is_updated(b))
            assert is_well(tmp_path)
        finally:
            go_on.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    assert not is_well(tmp_path)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.02)


async def stage_runs(b: Any, name: str) -> bool:
    async with b.database.read() as session:
        stage = await session.stages.get(1, name)
    return stage is not None and stage.status == "running"


async def is_updated(b: Any) -> bool:
    async with b.database.read() as session:
        period = await session.periods.get(1)
    return period is not None and period.version == 1


@pytest.mark.slow
class TestProcess:
    """Real workers; a worker that only waits is healthy."""

    def test_frozen_continued_killed(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        data = tmp_path / "data"
        with forked_worker(postgres_dsn, redis_url, tmp_path) as running:
            wait_for(lambda: is_well(data))
            asmg("worker", "--check", "--data-dir", str(data))
            running.send(signal.SIGSTOP)
            wait_for(lambda: not is_well(data))
            with pytest.raises(NotReady, match=f"^worker {running.pid} has not got any further for"):
                check_workers(data / "workers", LIMIT)
            running.send(signal.SIGCONT)
            wait_for(lambda: is_well(data))
            running.kill()
            assert not is_well(data)
            result = asmg("worker", "--check", "--data-dir", str(data), code=1)
            assert "no worker with this data folder runs on this host" in result.stderr

    def test_a_worker_in_reserve_is_well(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        with (
            forked_worker(postgres_dsn, redis_url, tmp_path),
            forked_worker(postgres_dsn, redis_url, tmp_path) as second,
        ):
            wait_for(lambda: len(list((tmp_path / "data" / "workers").glob("*.heartbeat"))) == 2)
            time.sleep(1.5 * LIMIT)
            wait_for(lambda: is_well(tmp_path / "data"))
            second.stop()
            wait_for(lambda: is_well(tmp_path / "data"))

    def test_one_that_waits_for_postgres_is_well(self, redis_url: str, tmp_path: Path) -> None:
        nowhere = "postgresql://asmg@127.0.0.1:9/asmg"
        with forked_worker(nowhere, redis_url, tmp_path) as running:
            wait_for(lambda: "worker waits" in running.log)
            assert is_well(tmp_path / "data", 30)
