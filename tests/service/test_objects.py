"""Artifacts in an object store: a folder, and a real server that speaks S3."""

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from benchmarks.servers import free_port
from service.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUnreadable, ConfigurationError, NotReady
from service.files import DigestedFile, create
from service.processes.installation import require_objects
from service.settings import Settings
from service.storage.artifacts import objects as objects_module
from service.storage.artifacts import store as store_module
from service.storage.artifacts.objects import PART_BYTES, Objects
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.backup.manifest import read_backup
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Artifacts
from service.storage.postgres.structure import frozen
from service.storage.redis.connection import connect
from service.use_cases.backup import back_up, restore
from service.use_cases.export import file_of
from service.use_cases.retention import prune, sweep
from service.use_cases.rollback import rollback
from service.use_cases.verify import verify
from service.worker import update_next
from tests.service.api_support import running_app, settings_for
from tests.service.backup_support import opened
from tests.service.object_store import BUCKET, object_server
from tests.service.programs import start_call
from tests.service.update_support import Bench, Prepared, bench, periods, scalar, single_thread, until, until_true
from tests.service.worker_processes import worker_process

FEW = {"keep_versions": 2, "keep_states": 1}


@pytest.fixture(scope="session")
def s3_variables() -> Iterator[dict[str, str]]:
    """Environment variables of a server for all tests; each takes a prefix of its own."""
    # Directly in the temporary folder: the paths of pytest's folders are too long for a Unix socket.
    with (
        tempfile.TemporaryDirectory(prefix="asmg-s3-", ignore_cleanup_errors=True) as folder,
        object_server(Path(folder)) as variables,
    ):
        yield dict(variables)


@pytest.fixture
def s3(s3_variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a place on the server where nothing is."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an object store with nothing in it."""
    return f"file://{tmp_path}/objects" if request.param == "folder" else str(request.getfixturevalue("s3"))


def made(folder: Path, content: bytes) -> DigestedFile:
    with create(folder, FILE_SUFFIX) as file:
        file.write(content)
    return file


async def keys(objects: Objects) -> set[str]:
    """The keys of all objects."""
    import obstore

    return {found["path"] for found in await obstore.list(objects._store).collect_async()}


async def overwrite(objects: Objects, key: str, content: bytes) -> None:
    await objects.delete([key])
    await objects.put(key, content)


async def key_of(database: Database, digest: str) -> str:
    async with database.read() as session:
        key = (await session.artifacts.find(digest)).key
    assert key is not None
    return key


async def chunks(database: Database) -> int:
    return int(await scalar(database, "SELECT count(*) FROM artifact_chunks"))


async def test_contents_are_objects_and_rows_name_them(
    url: str, database: Database, redis: Redis, tmp_path: Path
) -> None:
    objects = Objects(url)
    await objects.check()
    assert await keys(objects) == set()
    store = ArtifactStore(database, redis, objects)
    small, large = b"weights", os.urandom(2 * PART_BYTES + 17)
    digest = await store.put(small, "state")
    assert digest == hashlib.sha256(small).hexdigest()
    await asyncio.gather(*(store.put(small, "state") for _ in range(3)))  # the same content: one object
    file = made(tmp_path / "made", large)
    assert await store.put_file(file, "serving", hot=False) == file.digest
    assert await redis.dbsize() == 0
    assert await chunks(database) == 0
    assert await keys(objects) == {await key_of(database, d) for d in (digest, file.digest)}
    assert await store.get(digest) == small
    assert (await store.fetch_file(file.digest, tmp_path / "fetched")).read_bytes() == large
    empty = await store.put(b"", "state")
    assert await store.get(empty) == b""

    # Damage and loss are told from a store that is away, and no file is left of them.
    key = await key_of(database, file.digest)
    await overwrite(objects, key, large[:-1] + bytes([large[-1] ^ 1]))
    with pytest.raises(ArtifactCorrupt):
        await store.fetch_file(file.digest, tmp_path / "again")
    await overwrite(objects, key, large[:100])
    with pytest.raises(ArtifactCorrupt, match="100 bytes instead of"):
        await store.get(file.digest)
    await objects.delete([key, "nothing/there"])
    with pytest.raises(ArtifactMissing, match=key):
        await store.fetch_file(file.digest, tmp_path / "again")
    assert [path.suffix for path in (tmp_path / "again").iterdir()] == [".lock"]
    with pytest.raises(NotReady, match="expected its ASMG_ARTIFACTS_URL"):
        await ArtifactStore(database, redis).get(digest)


async def test_only_old_objects_without_a_name_are_swept(
    url: str, database: Database, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed between an upload and the transaction that names it; another installation has objects too."""
    objects = Objects(url)
    store = ArtifactStore(database, redis, objects)
    kept = await key_of(database, await store.put(b"kept", "state"))
    await objects.put("another-installation/x", b"its own")
    assert await asyncio.to_thread(killed_before_it_names, database, redis, url) == -signal.SIGKILL
    (left,) = await keys(objects) - {kept, "another-installation/x"}
    assert left.startswith(kept.partition("/")[0])

    remains = 0
    if url.startswith("file:"):  # of a large object that was not written to its end
        remains = await asyncio.to_thread(leave_unfinished, Path(url.removeprefix("file://")) / left)

    assert await store.sweep_objects() == 0  # too young: somebody may be about to name it
    monkeypatch.setattr(store_module, "ORPHAN_AGE", timedelta(seconds=-5))
    monkeypatch.setattr(store_module, "SWEEP_SECONDS", 0.0)
    async with frozen(database):
        assert await store.sweep_objects() == 0  # a backup may be reading what is being removed
    assert await store.sweep_objects() == 1 + remains
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "#" in name]
    assert await keys(objects) == {kept, "another-installation/x"}
    with pytest.raises(NotReady, match="took longer than"):
        monkeypatch.setattr("service.storage.postgres.repositories.artifacts.UPLOAD_AGE", timedelta(0))
        await store.put(b"late", "state")


def leave_unfinished(path: Path) -> int:
    path.with_name(f"{path.name}#1").write_bytes(b"half of it")
    return 1


def killed_before_it_names(database: Database, redis: Redis, url: str) -> int | None:
    """The exit code of a process that has uploaded an artifact."""
    dsn = database._engine.url.render_as_string(hide_password=False)
    process = start_call(partial(upload_and_die, dsn, url), Path(os.devnull), Path(os.devnull))
    process.join(60)
    return process.exitcode


def upload_and_die(dsn: str, url: str) -> None:
    async def die(*_: object) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    async def work() -> None:
        database, redis = Database(dsn), connect("unix:///nonexistent/redis.sock")
        Artifacts.name_object = die  # type: ignore[method-assign]
        await ArtifactStore(database, redis, Objects(url)).put(b"never named", "state")

    asyncio.run(work())


@asynccontextmanager
async def on(dsn: str, redis_url: str, folder: Path, url: str, **changes: Any) -> AsyncIterator[Bench]:
    """A bench whose artifacts are objects."""
    async with bench(dsn, redis_url, folder, artifacts_url=url, **FEW, **changes) as b:
        yield b


async def test_an_update_goes_on_from_postgres_when_the_store_is_there(
    second: str,
    prepared: Prepared,
    copy: Callable[..., str],
    s3: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Period 1 is in Postgres, period 2 goes to objects; then a backup is restored into two other places."""
    monkeypatch.setattr(objects_module, "MAX_RETRIES", 1)
    async with on(second, redis_url, tmp_path, s3) as b:
        before = await chunks(b.database)
        with monkeypatch.context() as away:
            away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
            nowhere = ArtifactStore(b.database, b.redis, Objects(s3))
        with single_thread():
            with pytest.raises(NotReady, match="error sending request"):
                await update_next(replace(b.context, artifacts=nowhere))
            assert await update_next(b.context)
        assert await b.outcome() == prepared.outcome  # the same digests, and no attempt more
        objects, named = b.context.artifacts._objects, "SELECT count(key) FROM artifacts"
        assert objects is not None
        assert await chunks(b.database) <= before
        assert await scalar(b.database, named) > 0
        assert len(await keys(objects)) == await scalar(b.database, named)  # pruned ones are gone
        assert (await verify(b.database, tmp_path, objects)).findings == []
        manifest = await back_up(b.database, tmp_path / "backup", objects=objects)
        assert len(manifest.objects) == await scalar(b.database, named)

        for place in (Objects(f"file://{tmp_path}/objects"), None):
            async with opened(copy()) as database:
                backup = tmp_path / "backup"
                await restore(database, b.redis, backup, read_backup(backup), actor="test", objects=place)
                assert (await verify(database, tmp_path, place)).findings == []
                found = await scalar(database, named)
                assert found == (0 if place is None else len(manifest.objects))
                if place is not None:
                    assert len(await keys(place)) == found

        digest = next(file.sha256 for file in manifest.objects)
        key = await key_of(b.database, digest)
        await overwrite(objects, key, b"damaged")
        findings = (await verify(b.database, tmp_path, objects)).findings
        assert f"artifact {digest}" in {finding.object for finding in findings}
        with pytest.raises(ArtifactCorrupt):
            await back_up(b.database, tmp_path / "second", objects=objects)
        assert not (tmp_path / "second").exists()

        # On the way out: new artifacts go to Postgres, objects are read and removed.
        back = ArtifactStore(b.database, b.redis, objects, to_postgres=True)
        assert await back.put(b"new", "state") == hashlib.sha256(b"new").hexdigest()
        assert await chunks(b.database) > 0
        async with b.database.unit_of_work() as work:
            await work.connection.execute(text("UPDATE model_versions SET serving_digest = NULL, state = '{}'"))
            await work.connection.execute(text("UPDATE period_samples SET digest = NULL"))
            await work.connection.execute(text("UPDATE artifacts SET created_at = now() - interval '2 hours'"))
            await work.commit()
        assert await sweep(b.database, back) > 0
        assert await keys(objects) == set()
        await b.context.artifacts.put(b"one more", "state")
        with pytest.raises(ConfigurationError, match="expected ASMG_ARTIFACTS_URL, for artifacts are in"):
            await asyncio.to_thread(require_objects, b.settings.model_copy(update={"artifacts_url": None}))


async def test_a_rollback_to_a_damaged_object_is_refused(
    url: str, postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    async with on(postgres_dsn, redis_url, tmp_path, url) as b:
        digest = (await b.outcome())["versions"][0]["serving"]
        back = {"to_version": 0, "sequence": "keep", "reason": "r", "actor": "test", "settings": b.settings}
        objects = Objects(url)
        await rollback(b.database, b.context.notices, **back, objects=objects)
        await overwrite(objects, await key_of(b.database, digest), b"damaged")
        with pytest.raises(ArtifactUnreadable, match="bytes instead of"):
            await rollback(b.database, b.context.notices, **back, objects=objects)
        assert await prune(b.database, 1, b.settings, b.context.artifacts) == 0


async def test_a_store_that_cannot_be_used_is_told_at_the_start(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "MAX_RETRIES", 0)
    with pytest.raises(ConfigurationError, match=f"{BUCKET}-none/x cannot be written to: "):
        await Objects(f"s3://{BUCKET}-none/x").check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(ConfigurationError, match=r"cannot be written to: .*403 Forbidden"):
        await Objects(s3).check()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"ASMG_ARTIFACTS_URL=file:///.*/file/objects: "):
        Objects(f"file://{tmp_path}/file/objects")
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'asmg-service\[objects\]'"):
        Objects(s3)


@pytest.mark.parametrize(
    "wrong",
    ["s3://", "memory:///", "https://host/bucket", "s3://key:secret@bucket/x", "s3://bucket/x?region=y", "file://x/y"],
)
def test_urls_that_name_no_lasting_place_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected s3://BUCKET/PREFIX") as raised:
        Settings(artifacts_url=wrong)
    assert "secret" not in str(raised.value)


async def test_a_period_is_closed_and_served_with_all_artifacts_in_s3(
    s3: str, postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program `asmg worker` and an api process, on hosts without a common folder. The worker exports to it too."""
    monkeypatch.setattr(ArtifactStore, "_hot_pieces", nothing)  # not from Redis either
    settings = settings_for(postgres_dsn, redis_url, tmp_path / "api", artifacts_url=s3)
    async with running_app(settings) as api, bench(postgres_dsn, redis_url, tmp_path, artifacts_url=s3) as b:
        exports = f"{s3}/exports"
        variables = {"ASMG_ARTIFACTS_URL": s3, "ASMG_EXPORT_URL": exports}
        with worker_process(postgres_dsn, redis_url, tmp_path, **variables) as worker:
            await b.log(periods(1)[0], close=False)
            closed = await api.client.post("/periods/close", json={"expected_period": 1})
            assert closed.status_code == 202
            await until(lambda: api.state.serving.current().version == 1, seconds=120)
            await until_true(b.database, "SELECT exported_at IS NOT NULL FROM periods WHERE number = 1")
            worker.stop()
        assert [await Objects(exports).has(file_of("interactions", number)) for number in (1, 2)] == [True, False]
        assert await chunks(b.database) == 0
        assert (await verify(b.database, tmp_path, Objects(s3))).findings == []


async def nothing(_store: ArtifactStore, _digest: str) -> AsyncIterator[bytes]:
    for piece in ():
        yield piece
