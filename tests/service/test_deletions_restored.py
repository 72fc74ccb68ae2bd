"""Deletions and backups: a restored database deletes again the ids that were deleted since the backup."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from redis.asyncio import Redis
from typer.testing import CliRunner

from service.cli import app as cli
from service.errors import BackupError
from service.storage.backup.journal import read_journal
from service.storage.backup.manifest import read_backup
from service.storage.postgres.repositories import (
    EventBatch,
    Interaction,
)
from service.use_cases.backup import back_up, restore
from service.use_cases.forget import carry_out, request_deletion
from service.use_cases.ingest import ingest
from service.use_cases.verify import verify
from tests.conftest import in_thread
from tests.service.backup_support import opened
from tests.service.deletion_support import ANN, LAMP, MARK, delete, marked
from tests.service.update_support import Bench, scalar

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments: str, **environment: str) -> Result:
    """A command in a thread of this process: as a program of its own it would take seconds to start."""
    result = in_thread(lambda: CliRunner().invoke(cli, arguments, env=environment))
    assert result.exit_code == 0, result.output
    return result


class TestRestored:
    async def test_who_was_deleted_since_is_deleted_again(
        self, full: Bench, copy: Callable[..., str], redis: Redis, tmp_path: Path
    ) -> None:
        """And no others: neither ids whose deletion the backup already contains, nor a newcomer under such an id."""
        await delete(full, "item", LAMP)
        lamp = Interaction("a new lamp", "user1", LAMP, 1, datetime.now(UTC))
        await ingest(full.database, full.context.histories, EventBatch.of([lamp]))
        pending = await request_deletion(full.database, "user", "user3", actor="test")
        folder = tmp_path / "backup"
        await back_up(full.database, folder, full.settings.journal)
        assert read_backup(folder).journal == str(full.settings.journal)
        await delete(full)
        await carry_out(full.database, full.context.histories, full.settings.journal, pending)
        journal = read_journal(full.settings.journal)
        assert len(journal) == 3
        content = full.settings.journal.read_text()
        assert not any(id_ in content for id_ in (ANN, LAMP, "user3", MARK))
        async with opened(copy()) as database:
            deletions: dict[str, Any] = {"actor": "test", "deletions": journal}
            assert await restore(database, redis, folder, read_backup(folder), **deletions) == 2
            assert await marked(database, ANN) == set()
            assert await scalar(database, "SELECT count(*) FROM interactions WHERE user_id = 'user3'") == 0
            assert await scalar(database, "SELECT count(*) FROM interactions WHERE item_id = :i", i=LAMP) == 1
            assert (await verify(database, tmp_path)).findings == []
            async with database.read() as session:
                known = [deletion.deletion for deletion in await session.deletions.list()]
                (entry,) = await session.audit.list(1)
            assert sorted(known) == sorted(entry.deletion for entry in journal)
            assert (entry.action, entry.detail["deletions_read"], entry.detail["deleted"]) == ("restore", 3, 2)

    async def test_the_commands_find_the_journal_by_themselves(
        self, full: Bench, copy: Callable[..., str], redis_url: str, tmp_path: Path
    ) -> None:
        """On an empty server with a data folder of its own; the one that was backed up is on this host."""
        servers = {"ASMG_REDIS_URL": redis_url, "ASMG_POSTGRES_DSN": str(full.settings.postgres_dsn)}
        await back_up(full.database, tmp_path / "backup", full.settings.journal)
        await delete(full)
        command("deletions", "export", str(tmp_path / "exported"), ASMG_DATA_DIR=str(tmp_path / "two"), **servers)
        assert read_journal(tmp_path / "exported") == read_journal(full.settings.journal)
        servers["ASMG_POSTGRES_DSN"] = empty = copy()
        result = command("restore", str(tmp_path / "backup"), ASMG_DATA_DIR=str(tmp_path / "two"), **servers)
        assert "deleted 1 users and items again" in result.stdout and "all is well" in result.stdout
        assert read_journal(tmp_path / "two" / "deletions.jsonl") == read_journal(full.settings.journal)
        # Without it, it says so; and what was exported does as well later.
        full.settings.journal.unlink()
        servers["ASMG_POSTGRES_DSN"] = other = copy()
        result = command("restore", str(tmp_path / "backup"), ASMG_DATA_DIR=str(tmp_path / "three"), **servers)
        assert "found no journal of deletions" in result.stderr
        async with opened(empty) as database, opened(other) as other_database:
            assert await marked(database, ANN) == set()
            assert await marked(other_database, ANN) != set()
            for found in (1, 0):  # the second time it is known
                replayed = command(
                    "deletions", "replay", str(tmp_path / "exported"), ASMG_DATA_DIR=str(tmp_path / "three"), **servers
                )
                assert f"deleted {found} users" in replayed.stdout
            assert await marked(other_database, ANN) == set()

    async def test_a_journal_that_is_cut_off_or_damaged(self, full: Bench, tmp_path: Path) -> None:
        journal = full.settings.journal
        await delete(full)
        whole = journal.read_bytes()
        assert journal.stat().st_mode & 0o777 == 0o600
        (entry,) = read_journal(journal)
        journal.write_bytes(whole + whole[: len(whole) // 2] + whole)
        assert read_journal(journal) == [entry]
        for damage in (
            whole.replace(b"user", b"usar"),
            whole + b"\nnonsense",
            whole.replace(entry.key[:4].encode(), b"x"),
        ):
            journal.write_bytes(damage)
            with pytest.raises(BackupError, match="expected a deletion in line"):
                read_journal(journal)
        with pytest.raises(BackupError, match="No such file"):
            read_journal(tmp_path / "elsewhere")
