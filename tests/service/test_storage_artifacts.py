"""Artifacts: stored once, found in either place, never believed without their digest, deleted only when unused."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from service.errors import ArtifactCorrupt, ArtifactMissing
from service.storage import artifacts as module
from service.storage.artifacts import ArtifactStore
from service.storage.database import Database
from service.storage.redis_state import connect
from service.storage.repositories import ModelKind, ModelVersion
from service.storage.repositories.artifacts import CHUNK_BYTES


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
    assert await redis.dbsize() == 4  # three chunks and their number
    assert 0 < await redis.ttl(f"asmg:artifact:{digest}:chunks") <= 24 * 3600
    await run(database, "DELETE FROM artifacts")
    assert await store.get(digest) == data


@pytest.mark.parametrize("part", ["0", "chunks"])
async def test_what_redis_lost_comes_from_postgres_and_goes_back(store: ArtifactStore, redis: Redis, part: str) -> None:
    data = os.urandom(1000)
    digest = await store.put(data, "serving", hot=True)
    await redis.delete(f"asmg:artifact:{digest}:{part}")
    assert await store.get(digest, hot=True) == data
    assert await redis.get(f"asmg:artifact:{digest}:0") == data


async def test_what_is_corrupt_in_redis_comes_from_postgres(store: ArtifactStore, redis: Redis) -> None:
    data = os.urandom(1000)
    digest = await store.put(data, "serving", hot=True)
    await redis.set(f"asmg:artifact:{digest}:0", data[:-1] + b"?")
    assert await store.get(digest) == data


async def test_what_is_corrupt_in_postgres_is_refused(store: ArtifactStore, database: Database, tmp_path: Path) -> None:
    digest = await store.put(b"weights", "serving")
    await run(database, "UPDATE artifact_chunks SET data = 'weightz'")
    with pytest.raises(ArtifactCorrupt) as raised:
        await store.fetch_file(digest, tmp_path)
    assert raised.value.digest == digest
    assert os.listdir(tmp_path) == []
    await run(database, "DELETE FROM artifact_chunks")
    with pytest.raises(ArtifactCorrupt):
        await store.get(digest)
    with pytest.raises(ArtifactMissing, match="there is no artifact 00"):
        await store.get("00")


async def test_redis_away_costs_nothing_but_speed(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = connect("unix:///nonexistent/redis.sock")
    store = ArtifactStore(database, away)
    digest = await store.put(b"weights", "serving", hot=True)
    assert await store.get(digest, hot=True) == b"weights"
    assert "was not copied to Redis" in caplog.text
    await away.aclose()


async def test_many_fetches_of_one_file_leave_one_whole_file(store: ArtifactStore, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    digest = await store.put(data, "serving", hot=True)
    folder = tmp_path / "new" / "snapshots"
    paths = await asyncio.gather(*(store.fetch_file(digest, folder) for _ in range(8)))
    assert set(paths) == {folder / f"{digest}.safetensors"}
    assert os.listdir(folder) == [f"{digest}.safetensors"]
    assert paths[0].read_bytes() == data
    assert (await store.fetch_file(digest, folder)).stat().st_mtime == paths[0].stat().st_mtime


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
        assert await uow.artifacts.delete([serving, weights, nested, unused, "absent"]) == {unused}
        await uow.commit()
    assert await store.get(kept) == b"k"
    with pytest.raises(ArtifactMissing):
        await store.get(unused)
    async with database.read() as session:
        assert await session.connection.scalar(text("SELECT count(*) FROM artifact_chunks")) == 4
