"""A backup shows one moment of a service at work; restored on an empty server it is that service again, or nothing."""

import asyncio
import errno
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from service.errors import BackupError, NotReady
from service.files import DigestedFile
from service.storage.backup.archive import MANIFEST, Manifest, new_backup, read_backup, write_manifest
from service.storage.postgres import structure
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import head_revision, migrate
from service.storage.postgres.structure import frozen, stored_tables
from service.storage.redis.connection import connect, purge
from service.storage.redis.histories import HistoryStore
from service.use_cases.backup import back_up, require_empty_database, restore
from service.use_cases.ingest import ingest
from service.use_cases.retention import drop_old_logs, merge_event_ids
from service.use_cases.verify import verify
from tests.conftest import Servers, create_database, database_dsn, drop_database, flush, in_thread
from tests.service.api_support import running_app, settings_for
from tests.service.backup_support import (
    LEARNED,
    SETTINGS,
    Past,
    contents,
    contents_of,
    events,
    learn,
    opened,
    sql,
)
from tests.service.programs import ASMG, asmg, environment, program, wait_for
from tests.service.update_support import STREAM, bench, copies, outcome, periods, single_thread

Make = Callable[..., str]
USERS = [f"u{n}" for n in range(STREAM.users)]
ITEMS = [f"i{n}" for n in range(STREAM.items)]


@pytest.fixture(scope="module")
def backup(servers: Servers, past: Past, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it, which nobody changes."""
    folder = tmp_path_factory.mktemp("backups") / "whole"

    async def make() -> None:
        database = Database(database_dsn(servers, past.name))
        await back_up(database, folder)
        await database.close()

    in_thread(asyncio.run, make())
    return folder


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Make]:
    """DSN of a new database: migrated, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *name: database_dsn(servers, make(*name))


@pytest.fixture
def empty(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """DSN of a database in which nothing was ever done."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, "template0")
    yield database_dsn(servers, name)
    drop_database(servers, name)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    redis = connect(url)
    try:
        yield redis
    finally:
        await redis.aclose()


async def restored(dsn: str, redis: Redis, folder: Path) -> Manifest:
    """The command's work: migrate, load."""
    manifest = read_backup(folder)
    async with opened(dsn) as database:
        await require_empty_database(database)
        await asyncio.to_thread(migrate, dsn)
        await restore(database, redis, folder, manifest, actor="test")
    return manifest


async def table_names(database: Database) -> list[str]:
    async with database.read() as session:
        query = (
            "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        )
        return list((await session.connection.execute(text(query))).scalars())


async def described(database: Database) -> dict[str, list[Any]]:
    """Tables, indexes, constraints and triggers, by name and definition."""
    queries = {
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated "
        "FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
        "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
        "storage": "SELECT attrelid::regclass::text, attname, attstorage::text FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
    }
    async with database.read() as session:
        found: dict[str, list[Any]] = {"tables": msgspec.to_builtins(await stored_tables(session.connection))}
        for name, query in queries.items():
            rows = await session.connection.exec_driver_sql(f"{query} ORDER BY 1, 2")
            found[name] = [tuple(row) for row in rows]
    return found


async def predictions(dsn: str, key: str, redis_url: str, folder: Path) -> list[dict[str, Any]]:
    """What a service on this database answers to many users, known and unknown, whose histories it looks up."""
    flush(redis_url)
    answers, headers = [], {"Authorization": f"Bearer {key}"}
    async with running_app(settings_for(dsn, redis_url, folder)) as api:
        await api.parts.serving.wait_loaded()
        for user in (*USERS, "nobody"):
            question = {"user_id": user, "items": [*ITEMS, "nothing"]}
            response = await api.client.post("/predict", json=question, headers=headers)
            assert response.status_code == 200
            answers.append({**response.json(), "request_id": None})
    return answers


async def enlarge(database: Database) -> None:
    """Add what takes a while to copy: events of the open period, and an artifact."""
    await sql(
        database,
        "INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at) "
        f"SELECT 'more-' || n, {LEARNED + 2}, 'u1', 'i1', 0, now() FROM generate_series(1, 60000) AS n",
    )
    async with database.unit_of_work() as work:
        await work.interactions.note_count(LEARNED + 2, 60000)
        await work.artifacts.put(os.urandom(32 * 1024 * 1024), "model")
        await work.commit()


@contextmanager
def started(*arguments: str, dsn: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, at work; killed in the end."""
    variables = environment(ASMG_POSTGRES_DSN=dsn, ASMG_REDIS_URL=redis_url)
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*ASMG, *arguments], env=variables, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


async def copying(database: Database, process: subprocess.Popen[bytes], table: str = "artifact_chunks") -> None:
    """Return when the program is in the middle of a table, or of one that nobody else sees yet."""
    query = text("""
        SELECT count(*) FROM pg_stat_progress_copy LEFT JOIN pg_class ON pg_class.oid = relid
        WHERE datname = current_database() AND bytes_processed > 0 AND coalesce(relname, 'a new one') = :table
    """)
    while True:
        async with database.read() as session:
            if await session.connection.scalar(query, {"table": table}):
                return
        assert process.poll() is None, "it has ended before that"
        await asyncio.sleep(0.002)


async def alone(database: Database) -> None:
    """Return when Postgres has noticed that the others are gone."""
    query = text("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    """)
    async with asyncio.timeout(10):
        while True:
            async with database.read() as session:  # a transaction sees the same of it all the time
                if not await session.connection.scalar(query):
                    return
            await asyncio.sleep(0.02)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def change(folder: Path, **fields: Any) -> None:
    """Change the manifest by hand."""
    document = msgspec.json.decode((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(msgspec.json.encode({**document, **fields}))


def forge(folder: Path, **fields: Any) -> None:
    """Change the manifest, its digest too."""
    manifest = msgspec.structs.replace(read_backup(folder), **fields)
    write_manifest(folder, manifest)


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


class TestTheSameAgain:
    async def test_rows_structure_predictions_and_the_next_version(
        self, backup: Path, servers: Servers, past: Past, copy: Make, empty: str, redis_url: str, tmp_path: Path
    ) -> None:
        original = copy(past.name)
        async with connected(redis_url) as redis:
            await redis.set("asmg:past:u1", "of another past")
            await restored(empty, redis, backup)
            assert await redis.keys("*") == []
        async with opened(original) as one, opened(empty) as two:
            expected, found = await contents(one), await contents(two)
            assert {name: rows for name, rows in found.items() if name != "audit"} == {
                name: rows for name, rows in expected.items() if name != "audit"
            }
            assert found["audit"][0] == expected["audit"][0] + 1  # that it was restored
            assert await described(one) == await described(two)
            assert (await verify(two, tmp_path)).findings == []
        answers = [
            await predictions(dsn, past.key, redis_url, tmp_path / f"{n}") for n, dsn in ((0, original), (1, empty))
        ]
        assert answers[0] == answers[1]
        assert len({score for answer in answers[0] for score in answer["scores"]}) > 100
        outcomes = []
        for n, dsn in enumerate((original, empty)):
            async with bench(dsn, redis_url, tmp_path / str(n), **SETTINGS) as b:
                ninth, tenth, eleventh = periods(LEARNED + 3)[LEARNED:]
                with single_thread():
                    await b.update(ninth.number)
                    await b.close(tenth.number)
                    await b.update(tenth.number)
                await learn(b, eleventh)
                outcomes.append(await outcome(b.database))
        assert outcomes[0] == outcomes[1]
        assert set(outcomes[0]["versions"]) == set(range(LEARNED + 4))

    async def test_what_a_partition_alone_has_comes_back(
        self, copy: Make, past: Past, empty: str, redis: Redis, tmp_path: Path
    ) -> None:
        async with opened(copy(past.name)) as database:
            await sql(
                database,
                "CREATE UNIQUE INDEX own ON interactions_p3 (event_id) WHERE label <> 7",
                "ALTER TABLE interactions_p4 ADD CONSTRAINT own_key UNIQUE (event_id)",
                "ALTER TABLE interactions_p5 ADD CONSTRAINT own_check CHECK (item_id <> ':name')",
            )
            await back_up(database, tmp_path / "backup")
            expected = await described(database)
        await restored(empty, redis, tmp_path / "backup")
        async with opened(empty) as database:
            assert await described(database) == expected
        parts = {table["name"]: table.get("partition") for table in expected["tables"]}
        assert parts["interactions_p3"]["indexes"] and parts["interactions_p4"]["constraints"]
        assert parts["interactions_p2"] == {"of": "interactions", "period": 2}

    async def test_the_audit_goes_on_where_it_was(self, backup: Path, empty: str, redis: Redis) -> None:
        await restored(empty, redis, backup)
        async with opened(empty) as database, database.unit_of_work() as work:
            await work.audit.add("test", "after", {})
            after, restoration, before, *_ = await work.audit.list(1000)
        assert (restoration.actor, restoration.action, restoration.detail["sha256"]) == (
            "test",
            "restore",
            read_backup(backup).sha256,
        )
        assert (restoration.id, after.id) == (before.id + 1, before.id + 2)
        async with opened(empty) as database:
            with pytest.raises(DBAPIError, match="rows of the audit are only added"):
                await sql(database, "SET LOCAL session_replication_role = replica", "DELETE FROM audit")

    async def test_time_limits_of_the_server_do_not_end_it(
        self, copy: Make, past: Past, redis: Redis, servers: Servers, tmp_path: Path
    ) -> None:
        dsns = copy(past.name), copy()
        for dsn in dsns:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                servers.execute(f"ALTER DATABASE {make_url(dsn).database} SET {name} = 500")
        async with opened(dsns[0]) as one, opened(dsns[1]) as two:
            async with frozen(one) as (session, _):
                await asyncio.sleep(0.8)
                await session.connection.execute(text("SELECT pg_sleep(0.8)"))
            await back_up(one, tmp_path / "backup")
            await sql(
                two,
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$",
                "CREATE TRIGGER wait AFTER INSERT ON items EXECUTE FUNCTION wait()",
            )
            await restored(dsns[1], redis, tmp_path / "backup")


class TestRefusals:
    """What is not whole, or has no empty place to go to, is not restored, and nothing is changed."""

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda f: flip(f / "periods.copy"),
                r"periods\.copy: expected \d+ bytes with SHA-256 \w+; received \w{64}",
            ),
            (
                lambda f: cut(f / "artifact_chunks.copy"),
                r"artifact_chunks\.copy: expected \d+ bytes .* received \d+ bytes",
            ),
            (
                lambda f: (f / "interactions_p3.copy").unlink(),
                r"interactions_p3\.copy: expected a file .* received none",
            ),
            (lambda f: cut(f / MANIFEST), rf"{MANIFEST}: expected a whole manifest; received a damaged one"),
            (lambda f: (f / MANIFEST).write_text(""), rf"{MANIFEST}: expected a whole manifest"),
            (lambda f: (f / MANIFEST).write_text('{"format": 2}'), rf"{MANIFEST}: expected a whole manifest"),
            (lambda f: (f / MANIFEST).unlink(), rf"expected a backup; received a folder without {MANIFEST}"),
            (lambda f: shutil.rmtree(f), rf"expected a backup; received a folder without {MANIFEST}"),
            (lambda f: change(f, release="9"), rf"{MANIFEST}: expected content with SHA-256"),
            (lambda f: change(f, format=3), "expected a backup of format 2; received one of format 3"),
            (
                lambda f: forge(f, revision="0001"),
                r"received one of schema 0001, made by release .*: restore it with that",
            ),
            (lambda f: change(f, tables=[{"table": "../etc"}]), rf"{MANIFEST}: expected a whole manifest"),
        ],
        ids=lambda value: "" if callable(value) else value[:40],
    )
    def test_damage(self, backup: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
        folder = tmp_path / "backup"
        shutil.copytree(backup, folder)
        read_backup(folder)
        damage(folder)
        with pytest.raises(BackupError, match=message):
            read_backup(folder)

    async def test_a_database_with_rows(self, backup: Path, copy: Make, past: Past, redis: Redis) -> None:
        dsn = copy()
        async with opened(dsn) as database:
            await require_empty_database(database)
            await ingest(database, HistoryStore(redis, database), events("x-", 10))
            with pytest.raises(
                BackupError, match=r"expected an empty database; received one with rows in interactions \(10\)"
            ):
                await restored(dsn, redis, backup)
            # The look before the migration is not the one that counts.
            before = await contents(database)
            with pytest.raises(BackupError, match="expected an empty database"):
                await restore(database, redis, backup, read_backup(backup), actor="test")
            assert await contents(database) == before

    async def test_a_database_that_was_served_from(
        self, backup: Path, postgres_dsn: str, redis: Redis, redis_url: str, tmp_path: Path
    ) -> None:
        async with running_app(settings_for(postgres_dsn, redis_url, tmp_path)):
            pass
        with pytest.raises(BackupError, match=r"received one with rows in aliases \(2\), artifact"):
            await restored(postgres_dsn, redis, backup)

    async def test_a_database_of_another_program(self, backup: Path, empty: str, redis: Redis) -> None:
        async with opened(empty) as database:
            await sql(database, "CREATE TABLE items (whatever int)")
            with pytest.raises(BackupError, match="received one with tables of another program: items"):
                await restored(empty, redis, backup)
            assert await table_names(database) == ["items"]

    async def test_a_redis_that_is_away(
        self, backup: Path, postgres_dsn: str, database: Database, tmp_path: Path
    ) -> None:
        async with connected(f"unix://{tmp_path}/none.sock") as redis:
            with pytest.raises(NotReady, match="Redis does not answer"):
                await restore(database, redis, backup, read_backup(backup), actor="test")
        await require_empty_database(database)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (
                "ALTER TABLE model_versions ADD CHECK (version < 3)",
                r"model_versions\.copy: .*violates check constraint",
            ),
            ("DROP INDEX uq_periods_open; CREATE UNIQUE INDEX ON periods (status)", r"periods\.copy: duplicate key"),
            (
                "CREATE UNIQUE INDEX ON interactions (period)",
                "does not take the backup: .*could not create unique index",
            ),
            ("ALTER TABLE items ADD COLUMN more int NOT NULL", r"items\.copy: null value"),
            ("ALTER TABLE periods DROP COLUMN error", r"periods\.copy: column .* does not exist"),
        ],
    )
    async def test_rows_that_the_database_does_not_take(
        self, backup: Path, postgres_dsn: str, database: Database, redis: Redis, fault: str, message: str
    ) -> None:
        await sql(database, *fault.split(";"))
        before = await contents(database)
        with pytest.raises(BackupError, match=message):
            await restored(postgres_dsn, redis, backup)
        assert await contents(database) == before
        await require_empty_database(database)

    async def test_a_table_that_the_backup_lacks(
        self, backup: Path, postgres_dsn: str, database: Database, redis: Redis
    ) -> None:
        manifest = read_backup(backup)
        less = msgspec.structs.replace(manifest, tables=manifest.tables[:-1])
        with pytest.raises(BackupError, match=r"expected the tables .*; received"):
            await restore(database, redis, backup, less, actor="test")
        await require_empty_database(database)


class TestKilled:
    async def test_a_killed_restore_leaves_an_empty_database_that_takes_the_backup(
        self, copy: Make, past: Past, empty: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with opened(copy(past.name)) as database:
            await enlarge(database)
            await back_up(database, tmp_path / "backup")
            expected = await contents(database)
        arguments = ("restore", str(tmp_path / "backup"))
        async with opened(empty) as database:
            for table in ("a new one", "artifact_chunks"):
                with started(*arguments, dsn=empty, redis_url=redis_url) as process:
                    await copying(database, process, table)
                    process.kill()
                await alone(database)
                await require_empty_database(database)
            async with connected(redis_url) as redis:
                await restored(empty, redis, tmp_path / "backup")
            assert (await verify(database, tmp_path)).findings == []
            found = await contents(database)
        assert {name for name in expected if expected[name] != found[name]} == {"audit"}


@pytest.mark.slow
def test_served_on_another_host_it_answers_the_same(data_dir: Path, tmp_path: Path) -> None:
    """Embedded servers: a service at work is backed up, another data folder is restored from it, and serves."""
    one, two = data_dir / "one", data_dir / "two"
    one.mkdir(parents=True)
    backup = tmp_path / "backup"
    questions = [{"user_id": f"u{n}", "items": [f"i{m}" for m in range(15)]} for n in range(30)]
    stream = periods(2)
    with program(tmp_path, "--data-dir", str(one)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        for number, period in enumerate(stream, start=1):
            rows = zip(
                period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True
            )
            log = [
                {"event_id": f"{number}-{n}", "user_id": u, "item_id": i, "label": y, "timestamp": t}
                for n, (u, i, y, t) in enumerate(rows)
            ]
            assert client.post("/interactions", json={"interactions": log}).status_code == 200
            assert client.post("/periods/close").status_code == 202
        wait_for(lambda: client.post("/predict", json=questions[0]).json()["model_version"] == 2, 120)
        asked = client.post("/predict/batch", json={"requests": questions}).json()
        result = asmg("backup", str(backup), "--data-dir", str(one))
        assert "serving version 2" in result.stdout
    result = asmg("restore", str(backup), "--data-dir", str(two))
    assert "serving version 2" in result.stdout and "all is well" in result.stdout
    with program(tmp_path, "--data-dir", str(two)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        again = client.post("/predict/batch", json={"requests": questions}).json()
    assert [answer["scores"] for answer in again["predictions"]] == [
        answer["scores"] for answer in asked["predictions"]
    ]
    assert again["model_version"] == asked["model_version"] == 2


async def test_purging_removes_what_is_ours_alone(redis: Redis) -> None:
    await redis.mset({f"asmg:past:{n}": n for n in range(2500)} | {"other:key": 1})
    assert await purge(redis) == 2500
    assert await redis.keys("*") == [b"other:key"]
    assert await purge(redis) == 0
