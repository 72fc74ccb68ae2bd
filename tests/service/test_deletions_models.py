"""Deletions and models: the next model knows nothing of the id, and no update restores it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.storage.postgres.repositories import (
    EntityKind,
    EventBatch,
    Interaction,
    Items,
)
from service.use_cases.ingest import ingest
from service.use_cases.rollback import rollback
from service.use_cases.update import publish
from service.use_cases.update.context import Superseded
from tests.service.deletion_support import ANN, CHANGES, LAMP, MARK, NOBODY, START_MS, delete, marked
from tests.service.update_support import HOUR_MS, Bench, bench, moment, parts_of, scalar, snapshot_of

pytestmark = pytest.mark.usefixtures("one_thread")


def single(number: int, *, ann: bool = True, events: int = 40) -> EventBatch:
    """A period in which nobody is new after the first."""
    users = [ANN, *(f"user{n}" for n in range(4))] if ann else [f"user{n}" for n in range(4)]
    items = [LAMP, *(f"item{n}" for n in range(4))] if ann else [f"item{n}" for n in range(4)]
    rng = np.random.default_rng(number)
    rows = [
        (users[n % len(users)], items[int(rng.integers(len(items)))], int(rng.random() < 0.4)) for n in range(events)
    ]
    return EventBatch.of(
        [
            Interaction(f"{number}-{n:03}", user, item, label, moment(START_MS + number * HOUR_MS + n))
            for n, (user, item, label) in enumerate(rows)
        ]
    )


async def learn(b: Bench, number: int, **options: Any) -> int:
    await ingest(b.database, b.context.histories, single(number, **options))
    await b.close(number)
    return await b.update(number)


def counted_of(parts: dict[str, dict[str, torch.Tensor]], item: int) -> set[str]:
    """Where the statistics of a training state have anything about an item, by its row."""
    found = parts["statistics"]
    of_item = {name: found[name][item] for name in ("counts", "counted", "degrees", "paired")}
    of_item |= {"starts": found["starts"].diff()[item], "neighbours": found["neighbours"] == item}
    return {name for name, values in of_item.items() if bool(values.any())}


class TestTheNextModel:
    @pytest.mark.parametrize("updater", ["asmg-gru-multi", "asmg-gru-full", "iu", "bu-3"])
    async def test_knows_nothing_of_whom_was_deleted(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path, updater: str
    ) -> None:
        """Its predictions for deleted ids equal, bit for bit, those for ids that never existed. In the state their rows
        equal the cold row, without optimizer moments: as it was when the update began where logs that the method keeps
        had them, so that it read these rows, and else, as any row that no layer has, as it is in the new model.
        """
        async with bench(postgres_dsn, redis_url, tmp_path, updater=updater, **CHANGES) as b:
            for number in range(1, 4):
                await learn(b, number)
            rows = {
                "user": await scalar(b.database, "SELECT row FROM entity_rows WHERE id = :id", id=ANN),
                "item": await scalar(b.database, "SELECT row FROM entity_rows WHERE id = :id", id=LAMP),
            }
            before = await snapshot_of(b, 3, tmp_path)
            parts = await parts_of(b, await b.outcome(), 3)
            base_before = parts["base"]
            assert counted_of(parts, rows["item"]) == {
                "counts",
                "counted",
                "degrees",
                "paired",
                "starts",
                "neighbours",
            }
            assert not before.predict(ANN, [LAMP], []).cold_user
            await delete(b)
            await delete(b, "item", LAMP)
            await learn(b, 4, ann=False)
            after = await snapshot_of(b, 4, tmp_path)
            found = after.predict(ANN, [LAMP, "item1"], [LAMP, "item2"])
            assert found.cold_user and found.cold_items.tolist() == [0]
            stranger = after.predict(NOBODY, [NOBODY, "item1"], [NOBODY, "item2"])
            assert found.scores.tolist() == stranger.scores.tolist()
            parts = await parts_of(b, await b.outcome(), 4)
            base, optimizer = parts["base"], parts["optimizer"]
            assert not any(torch.equal(base[kind][0], base_before[kind][0]) for kind in rows)
            cold = base if updater == "iu" else base_before
            for kind, row in rows.items():
                assert torch.equal(base[kind][row], cold[kind][0])
                assert not torch.equal(base[kind][row], base_before[kind][row])
                moments = [
                    tensor for name, tensor in optimizer.items() if name.split(".")[-1] == kind and tensor.ndim > 1
                ]
                assert moments and not any(tensor[row].any() for tensor in moments)
            assert counted_of(parts, rows["item"]) == set()
            # An older version, which one can go back to until it is let go of, has an index of its own.
            assert not before.predict(ANN, ["item1"], []).cold_user

    async def test_goes_on_from_an_older_one_and_forgets_as_well(
        self, postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with bench(postgres_dsn, redis_url, tmp_path, updater="iu", **CHANGES) as b:
            for number in (1, 2):
                await learn(b, number)
            await delete(b)
            await learn(b, 3, ann=False)
            back: dict[str, Any] = {"reason": "test", "actor": "test", "settings": b.settings}
            await rollback(b.database, b.context.notices, to_version=1, sequence="excise", **back)
            version = await learn(b, 4, ann=False)
            after = await snapshot_of(b, version, tmp_path)
            assert after.predict(ANN, ["item1"], []).cold_user
            scores = [after.predict(who, ["item1"], ["item2"]).scores.tolist() for who in (ANN, NOBODY)]
            assert scores[0] == scores[1]

    async def test_who_comes_again_is_new(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        """Bit for bit as if the same events had come from a new id."""
        states = []
        for name in (ANN, NOBODY):
            async with bench(postgres_dsn, redis_url, tmp_path, updater="iu", **CHANGES) as b:
                if not states:
                    for number in (1, 2):
                        await learn(b, number)
                    await delete(b)
                period = 2 + len(states) + 1
                event = Interaction(f"{period} again", name, "item1", 1, moment(START_MS + 9 * HOUR_MS))
                # With others, for of a single event the gate may make anything.
                for batch in (EventBatch.of([event]), single(period, ann=False)):
                    await ingest(b.database, b.context.histories, batch)
                await b.close(period)
                if states:
                    back: dict[str, Any] = {"reason": "test", "actor": "test", "settings": b.settings}
                    await rollback(b.database, b.context.notices, to_version=2, sequence="excise", **back)
                states.append(await b.update(period))
                async with b.database.read() as session:
                    ids, _ = await session.entities.rows(EntityKind.USER)
                assert name in ids
                await delete(b, id_=name)

    async def test_an_update_that_read_the_log_before_gives_no_row_again(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Items.put_since
        read_again = 0

        async def delete_then_read(items: Items, period: int) -> Any:
            nonlocal read_again
            read_again += 1
            if read_again == 1:
                await delete(full)
                await delete(full, "item", LAMP)
            return await read(items, period)

        monkeypatch.setattr(Items, "put_since", delete_then_read)
        await full.update(4)
        assert read_again == 2
        assert await marked(full.database, MARK) == set()

    async def test_a_snapshot_that_was_written_before_is_not_published(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        put = publish.write_snapshot

        async def put_then_delete(*arguments: Any) -> str:
            digest = await put(*arguments)
            await delete(full)
            return digest

        with monkeypatch.context() as patch:
            patch.setattr(publish, "write_snapshot", put_then_delete)
            with pytest.raises(Superseded, match="somebody was deleted"):
                await full.update(4)
        assert "may know somebody who was deleted" in caplog.text
        version = await full.update(4)
        assert (await snapshot_of(full, version, tmp_path)).predict(ANN, ["item1"], []).cold_user

    async def test_deletions_that_free_no_row_hold_up_no_publication(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Deletions of ids that never existed, and of ids that came after the log was read."""
        put, removed = publish.write_snapshot, []

        async def put_then_delete(*arguments: Any) -> str:
            digest = await put(*arguments)
            event = Interaction("of a new user", "new user", "item1", 1, datetime.now(UTC))
            await ingest(full.database, full.context.histories, EventBatch.of([event]))
            removed.extend([(await delete(full, "user", id_)).removed for id_ in (NOBODY, "new user")])
            return digest

        read, reads = Items.put_since, 0

        async def delete_then_read(items: Items, period: int) -> Any:
            nonlocal reads
            reads += 1
            if reads == 1:
                await delete(full, "user", NOBODY)
            return await read(items, period)

        monkeypatch.setattr(publish, "write_snapshot", put_then_delete)
        monkeypatch.setattr(Items, "put_since", delete_then_read)
        await full.update(4)
        assert removed == [{}, {"interactions": 1}]
        assert reads == 1
