"""What is not restored, and why: damaged backups, and databases that are not empty."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from service.errors import BackupError, NotReady
from service.storage.backup.manifest import MANIFEST, read_backup, write_manifest
from service.storage.postgres.database import Database
from service.storage.redis.histories import HistoryStore
from service.use_cases.backup import require_empty_database, restore
from service.use_cases.ingest import ingest
from tests.service.api_support import running_app, settings_for
from tests.service.backup_support import Make, Past, connected, contents, events, opened, restored, sql


async def table_names(database: Database) -> list[str]:
    async with database.read() as session:
        query = (
            "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        )
        return list((await session.connection.execute(text(query))).scalars())


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


class TestRefusals:
    """A damaged backup, or a target that is not empty, is refused, and nothing is changed."""

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
            (lambda f: (f / MANIFEST).write_text('{"format": 3}'), rf"{MANIFEST}: expected a whole manifest"),
            (lambda f: (f / MANIFEST).unlink(), rf"expected a backup; received a folder without {MANIFEST}"),
            (lambda f: shutil.rmtree(f), rf"expected a backup; received a folder without {MANIFEST}"),
            (lambda f: change(f, release="9"), rf"{MANIFEST}: expected content with SHA-256"),
            (lambda f: change(f, format=2), "expected a backup of format 3; received one of format 2"),
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
