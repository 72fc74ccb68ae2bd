"""A worker of two processes, one of which is killed during an update."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from service.storage.postgres.database import Database
from tests.service.programs import environment, wait_for
from tests.service.test_failures import gate
from tests.service.test_failures import until as until_status
from tests.service.update_support import Prepared, bench, parts_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@contextmanager
def torchrun(dsn: str, redis_url: str, folder: Path, ranks: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`torchrun -m service.worker` and its log; gone after the block, with all of its processes."""
    log = folder / "torchrun.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--max-restarts=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "service.worker"]
    variables = {"POSTGRES_DSN": dsn, "REDIS_URL": redis_url, "DATA_DIR": str(folder / "data")}
    variables |= {"WORKER_POLL_SECONDS": "0.05", "RANK_TIMEOUT_SECONDS": "30"}
    env = environment(**{f"ASMG_{name}": value for name, value in variables.items()}, GLOO_SOCKET_IFNAME="lo")
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            yield process, log
        finally:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()


def rank_of(process: psutil.Process) -> int:
    return int(process.environ()["RANK"])


async def test_a_rank_killed_during_an_update(
    copy: Callable[..., str], prepared: Prepared, redis_url: str, tmp_path: Path
) -> None:
    """The period loses no attempt, all ranks start again, and the version is that of one process."""
    alone, dsn = copy(prepared.name), copy(prepared.name)
    with torchrun(dsn, redis_url, tmp_path, 2) as (runner, log):
        async with gate(dsn, "train_generator", "started") as held:
            await held.reached()
            ranks = {rank_of(process): process for process in psutil.Process(runner.pid).children()}
            assert sorted(ranks) == [0, 1], log.read_text()
            ranks[1].suspend()  # rank 0 begins the stage and waits for it
            await held.open()
        os.kill(ranks[1].pid, signal.SIGKILL)
        database = Database(dsn, pool_size=1)
        period = await until_status(database, 2, "updated", "quarantined", seconds=90)
        await database.close()
        assert (str(period.status), period.attempts) == ("updated", 0), log.read_text()
        assert "rank 1 of 2 follows" in log.read_text()
        runner.terminate()
        wait_for(lambda: runner.poll() is not None)
        assert not any(process.is_running() for process in ranks.values())
    async with bench(alone, redis_url, tmp_path) as one, bench(dsn, redis_url, tmp_path) as several:
        await one.update(2)
        outcomes = [await b.outcome() for b in (several, one)]
        assert len({outcome["versions"][2]["kind"] for outcome in outcomes}) == 1
        found, expected = [await parts_of(b, o, 2) for b, o in zip((several, one), outcomes, strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
