"""Compaction beside updates: a period is published, or half learned, while files are merged."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy.engine import make_url

from service.storage.postgres.database import Lock
from service.storage.postgres.repositories import AliasName
from service.use_cases.catalogue import put_items
from service.use_cases.update import compaction
from service.use_cases.update.compaction import compact, with_compaction
from tests.service.update_doubles import Stopped, Watched, closing
from tests.service.update_support import SEED, Prepared, bench, named, parts_of, periods, snapshot_of, stored

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are merged, and a snapshot is written as a base, as soon as that is possible."""
    for name, value in (("KEPT_LAYERS", 1), ("MAX_LAYERS", 1), ("MAX_DELTAS", 1)):
        monkeypatch.setattr(compaction, name, value)


def once(work: Callable[[], Awaitable[object]]) -> Callable[[], None]:
    """A beat of a compaction: its first call, from a thread, lets the event loop do some work and waits for it."""
    loop, todo = asyncio.get_running_loop(), [work]

    async def do() -> None:
        await todo.pop()()

    def beat() -> None:
        if todo:
            asyncio.run_coroutine_threadsafe(do(), loop).result(300)

    return beat


async def test_a_head_that_moves_on_meanwhile(
    prepared: Prepared, copy: Callable[..., str], redis_url: str, tmp_path: Path
) -> None:
    """A period that is published between the reading and the commit gets what was merged; else nothing is kept."""
    source, last = copy(prepared.name), periods(4, seed=SEED)
    asked = "1", sorted(set(last[-1].item_ids)), last[-1].item_ids[:5]
    async with bench(source, redis_url, tmp_path / "made") as b:
        for log in last[2:]:
            await b.update(log.number - 1)
            await b.log(log)
    async with bench(copy(make_url(source).database), redis_url, tmp_path / "undisturbed") as b:
        await b.update(4)
        undisturbed = await b.outcome()
        parts = await parts_of(b, undisturbed, 4)
        scores = (await snapshot_of(b, 4, tmp_path / "snapshots")).predict(*asked).scores

    async with bench(source, redis_url, tmp_path / "made") as b:

        async def lose_the_newest() -> None:
            async with b.database.unit_of_work() as work:
                await work.lock_exclusive(Lock.MODELS)
                await work.models.set_alias(AliasName.HEAD, 3, lead_seconds=0, actor="test", reason="test")
                await work.commit()

        # A layer is merged when version 4 is published; then the snapshot of version 3 is written.
        noted = await compact(b.context, once(lambda: b.update(4)))
        found = await b.outcome()
        state, expected = dict(found["versions"][4]["state"]), undisturbed["versions"][4]["state"]
        assert found["versions"][3] == undisturbed["versions"][3]
        assert state.pop("compacted") == noted != []
        (base, *deltas), before = state.pop("snapshot"), expected.pop("snapshot")
        assert (deltas, state.pop("replaced")) == (before[-1:], before)
        assert base not in before
        assert state == expected
        renewed = (await snapshot_of(b, 4, tmp_path / "snapshots")).predict(*asked).scores
        assert np.abs(renewed - scores).max() <= 1e-6
        # What the next version will name in their place.
        found["versions"][4]["state"] = with_compaction(state, noted)
        merged = await parts_of(b, found, 4)
        for name, tensors in parts.items():
            assert all(torch.equal(tensors[n], merged[name][n]) for n in tensors), name

        kept = await stored(b.database)
        assert named(found) <= kept
        found = await b.outcome()
        await compact(b.context, once(lose_the_newest))
        assert await stored(b.database) == kept
        assert (await b.outcome())["versions"] == found["versions"]


async def test_a_period_that_is_half_learned(
    prepared: Prepared, copy: Callable[..., str], redis_url: str, tmp_path: Path
) -> None:
    """It has given rows to categories that the head does not know: these are left out of a new base."""
    log = periods(3, seed=SEED)[2]
    others = sorted(set(log.item_ids))
    asked = "1", others[3:], others[3:6]

    def told(what: str) -> None:
        if what == "noted prepare":
            raise Stopped

    dsn = copy(prepared.name)
    watched = Watched(dsn, told)
    async with bench(dsn, redis_url, tmp_path) as b, closing(watched):
        await b.update(2)
        scores = (await snapshot_of(b, 2, tmp_path / "snapshots")).predict(*asked).scores
        await b.log(log, close=False)
        await put_items(b.database, dict.fromkeys(others[:3], ("unheard of",)))
        await b.close(3)
        with pytest.raises(Stopped):
            await b.update(3, database=watched)
        await compact(b.context)
        assert len((await b.outcome())["versions"][2]["state"]["snapshot"]) == 1
        found = (await snapshot_of(b, 2, tmp_path / "snapshots")).predict(*asked).scores
    assert np.abs(found - scores).max() <= 1e-6
