"""Updates while Redis is empty, wrong or unavailable: Postgres has everything that an update needs."""

import asyncio
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typing_extensions import override

from service.storage.artifacts.store import ArtifactStore
from service.storage.embedded.redis import redis_executable
from service.storage.redis.notices import Notices
from tests.service.programs import wait_for
from tests.service.update_doubles import Watched, closing
from tests.service.update_support import (
    STAGES,
    Prepared,
    bench,
    until,
)

pytestmark = pytest.mark.usefixtures("one_thread")


async def test_flushed_at_every_note(
    second: str, prepared: Prepared, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    flushed = 0

    class FlushingNotices(Notices):
        @override
        async def publish_progress(self, period: int, progress: Any) -> None:
            nonlocal flushed
            await redis.flushdb()
            flushed += 1

    async with bench(second, redis_url, tmp_path) as b:
        assert await b.update(2, notices=FlushingNotices(b.redis)) == 2
        assert await b.outcome() == prepared.outcome
    assert flushed >= len(STAGES)


async def test_what_redis_holds_is_not_believed(
    second: str, prepared: Prepared, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    """The hidden state is read from Redis first; a value that does not match its digest does no harm."""
    (hidden,) = prepared.outcome["versions"][1]["state"]["parts"]["hidden"]
    await redis.hset(f"asmg:artifact:{hidden}", mapping={"0": b"nonsense", "chunks": 1})
    async with bench(second, redis_url, tmp_path) as b:
        assert await b.update(2) == 2
        assert await b.outcome() == prepared.outcome


@pytest.mark.parametrize("stage", [None, "update_base", "every"])
async def test_away(second: str, prepared: Prepared, data_dir: Path, stage: str | None) -> None:
    """Never there, killed while the update is at a stage, or killed at every stage and back at the next."""
    socket, server = data_dir / "r.sock", None
    if stage is not None:
        server = await asyncio.to_thread(redis_server, socket)
        await until(socket.exists)
    try:

        def told(what: str) -> None:
            nonlocal server
            if server is None:
                return
            moment, at = what.partition(" ")[::2]
            if moment == "worked" and stage in (at, "every"):
                server.kill()
                server.wait()
            if moment == "noted" and stage == "every" and at != "publish":
                socket.unlink()
                server = redis_server(socket)
                wait_for(socket.exists)

        watched = Watched(second, told)
        async with bench(second, f"unix://{socket}", data_dir) as b, closing(watched):
            assert await b.update(2, database=watched, artifacts=ArtifactStore(watched, b.redis)) == 2
            assert await b.outcome() == prepared.outcome
        assert server is None or server.poll() == -signal.SIGKILL
    finally:
        if server is not None:
            server.kill()
            server.wait()


def redis_server(socket: Path) -> "subprocess.Popen[bytes]":
    socket.parent.mkdir(exist_ok=True)
    command = [redis_executable(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    return subprocess.Popen(command, cwd=socket.parent, stdout=subprocess.DEVNULL)
