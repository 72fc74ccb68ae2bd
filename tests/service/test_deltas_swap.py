"""How a process goes from version to version where each is a base and its deltas."""

import asyncio
import gc
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from service.files import create, find
from service.serving.loading import load_snapshot
from service.serving.swap import ServingModel
from service.serving.turns import Champion
from service.storage.artifacts.store import Pace
from tests.service.api_support import eventually
from tests.service.test_deltas import SHAPES, base_file, delta_file, first_state, names, next_state
from tests.service.test_swap import SUFFIX, following, harm, silence

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux has memory files")

DELTAS = 5
RENEWED = 4
"""Version whose files a base takes the place of."""


def digest_of(path: Path) -> str:
    return path.name.partition(".")[0]


class Published:
    """Versions 1, 2, … of a model: a base, and one more delta with each version."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        self.store, self.folder, self.version = folder / "store", folder / "serving", 1
        state = first_state(SHAPES["statistics"], rng)
        paths = [base_file(self.store, state.trained())]
        for _ in range(DELTAS):
            state, changed, gone = next_state(state, rng)
            paths.append(delta_file(self.store, state.trained(), changed, gone))
            if len(paths) == RENEWED:
                self.renewed = base_file(self.store, state.trained())
        self.paths = paths
        self.digests = [digest_of(path) for path in paths]
        self.whole = load_snapshot(base_file(folder / "whole", state.trained()), 9, 1)
        """The last version, as one base."""
        self.fetched: list[str] = []
        self.replaced = 0
        """In place of how many files there is the base `renewed`, which has what they have together."""

    def champion(self, version: int) -> Champion:
        moment = datetime.fromtimestamp(time.time(), UTC)
        files = self.digests[:version]
        if self.replaced:
            files[: self.replaced] = [digest_of(self.renewed)]
        return Champion(version, version, tuple(files), moment, move=version)

    async def fetch_champions(self) -> list[Champion]:
        return [self.champion(self.version)]

    async def while_fetching(self, pace: Pace) -> None:
        """Called while a file is fetched for which nobody waits."""

    async def fetch_file(self, digest: str, folder: Path, pace: Pace | None = None) -> Path:
        if pace is not None:
            await self.while_fetching(pace)
        if (path := find(folder, digest, SUFFIX)) is None:
            self.fetched.append(digest)
            source = next(file for file in (self.renewed, *self.paths) if digest_of(file) == digest)
            with create(folder, SUFFIX) as file:
                file.write(source.read_bytes())
            path = file.path
            assert path is not None
        return path

    def process(self, check_seconds: float = 60.0) -> ServingModel:
        return ServingModel(
            fetch_champions=self.fetch_champions,
            fetch_file=self.fetch_file,
            notices=silence,
            folder=self.folder,
            poll_seconds=0.02,
            check_seconds=check_seconds,
        )


def memory_files() -> set[tuple[str, int]]:
    """Names and inodes of the sealed copies of this module's versions that the process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if "memfd:asmg" in (name := os.readlink(descriptor)):
                found.add((name, descriptor.stat().st_ino))
    return found


async def test_versions_share_the_base_and_leave_nothing_behind(tmp_path: Path) -> None:
    source, before = Published(tmp_path), memory_files()
    one, other = source.process(), source.process()
    await one.refresh()
    base, used = one.current().base, one.current()
    for version in range(2, len(source.digests) + 1):
        source.version = version
        for model in (one, other):
            await model.refresh()
        assert one.current().base is base
        assert (one.current().version, other.current().version) == (version, version)
        # Both serve the same pages, also where one began with the overlay of its version before and the other did not.
        overlays = [model.current().overlay for model in (one, other)]
        assert [each.name for each in overlays if each] == [overlays[0].name] * 2 if overlays[0] else False
        gc.collect()
        await eventually(lambda: len({inode for _, inode in memory_files() - before}) == 2)
    assert source.fetched == source.digests  # each once
    items, past = names("item", np.arange(60)), names("item", np.arange(1, 20))
    expected = source.whole.predict("user3", items, past).scores
    for model in (one, other):
        assert np.abs(model.current().predict("user3", items, past).scores - expected).max() <= 1e-6
    # The first version can still answer: its base was not released with it.
    assert len(used.predict("user3", items, past).scores) == len(items)
    # All files of the version stay on the disk, however many.
    assert sorted(path.name for path in source.folder.glob("*" + SUFFIX)) == sorted(p.name for p in source.paths)
    del one, other, base, used, model, overlays
    gc.collect()
    await eventually(lambda: memory_files() <= before)


async def test_a_damaged_delta_is_fetched_anew(tmp_path: Path) -> None:
    """Before it is merged, and while its version is served."""
    source = Published(tmp_path)
    source.version = 3
    path = await source.fetch_file(source.digests[2], source.folder)
    harm(path, path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ValueError, match="expected a file with this XXH3-128"):
        await source.process().refresh()
    assert not path.exists()
    model = source.process(check_seconds=0.05)
    async with following(model):
        await model.wait_loaded()
        served = model.current()
        assert source.fetched.count(source.digests[2]) == 2
        harm(path, b"other")
        await eventually(lambda: path.read_bytes() == source.paths[2].read_bytes())
        await eventually(lambda: model.damage is None)
        assert model.current() is served  # its pages are sealed


async def test_a_process_that_starts_takes_all_deltas_at_once(tmp_path: Path) -> None:
    source = Published(tmp_path)
    source.version = len(source.digests)
    model = source.process()
    await model.refresh()
    shutil.rmtree(source.folder)
    await asyncio.sleep(0)
    items = names("item", np.arange(60))
    found, expected = (each.predict("user3", items, []) for each in (model.current(), source.whole))
    assert np.abs(found.scores - expected.scores).max() <= 1e-6
    assert found.cold_items.tolist() == expected.cold_items.tolist()


async def test_a_base_that_is_written_anew_is_fetched_in_the_background(tmp_path: Path) -> None:
    """In no hurry, until there is a newer version, which needs it."""
    source = Published(tmp_path)
    source.version = RENEWED
    model = source.process()
    paced = []

    async def publish(pace: Pace) -> None:
        served = model.current().version, len(model.current().sources)
        paced.append(served)
        waits = asyncio.ensure_future(pace(600.0))
        await asyncio.sleep(0.01)
        assert not waits.done()
        source.version = RENEWED + 1
        model.wake()
        await waits

    source.while_fetching = publish  # type: ignore[method-assign]
    async with following(model):
        await model.wait_loaded()
        before = model.current()
        source.replaced = RENEWED
        model.wake()
        await eventually(lambda: model.current().version == RENEWED + 1)
        served = model.current()
        assert paced == [(RENEWED, RENEWED)]
        assert [digest_of(path) for path in served.sources] == [digest_of(source.renewed), source.digests[RENEWED]]
        assert served.base is not before.base
