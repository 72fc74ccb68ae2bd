"""A backup shows one moment of a working service, and is complete or no backup at all."""

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from service.errors import BackupError, NotReady
from service.files import DigestedFile
from service.storage.backup.dump import new_backup
from service.storage.backup.manifest import MANIFEST, read_backup
from service.storage.postgres import structure
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import head_revision
from service.storage.postgres.structure import frozen
from service.storage.redis.histories import HistoryStore
from service.use_cases.backup import back_up
from service.use_cases.ingest import ingest
from service.use_cases.retention import drop_old_logs, merge_event_ids
from service.use_cases.verify import verify
from tests.conftest import Servers, database_dsn
from tests.service.backup_support import (
    LEARNED,
    SETTINGS,
    Make,
    Past,
    connected,
    contents,
    contents_of,
    copying,
    enlarge,
    events,
    opened,
    restored,
    sql,
    started,
)
from tests.service.update_support import bench, single_thread


class TestTheMoment:
    """What the backup shows while the service works on."""

    async def test_backups_under_ingestion_closes_updates_and_dropped_logs_are_whole(
        self, copy: Make, past: Past, redis_url: str, tmp_path: Path
    ) -> None:
        folders: list[Path] = []
        closed: list[int] = []
        dropped: list[int] = []
        async with (
            bench(copy(past.name), redis_url, tmp_path, **SETTINGS) as b,
            opened(b.settings.postgres_dsn or "") as other,
        ):
            histories = HistoryStore(b.redis, b.database)

            async def write(client: int) -> None:
                n = 0
                while len(closed) < 3:
                    await ingest(b.database, histories, events(f"{client}-{n}-", 10))
                    n += 1

            async def close_and_learn() -> None:
                for number in range(LEARNED + 1, LEARNED + 4):
                    with single_thread():
                        await b.update(number)
                    while len(dropped) < len(closed) + 1:  # until no backup reads it
                        dropped.extend(await drop_old_logs(b.database, b.settings))
                        await asyncio.sleep(0.01)
                    await merge_event_ids(b.database)
                    await ingest(b.database, histories, events(f"own-{number}-", 10))
                    await b.close(number + 1)
                    closed.append(number)

            busy = asyncio.gather(write(0), write(1), close_and_learn())
            while not busy.done():
                folders.append(tmp_path / f"backup-{len(folders)}")
                await back_up(other, folders[-1])
                await asyncio.sleep(0.1)
            await busy
        assert dropped == [2, 3, 4] and len(folders) > 4
        seen = set()
        for folder in (folders[0], folders[len(folders) // 2], folders[-1]):
            dsn = copy()
            async with connected(redis_url) as redis, opened(dsn) as database:
                await restored(dsn, redis, folder)
                assert (await verify(database, tmp_path)).findings == []
                async with database.read() as session:
                    query = "SELECT count(*) FROM interactions WHERE event_id LIKE '%-%-1-%'"
                    stored = (await session.connection.execute(text(query))).scalar_one()
                    seen.add((await session.periods.open()).number)
                assert stored % 10 == 0, "a batch is there, or it is not"
        assert len(seen) > 1

    async def test_nothing_but_a_drop_waits_for_it(
        self, copy: Make, past: Past, redis_url: str, tmp_path: Path
    ) -> None:
        async with (
            bench(copy(past.name), redis_url, tmp_path, **SETTINGS) as b,
            opened(b.settings.postgres_dsn or "") as other,
        ):
            histories = HistoryStore(b.redis, b.database)
            async with frozen(other) as (session, tables):
                before = await contents_of(session)
                async with asyncio.timeout(20):
                    await ingest(b.database, histories, events("meanwhile-", 10))
                    await b.close(LEARNED + 2)
                    with single_thread():
                        await b.update(LEARNED + 1)
                    assert await drop_old_logs(b.database, b.settings) == []
                    await ingest(b.database, histories, events("after-", 10))
                assert await contents_of(session) == before
                assert set(before) == {table.name for table in tables}
            assert await drop_old_logs(b.database, b.settings) == [2, 3]

    async def test_a_partition_that_comes_between_lock_and_snapshot_is_locked_too(
        self, postgres_dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock_all, calls = structure.lock_all, 0

        async def then_a_period_opens(connection: Any, mode: str) -> None:
            nonlocal calls
            calls += 1
            await lock_all(connection, mode)
            if calls == 1:
                async with database.unit_of_work() as work:
                    await work.periods.seal(1, 0)
                    await work.periods.create(2)
                    await work.commit()

        monkeypatch.setattr(structure, "lock_all", then_a_period_opens)
        async with opened(postgres_dsn) as other, frozen(other) as (session, tables):
            assert calls == 2
            assert "interactions_p2" in {table.name for table in tables}
            with pytest.raises(Exception, match="lock timeout"):
                await sql(database, "SET LOCAL lock_timeout = 100", "DROP TABLE interactions_p2")
            assert (await session.periods.open()).number == 2

    async def test_a_lock_of_others_is_not_waited_for_without_end(
        self, database: Database, postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(structure, "LOCK_SECONDS", 0.2)
        async with database.unit_of_work() as work, opened(postgres_dsn) as other:
            await work.connection.exec_driver_sql("LOCK TABLE items")
            begun = time.monotonic()
            with pytest.raises(NotReady, match=r"locked by others for 0\.2 s"):
                await back_up(other, tmp_path / "backup")
            assert time.monotonic() - begun < 5
        assert not (tmp_path / "backup").exists()

    async def test_the_manifest_says_what_it_is(self, backup: Path, servers: Servers, past: Past) -> None:
        manifest = read_backup(backup)
        async with opened(database_dsn(servers, past.name)) as database:
            counts = {name: rows for name, (rows, _) in (await contents(database)).items()}
            async with database.read() as session:
                champion = await session.models.get(LEARNED)
        assert champion is not None and manifest.serving is not None
        assert (manifest.serving.version, manifest.serving.digest) == (LEARNED, champion.serving_digest)
        assert manifest.revision == head_revision()
        assert {file.table.name: file.rows for file in manifest.tables} == counts
        assert sorted(file.name for file in manifest.tables) == sorted(set(os.listdir(backup)) - {MANIFEST})
        assert {os.stat(backup / name).st_mode & 0o777 for name in (*os.listdir(backup), "")} == {0o600, 0o700}
        assert "interactions_p1" not in counts
        assert {f"interactions_p{number}" for number in range(2, LEARNED + 3)} <= set(counts)


class TestTheFolder:
    async def test_it_has_to_be_new_or_empty(self, database: Database, tmp_path: Path) -> None:
        await back_up(database, tmp_path / "a" / "b")
        (tmp_path / "empty").mkdir()
        await back_up(database, tmp_path / "empty")
        with pytest.raises(BackupError, match=r"empty: expected a folder that is new or empty; received one with "):
            await back_up(database, tmp_path / "empty")
        read_backup(tmp_path / "empty")

    async def test_two_backups_do_not_mix(self, database: Database, tmp_path: Path) -> None:
        outcomes = await asyncio.gather(
            back_up(database, tmp_path / "one"), back_up(database, tmp_path / "one"), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["BackupError", "Manifest"]
        read_backup(tmp_path / "one")

    @pytest.mark.parametrize("size", [21, 1024 * 1024], ids=["at the end of a table", "in the midst of one"])
    async def test_a_full_disk_leaves_nothing(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        async with database.unit_of_work() as work:
            await work.artifacts.put(os.urandom(24 * 1024 * 1024), "model")
            await work.commit()
        write = DigestedFile.write

        def full(file: DigestedFile, data: bytes) -> None:
            if len(data) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(file, data)

        monkeypatch.setattr(DigestedFile, "write", full)
        with pytest.raises(BackupError, match=r"\.copy: No space left on device"):
            await back_up(database, tmp_path / "backup")
        assert os.listdir(tmp_path) == []

    async def test_what_is_large_is_written_a_piece_at_a_time(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with database.unit_of_work() as work:
            await work.artifacts.put(os.urandom(24 * 1024 * 1024), "model")
            await work.commit()
        write, pieces = DigestedFile.write, []

        def noted(file: DigestedFile, data: bytes) -> None:
            pieces.append(len(data))
            write(file, data)

        monkeypatch.setattr(DigestedFile, "write", noted)
        manifest = await back_up(database, tmp_path / "backup")
        assert sum(pieces) > manifest.size > 24 * 1024 * 1024
        assert max(pieces) < 10 * 1024 * 1024  # a chunk of an artifact and what came before it

    async def test_what_may_not_be_read_is_one_line(
        self, postgres_dsn: str, database: Database, servers: Servers, tmp_path: Path
    ) -> None:
        name = make_url(postgres_dsn).database
        role, free = f"reader_{name}", "SET LOCAL ROLE NONE"
        await sql(database, f"CREATE ROLE {role}", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        servers.execute(f"ALTER DATABASE {name} SET role = {role}")  # of connections from now on
        try:
            async with opened(postgres_dsn) as reader:
                with pytest.raises(BackupError, match=r"Postgres does not give .*permission denied for sequence"):
                    await back_up(reader, tmp_path / "backup")
                await sql(reader, free, f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}")
                await back_up(reader, tmp_path / "backup")
        finally:
            servers.execute(f"ALTER DATABASE {name} RESET role")
            await sql(database, free, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    def test_another_files_in_the_folder_stay(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), new_backup(tmp_path):
            (tmp_path / "notes.txt").touch()
            (tmp_path / "periods.copy").touch()
            raise RuntimeError
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    async def test_a_killed_backup_is_no_backup(self, past: Past, copy: Make, redis_url: str, tmp_path: Path) -> None:
        dsn = copy(past.name)
        async with opened(dsn) as database:
            await enlarge(database)
            with started("backup", str(tmp_path / "backup"), dsn=dsn, redis_url=redis_url) as process:
                await copying(database, process)
                process.kill()
        with pytest.raises(BackupError, match=rf"expected a backup; received a folder without {MANIFEST}"):
            read_backup(tmp_path / "backup")
        async with opened(dsn) as database:
            with pytest.raises(BackupError, match="received one with an unfinished backup"):
                await back_up(database, tmp_path / "backup")

    async def test_an_interrupted_backup_leaves_nothing(
        self, past: Past, copy: Make, redis_url: str, tmp_path: Path
    ) -> None:
        dsn = copy(past.name)
        async with opened(dsn) as database:
            await enlarge(database)
            with started("backup", str(tmp_path / "backup"), dsn=dsn, redis_url=redis_url) as process:
                await copying(database, process)
                process.terminate()
                assert await asyncio.to_thread(process.wait, 30) == 130
        assert not (tmp_path / "backup").exists()
