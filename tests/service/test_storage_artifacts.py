"""Artifacts: stored once, found in either place, used only with the right digest, deleted only when unused."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from redis.asyncio import Redis
from sqlalchemy import text

from service import files
from service.errors import ArtifactCorrupt, ArtifactMissing
from service.files import DigestedFile, create
from service.storage.artifacts import store as module
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.packing import CONTENT_LENGTH
from service.storage.postgres.repositories import ModelKind, ModelVersion
from service.storage.postgres.repositories.artifacts import CHUNK_BYTES
from service.storage.redis.connection import connect

LOCK = ".fetch.lock"


def made(folder: Path, content: bytes) -> DigestedFile:
    with create(folder, module.FILE_SUFFIX) as file:
        file.write(content)
    return file


@pytest.fixture
def store(database: Database, redis: Redis) -> ArtifactStore:
    return ArtifactStore(database, redis)


async def run(database: Database, statement: str, **values: object) -> None:
    async with database.unit_of_work() as uow:
        await uow.connection.execute(text(statement), values)
        await uow.commit()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 17])
async def test_round_trip_through_postgres(store: ArtifactStore, redis: Redis, size: int) -> None:
    data = os.urandom(size)
    digest = await store.put(data, "state")
    assert digest == hashlib.sha256(data).hexdigest()
    assert await redis.dbsize() == 0
    assert await store.get(digest) == data
    assert await redis.dbsize() == 0


async def test_the_same_content_is_stored_once_by_many_at_once(store: ArtifactStore, database: Database) -> None:
    data = os.urandom(1000)
    assert len(set(await asyncio.gather(*(store.put(data, "state") for _ in range(8))))) == 1
    async with database.read() as session:
        assert await session.connection.scalar(text("SELECT count(*) FROM artifact_chunks")) == 1


async def test_a_hot_artifact_is_read_from_redis_in_chunks(
    store: ArtifactStore, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOT_CHUNK_BYTES", 400)
    data = os.urandom(1000)
    digest = await store.put(data, "serving", hot=True)
    assert sorted(await redis.hkeys(f"asmg:artifact:{digest}")) == [b"0", b"1", b"2", b"chunks"]
    assert 0 < await redis.ttl(f"asmg:artifact:{digest}") <= 24 * 3600
    await run(database, "DELETE FROM artifacts")
    assert await store.get(digest) == data


async def test_redis_keeps_the_newest_two_of_a_kind(
    store: ArtifactStore, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOT_CHUNK_BYTES", 400)
    state = await store.put(os.urandom(1000), "hidden", hot=True)
    made_files = [made(tmp_path, os.urandom(1000)) for _ in range(4)]
    for file in made_files:
        await store.put_file(file, "serving")
    await store.put_file(made_files[2], "serving")  # again: it is the newest now
    await store.put_file(made_files[0], "serving")
    names = {f"asmg:artifact:{digest}".encode() for digest in (state, made_files[0].digest, made_files[2].digest)}
    assert set(await redis.keys()) == names | {b"asmg:hot:serving", b"asmg:hot:hidden"}
    assert await redis.lrange("asmg:hot:serving", 0, -1) == [made_files[n].digest.encode() for n in (0, 2)]
    assert 0 < await redis.ttl("asmg:hot:serving") <= 24 * 3600
    for file in made_files:
        assert hashlib.sha256(await store.get(file.digest)).hexdigest() == file.digest


async def test_what_is_too_large_stays_out_of_redis(
    store: ArtifactStore, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_HOT_BYTES", 1000)
    await store.put(os.urandom(1001), "serving", hot=True)
    await store.put_file(made(tmp_path, os.urandom(1001)), "serving")
    assert await redis.dbsize() == 0
    await store.put(os.urandom(1000), "serving", hot=True)
    await store.put_file(made(tmp_path, os.urandom(1000)), "serving")
    assert len(await redis.keys("asmg:artifact:*")) == 2


HARM = {
    "a chunk is gone": lambda redis, key, data: redis.hdel(key, "1"),
    "the first chunk is gone": lambda redis, key, data: redis.hdel(key, "0"),
    "the number is gone": lambda redis, key, data: redis.hdel(key, "chunks"),
    "the number is too small": lambda redis, key, data: redis.hset(key, "chunks", 2),
    "the number is none": lambda redis, key, data: redis.hset(key, "chunks", "many"),
    "a chunk is another": lambda redis, key, data: redis.hset(key, "1", data[:400]),
    "it is something else": lambda redis, key, data: replaced_by_a_list(redis, key),
}


async def replaced_by_a_list(redis: Redis, key: str) -> None:
    await redis.delete(key)
    await redis.lpush(key, "x")


@pytest.mark.parametrize("harm", HARM)
async def test_what_is_not_whole_in_redis_comes_from_postgres(
    store: ArtifactStore, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """And readers do not put it back: many concurrent readers would each send all of it."""
    monkeypatch.setattr(module, "HOT_CHUNK_BYTES", 400)
    data = os.urandom(1000)
    digest = await store.put(data, "serving", hot=True)
    await HARM[harm](redis, f"asmg:artifact:{digest}", data)
    assert await store.get(digest) == data
    assert await redis.exists(f"asmg:artifact:{digest}") == 0  # nobody tries again
    size = await redis.dbsize()
    assert await store.get(digest) == data
    assert await redis.dbsize() == size
    await HARM[harm](redis, f"asmg:artifact:{digest}", data)
    path = await store.fetch_file(digest, tmp_path)
    assert path.read_bytes() == data


async def test_what_is_corrupt_in_postgres_is_refused(store: ArtifactStore, database: Database, tmp_path: Path) -> None:
    digest = await store.put(b"weights", "serving")
    await run(database, "UPDATE artifact_chunks SET data = 'weightz'")
    with pytest.raises(ArtifactCorrupt) as raised:
        await store.fetch_file(digest, tmp_path)
    assert raised.value.digest == digest
    assert os.listdir(tmp_path) == [LOCK]
    await run(database, "DELETE FROM artifact_chunks")
    with pytest.raises(ArtifactCorrupt):
        await store.get(digest)
    with pytest.raises(ArtifactMissing, match="there is no artifact 00"):
        await store.get("00")


async def test_numbers_are_packed_in_postgres_and_found_as_they_were(
    store: ArtifactStore, database: Database, tmp_path: Path
) -> None:
    data = np.arange(100_000, dtype=np.float32).tobytes()
    digest = await store.put(data, "layers")
    assert digest == hashlib.sha256(data).hexdigest()
    async with database.read() as session:
        query = "SELECT length(data), " + CONTENT_LENGTH + " FROM artifact_chunks"
        stored, length = (await session.connection.execute(text(query))).one()
    assert stored < len(data) / 2
    assert length == len(data)
    assert await store.get(digest) == data
    assert (await store.fetch_file(digest, tmp_path)).read_bytes() == data
    await run(database, "UPDATE artifact_chunks SET data = set_byte(data, 5000, 255 - get_byte(data, 5000))")
    with pytest.raises(ArtifactCorrupt):
        await store.get(digest)


async def test_redis_away_costs_nothing_but_speed(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = connect("unix:///nonexistent/redis.sock")
    store = ArtifactStore(database, away)
    digest = await store.put(b"weights", "serving", hot=True)
    assert await store.put_file(made(tmp_path, b"other weights"), "serving") != digest
    assert await store.get(digest) == b"weights"
    assert (await store.fetch_file(digest, tmp_path / "new")).read_bytes() == b"weights"
    assert caplog.text.count("was not copied to Redis") == 2
    await away.aclose()


@pytest.mark.parametrize("size", [0, 1, 1000, 2500])
@pytest.mark.parametrize("place", ["redis", "postgres"])
async def test_files_are_stored_and_fetched_piece_by_piece(
    database: Database,
    redis: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    place: str,
) -> None:
    for name, value in (("CHUNK_BYTES", 1000), ("PIECE_BYTES", 300), ("HOT_CHUNK_BYTES", 400)):
        monkeypatch.setattr(module, name, value)
    if place == "postgres":
        monkeypatch.setattr(module, "MOST_HOT_BYTES", -1)
    store = ArtifactStore(database, redis)
    file = made(tmp_path / "worker", os.urandom(size))
    assert file.path is not None
    assert await store.put_file(file, "serving") == file.digest
    assert await store.put_file(file, "serving") == file.digest  # again: the same
    async with database.read() as session:
        lengths = await session.connection.execute(text("SELECT length(data) FROM artifact_chunks ORDER BY index"))
        assert lengths.scalars().all() == [min(1000, size - start) for start in range(0, size, 1000)]
    hot = await redis.hlen(f"asmg:artifact:{file.digest}")
    assert hot == (0 if place == "postgres" else -(-size // 400) + 1)

    written: list[int] = []
    write = DigestedFile.write

    def noted(self: DigestedFile, piece: bytes) -> None:
        written.append(len(piece))
        write(self, piece)

    monkeypatch.setattr(DigestedFile, "write", noted)
    path = await store.fetch_file(file.digest, tmp_path / "api")
    assert path.name == file.path.name
    assert path.read_bytes() == file.path.read_bytes()
    assert sum(written) == size
    assert max(written, default=0) <= (300 if place == "postgres" else 400)


async def test_many_fetches_of_one_file_leave_one_whole_file(store: ArtifactStore, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    digest = await store.put(data, "serving", hot=True)
    folder = tmp_path / "new" / "snapshots"
    paths = await asyncio.gather(*(store.fetch_file(digest, folder) for _ in range(8)))
    name = f"{digest}.{xxhash.xxh3_128_hexdigest(data)}.safetensors"
    assert set(paths) == {folder / name}
    assert sorted(os.listdir(folder)) == [LOCK, name]
    assert paths[0].read_bytes() == data
    assert (await store.fetch_file(digest, folder)).stat().st_mtime == paths[0].stat().st_mtime


FETCH = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from service import files
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect

downloads = 0
create = files.create_slowly

@asynccontextmanager
async def counted(*arguments):
    global downloads
    downloads += 1
    await asyncio.sleep(0.3)  # long enough for the others to come
    async with create(*arguments) as file:
        yield file

async def fetch(dsn, url, digest, folder):
    database, redis = Database(dsn), connect(url)
    print("ready", flush=True)
    sys.stdin.readline()
    path = await ArtifactStore(database, redis).fetch_file(digest, Path(folder))
    await redis.aclose()
    await database.close()
    return path

files.create_slowly = counted
path = asyncio.run(fetch(*sys.argv[1:]))
print(downloads, path.stat().st_size)
"""


async def test_the_processes_of_a_host_fetch_a_file_once(
    store: ArtifactStore, postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    digest = await store.put(os.urandom(3_000_000), "serving", hot=True)
    command = [sys.executable, "-c", FETCH, postgres_dsn, redis_url, digest, str(tmp_path / "shared")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def run() -> list[str]:
        processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[0].strip() for process in processes]

    assert sorted(await asyncio.to_thread(run)) == ["0 3000000", "0 3000000", "1 3000000"]


async def test_who_waits_for_a_file_fetches_it_where_the_other_could_not(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store.put(b"weights", "serving")
    create, tries = files.create_slowly, []

    @asynccontextmanager
    async def failing_at_first(*arguments: Any) -> AsyncIterator[DigestedFile]:
        tries.append(arguments)
        await asyncio.sleep(0.05)
        if len(tries) == 1:
            raise OSError("no space left")
        async with create(*arguments) as file:
            yield file

    monkeypatch.setattr(files, "create_slowly", failing_at_first)
    fetches = (store.fetch_file(digest, tmp_path) for _ in range(2))
    found = await asyncio.gather(*fetches, return_exceptions=True)
    [path] = [one for one in found if isinstance(one, Path)]
    assert path.read_bytes() == b"weights"
    assert [type(one) for one in found if one is not path] == [OSError]


async def test_only_what_no_version_names_is_deleted(store: ArtifactStore, database: Database) -> None:
    serving, weights, nested, unused, kept = [await store.put(name, "x") for name in (b"s", b"w", b"n", b"u", b"k")]
    async with database.unit_of_work() as uow:
        await uow.models.insert(
            ModelVersion(
                version=0,
                period=0,
                kind=ModelKind.PRIOR,
                parent_version=None,
                serving_digest=serving,
                state={"weights": weights, "last": [{"hidden": nested}], "rate": 0.1},
                scores={},
                gate={},
                created_by="test",
            )
        )
        assert await uow.artifacts.delete([serving, weights, nested, unused, "absent"]) == {unused: None}
        await uow.commit()
    assert await store.get(kept) == b"k"
    with pytest.raises(ArtifactMissing):
        await store.get(unused)
    async with database.read() as session:
        assert await session.connection.scalar(text("SELECT count(*) FROM artifact_chunks")) == 4
