"""What goes on in the background while the stages of an update run: rows of new ids, files of training states."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from asmg.checkpoint import Checkpoint, CheckpointError
from service.files import find
from service.storage.artifacts.state_files import StateFiles
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.postgres.repositories import Allocation, Entities, EntityKind, EventBatch
from service.storage.redis.notices import Notices
from service.use_cases.ingest import ingest
from tests.service.deletion_support import ANN, CHANGES, delete
from tests.service.update_doubles import Stopped
from tests.service.update_support import (
    SEED,
    STAGES,
    Bench,
    Prepared,
    bench,
    interactions,
    periods,
    scalar,
    snapshot_of,
    until,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = "SELECT count(*) FROM entity_rows WHERE first_period = 2"


class Stages(Notices):
    """Notes which stage begins, and calls `at` when one does."""

    def __init__(self, redis: Any, at: Any = None) -> None:
        super().__init__(redis)
        self.begun: list[str] = []
        self._at = at

    @override
    async def publish_progress(self, period: int, progress: Any) -> None:
        if progress["stage"] not in self.begun:
            self.begun.append(progress["stage"])
            if self._at is not None:
                await self._at(progress["stage"])


async def done(b: Bench) -> list[str]:
    async with b.database.read() as session:
        return [stage.stage for stage in await session.stages.list(2) if stage.status == "done"]


class TestRowsOfNewIds:
    async def test_are_written_while_the_next_stages_run(
        self, second: str, prepared: Prepared, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append, may_write = Entities.append, asyncio.Event()

        async def wait_and_append(entities: Entities, kind: EntityKind, allocation: Allocation) -> None:
            await may_write.wait()
            await append(entities, kind, allocation)

        monkeypatch.setattr(Entities, "append", wait_and_append)
        async with bench(second, redis_url, tmp_path) as b:
            notices = Stages(b.redis)
            update = asyncio.create_task(b.update(2, notices=notices))
            await until(lambda: "gate" in notices.begun)
            with pytest.raises(TimeoutError):  # it waits for the rows
                await asyncio.wait_for(asyncio.shield(update), 0.3)
            assert "publish" not in notices.begun
            assert await done(b) == ["resolve"]
            assert await scalar(b.database, ROWS) == 0
            may_write.set()
            assert await update == 2
            assert await done(b) == list(STAGES)
            assert await scalar(b.database, ROWS) > 0
            assert await b.outcome() == prepared.outcome

    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_if_they_are_not_written_no_stage_after_them_counts(
        self,
        second: str,
        prepared: Prepared,
        redis_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        cancelled: bool,
    ) -> None:
        may_end = asyncio.Event()

        async def wait_and_fail(*_: Any) -> None:
            await may_end.wait()
            raise RuntimeError("the disk is full")

        async with bench(second, redis_url, tmp_path) as b:
            notices = Stages(b.redis)
            with monkeypatch.context() as patch:
                patch.setattr(Entities, "append", wait_and_fail)
                update = asyncio.create_task(b.update(2, notices=notices))
                await until(lambda: "gate" in notices.begun)
                if cancelled:
                    update.cancel()
                may_end.set()
                with pytest.raises(asyncio.CancelledError if cancelled else RuntimeError):
                    await update
            assert await done(b) == ["resolve"]
            assert await scalar(b.database, ROWS) == 0
            assert await b.update(2) == 2
            assert await b.outcome() == prepared.outcome

    async def test_what_was_done_stays_done_where_a_later_stage_fails(
        self, second: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append, may_write = Entities.append, asyncio.Event()

        async def wait_and_append(entities: Entities, kind: EntityKind, allocation: Allocation) -> None:
            await may_write.wait()
            await append(entities, kind, allocation)

        async def stop(stage: str) -> None:
            if stage == "gate":
                may_write.set()
                raise Stopped

        monkeypatch.setattr(Entities, "append", wait_and_append)
        async with bench(second, redis_url, tmp_path) as b:
            with pytest.raises(Stopped):
                await b.update(2, notices=Stages(b.redis, stop))
            assert await done(b) == list(STAGES[: STAGES.index("gate")])


class TestIdsOfABase:
    async def test_are_the_same_from_memory_and_from_postgres(
        self,
        postgres_dsn: str,
        copy: Callable[..., str],
        prepared: Prepared,
        redis_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The database of `prepared` learned its first period without a break."""
        pages, ends = Entities.pages, set[int | None]()

        async def stop(stage: str) -> None:
            if stage == "publish":
                raise Stopped

        def note_end(entities: Entities, kind: EntityKind, *values: Any, end: int | None = None) -> Any:
            if kind is EntityKind.USER:
                ends.add(end)
            return pages(entities, kind, *values, end=end)

        monkeypatch.setattr(Entities, "pages", note_end)

        async with bench(postgres_dsn, redis_url, tmp_path) as b:
            await b.log(periods(1, seed=SEED)[0])
            with pytest.raises(Stopped):
                await b.update(1, notices=Stages(b.redis, stop))
            await b.update(1)
            version = (await b.outcome())["versions"][1]
            assert version == prepared.outcome["versions"][1]
            assert len(version["state"]["snapshot"]) == 1
            assert ends == {await scalar(b.database, "SELECT max(row) + 1 FROM entity_rows WHERE kind = 'user'")}
        async with bench(copy(), redis_url, tmp_path / "again") as b:
            ends.clear()
            await b.log(periods(1, seed=SEED)[0])
            await b.update(1)
            assert (await b.outcome())["versions"][1] == version
            assert ends == {1}

    @pytest.mark.parametrize("pending", [False, True])
    async def test_lack_whom_was_deleted_since(
        self,
        postgres_dsn: str,
        redis_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        pending: bool,
    ) -> None:
        """Also where the deletion has freed the row, and is not finished yet."""

        async def delete_ann(stage: str) -> None:
            if stage != "publish":
                return
            if not pending:
                await delete(b)
                return
            async with b.database.unit_of_work() as work:
                await work.deletions.begin("user", ANN)
                await work.removals.release("user", ANN)
                await work.commit()

        async with bench(postgres_dsn, redis_url, tmp_path, **CHANGES) as b:
            first = periods(1, seed=SEED)[0]
            users = [ANN if n % 5 == 0 else user for n, user in enumerate(first.user_ids)]
            await ingest(b.database, b.context.histories, EventBatch.of(interactions(replace(first, user_ids=users))))
            await b.close(1)
            version = await b.update(1, notices=Stages(b.redis, delete_ann))
            snapshot = await snapshot_of(b, version, tmp_path)
            assert snapshot.predict(ANN, ["item1"], []).cold_user
            assert not snapshot.predict(users[1], ["item1"], []).cold_user


class TestStateFiles:
    @staticmethod
    def checkpoint(tensor: torch.Tensor) -> Checkpoint:
        return Checkpoint("base", {"of": "a test"}, {"user": tensor})

    async def test_are_complete_when_they_are_waited_for(self, tmp_path: Path) -> None:
        nothing: Any = None
        checkpoint = self.checkpoint(torch.randn(1000, 16))
        async with StateFiles(nothing, tmp_path) as files:
            digest = await files.keep(checkpoint)
            assert await files.keep(self.checkpoint(checkpoint.tensors["user"].clone())) == digest
            await files.written(digest)
            assert not files.writing
            path = find(tmp_path, digest, FILE_SUFFIX)
            assert path == files.path(digest)
        assert path is not None
        assert path.read_bytes() == checkpoint.to_bytes()

    async def test_of_tensors_that_change_are_refused(self, tmp_path: Path) -> None:
        nothing: Any = None
        tensor = torch.randn(1000, 16)
        with pytest.raises(CheckpointError, match="changed while they were written"):
            async with StateFiles(nothing, tmp_path) as files:
                await files.keep(self.checkpoint(torch.randn(1000, 16)))
                await files.keep(self.checkpoint(tensor))  # its turn comes after the one before
                tensor += 1
                await files.written()

    async def test_are_not_waited_for_where_the_update_fails(self, tmp_path: Path) -> None:
        nothing: Any = None
        with pytest.raises(Stopped):
            async with StateFiles(nothing, tmp_path) as files:
                await files.keep(self.checkpoint(torch.randn(1000, 16)))
                raise Stopped
        assert not files.writing
