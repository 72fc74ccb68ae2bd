"""How a snapshot replaces another in a process: at the moment, completely, and whatever is wrong with the next."""

import asyncio
import gc
import logging
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ArtifactMissing, NotReady
from service.files import create, find
from service.serving import snapshot as snapshot_module
from service.serving import swap
from service.serving.canary_share import CanaryShare
from service.serving.forward.compiled import compiled_forward
from service.serving.forward.interface import Forward
from service.serving.loading import SnapshotDamaged, load_snapshot
from service.serving.prior import prior_snapshot
from service.serving.sealed import NOTE_PREFIX
from service.serving.snapshot import Pages, Snapshot, WrongScores
from service.serving.snapshot_file import SnapshotFiles
from service.serving.swap import ServingModel
from service.serving.turns import Canary, Champion
from tests.service.api_support import eventually
from tests.service.serving_support import ITEMS, random_model

SUFFIX = ".safetensors"


def digest(version: int) -> str:
    """Of the version's artifact, as far as these tests know."""
    return f"digest{version}"


@dataclass
class Source:
    """A champion and artifacts that a test moves about; files that are there are not fetched again."""

    folder: Path
    champions: tuple[Champion, ...] = ()
    moves: int = 0
    content: bytes = prior_snapshot(0.5)
    failing: bool = False
    harming: bool = False
    """Whether what is fetched is damaged on its way."""
    asked: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def publish(self, version: int, *, at: float) -> None:
        self.move(version, datetime.fromtimestamp(at, UTC))

    def move(self, version: int, active_from: datetime | None) -> None:
        """As in Postgres: what waits for its moment is replaced, what has one stays."""
        self.moves += 1
        released = tuple(champion for champion in self.champions if champion.active_from is not None)
        self.champions = (*released, Champion(version, version, (digest(version),), active_from, self.moves))

    async def fetch_champions(self) -> Sequence[Champion]:
        if not self.champions:
            raise NotReady("no model yet")
        return self.champions

    async def fetch_file(self, digest: str, folder: Path, pace: object = None) -> Path:
        path = await self._fetch(digest, folder)
        if self.harming:
            harm(path, self.content[:-60] + b"?" + self.content[-59:])
        return path

    async def _fetch(self, digest: str, folder: Path) -> Path:
        self.asked.append(digest)
        if (path := find(folder, digest, SUFFIX)) is not None:
            return path
        self.fetched.append(digest)
        if self.failing:
            raise ArtifactMissing(digest)
        with create(folder, SUFFIX) as file:
            file.write(self.content)
        assert file.path is not None
        return file.path.rename(file.path.with_name(file.path.name.replace(file.digest, digest)))


def harm(path: Path, content: bytes) -> None:
    """What a failing disk, or somebody who may write to everything, does to a file."""
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(0o400)


async def silence() -> AsyncIterator[None]:
    await asyncio.sleep(3600)
    yield None


def serving_of(source: Source, **changes: Any) -> ServingModel:
    values: dict[str, Any] = {
        "fetch_champions": source.fetch_champions,
        "fetch_file": source.fetch_file,
        "notices": silence,
        "folder": source.folder,
        "poll_seconds": 0.02,
    }
    return ServingModel(**(values | changes))


@asynccontextmanager
async def following(model: ServingModel) -> AsyncIterator[None]:
    task = asyncio.create_task(model.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1_700_000_000.0)
    monkeypatch.setattr("service.serving.clock.time", clock)
    return clock


async def test_a_flip_is_exact(tmp_path: Path, clock: Clock) -> None:
    source = Source(tmp_path)
    models = [serving_of(source), serving_of(source)]
    source.publish(1, at=clock.now)
    for model in models:
        await model.refresh()
    source.publish(2, at=clock.now + 5)
    for model in models:
        await model.refresh()
    for moved, version in ((4.999, 1), (0.001, 2), (3600, 2)):
        clock.now += moved
        assert [model.current().version for model in models] == [version] * 2


async def test_a_snapshot_taken_before_a_flip_stays_whole(tmp_path: Path, clock: Clock) -> None:
    source = Source(tmp_path)
    model = serving_of(source)
    source.publish(1, at=clock.now)
    await model.refresh()
    taken = model.current()
    source.publish(2, at=clock.now + 1)
    await model.refresh()
    clock.now += 1
    assert (model.current().version, taken.version) == (2, 1)
    assert taken.predict("u", ["a"], []).scores == pytest.approx([0.5])


async def test_the_first_champion_serves_before_its_time(tmp_path: Path, clock: Clock) -> None:
    source = Source(tmp_path)
    model = serving_of(source)
    with pytest.raises(NotReady):
        model.current()
    source.publish(3, at=clock.now + 60)
    await model.refresh()
    assert model.current().version == 3


async def test_the_champion_named_last_counts(tmp_path: Path, clock: Clock) -> None:
    """A rollback comes before the next version has a moment: that version is never served."""
    source = Source(tmp_path)
    model = serving_of(source)
    source.publish(1, at=clock.now)
    await model.refresh()
    source.move(2, None)
    await model.refresh()
    assert (model.turns.waiting, model.turns.promise()) == (True, (2, 2))
    clock.now += 3600
    assert model.current().version == 1
    source.publish(1, at=clock.now + 1)
    await model.refresh()
    assert (model.turns.waiting, model.turns.promise()) == (False, (3, 1))
    for move in (1, 1, 3, 3):
        assert (model.current().version, model.turns.served_move) == (1, move)
        clock.now += 0.6
    assert source.fetched == ["digest1", "digest2"]  # what is loaded is not loaded again


async def test_a_canary_is_served_beside_the_champion(tmp_path: Path, clock: Clock) -> None:
    """It starts and ends at the moment of a move, and is taken from other files where those were written anew."""
    source = Source(tmp_path)
    model = serving_of(source)
    source.publish(1, at=clock.now)
    await model.refresh()
    first, moment = model.current(), datetime.fromtimestamp(clock.now + 5, UTC)

    def pair(file: int) -> Champion:
        canary = Canary(2, 2, (digest(file),), CanaryShare(0.5, 2))
        return replace(source.champions[0], active_from=moment, move=2, canary=canary)

    source.champions = (source.champions[0], pair(2))
    await model.refresh()
    clock.now += 4.9
    assert (model.current(), model.canary) == (first, None)
    clock.now += 0.2
    assert model.current() is first
    assert model.canary is not None
    share, snapshot = model.canary
    assert (share.share, snapshot.version) == (0.5, 2)
    source.champions = (pair(3),)
    await model.refresh()
    assert model.canary is not None
    again = model.canary[1]
    assert (again.version, [path.name.partition(".")[0] for path in again.sources]) == (2, [digest(3)])
    source.publish(2, at=clock.now)  # it is promoted
    source.champions = (replace(source.champions[-1], files=(digest(3),), move=3),)
    await model.refresh()
    assert (model.current(), model.canary) == (again, None)
    assert model.current().predict("u", ["a"], []).scores == pytest.approx([0.5])


async def test_two_versions_in_quick_succession_both_get_their_turn(tmp_path: Path, clock: Clock) -> None:
    """One process learns of version 3 before version 2 takes over, another after; a client of both never goes back."""
    source = Source(tmp_path)
    early, late = serving_of(source), serving_of(source)
    source.publish(1, at=clock.now)
    for model in (early, late):
        await model.refresh()
    source.publish(2, at=clock.now + 1)
    for model in (early, late):
        await model.refresh()
    source.publish(3, at=clock.now + 1.5)
    await early.refresh()
    clock.now += 1.2
    assert (late.current().version, early.current().version) == (2, 2)
    await late.refresh()
    clock.now += 0.3
    assert (late.current().version, early.current().version) == (3, 3)


async def test_a_load_error_keeps_the_old_and_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(tmp_path)
    troubles: list[str | None] = []
    model = serving_of(source, on_trouble=lambda: troubles.append(model.trouble))
    async with following(model):
        await asyncio.sleep(0.05)  # there is no champion yet, and that is survived too
        source.publish(1, at=time.time())
        await model.wait_loaded()
        await eventually(lambda: model.trouble is None)
        assert set(troubles) == {"no model yet"}
        troubles.clear()
        source.failing = True
        source.publish(2, at=time.time())
        while source.fetched.count("digest2") < 2:
            await asyncio.sleep(0.01)
            assert model.current().version == 1
        assert set(troubles) == {"there is no artifact digest2"}
        source.failing = False
        await eventually(lambda: model.current().version == 2)
        assert model.trouble is None
    assert "could not load the champion (attempt 1): there is no artifact digest2" in caplog.text


async def test_a_broken_artifact_is_never_served(tmp_path: Path) -> None:
    source = Source(tmp_path)
    model = serving_of(source)
    source.publish(1, at=time.time())
    async with following(model):
        await model.wait_loaded()
        good, source.content = source.content, b"not an artifact"
        source.publish(2, at=time.time())
        await eventually(lambda: source.asked.count(digest(2)) == 2)
        assert model.current().version == 1
        assert "expected a safetensors file" in str(model.trouble)
        source.content = good
        source.publish(3, at=time.time())
        await eventually(lambda: model.current().version == 3)
        assert model.trouble is None


async def test_a_notice_is_quicker_than_the_poll(tmp_path: Path) -> None:
    source = Source(tmp_path)
    notices: asyncio.Queue[None] = asyncio.Queue()

    async def listen() -> AsyncIterator[None]:
        while True:
            yield await notices.get()

    swapped: list[int] = []
    model = serving_of(
        source, notices=listen, poll_seconds=60, on_swap=lambda snapshot: swapped.append(snapshot.version)
    )
    source.publish(1, at=time.time())
    async with following(model):
        await model.wait_loaded()
        source.publish(2, at=time.time() + 0.1)
        notices.put_nowait(None)
        await eventually(lambda: swapped == [1, 2])  # by itself: no request asks for the current one here


async def test_only_the_last_files_are_kept(tmp_path: Path, clock: Clock) -> None:
    source = Source(tmp_path / "serving")
    model = serving_of(source)
    for version in range(1, 6):
        source.publish(version, at=clock.now)
        await model.refresh()
        await asyncio.sleep(0.01)  # files of one moment have no order
    assert sorted(path.name.partition(".")[0] for path in source.folder.glob("*" + SUFFIX)) == [
        "digest3",
        "digest4",
        "digest5",
    ]
    assert model.current().version == 5


class TestDamagedFiles:
    """A file in the host's cache differs from what was written, as after a disk fault."""

    DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
        "a weight": lambda data: data[:-60] + bytes([data[-60] ^ 1]) + data[-59:],
        "the check questions": lambda data: data.replace(b'\\"asked\\": [', b'\\"asked\\": [1'),
        "the header": lambda data: data[:20] + b"?" + data[21:],
        "the length of the header": lambda data: b"\xff" + data[1:],
        "the model": lambda data: data.replace(b'\\"model\\"', b'\\"modem\\"'),
        "cut off": lambda data: data[:-100],
        "empty": lambda data: b"",
        "longer": lambda data: data + b"more",
        "zeros": lambda data: bytes(len(data)),
    }

    @pytest.mark.parametrize("damage", DAMAGE)
    async def test_are_removed_and_fetched_anew(self, tmp_path: Path, damage: str) -> None:
        source = Source(tmp_path)
        source.publish(1, at=time.time())
        await serving_of(source).refresh()  # another process, which brought the file here and ended
        gc.collect()
        await eventually(lambda: not list(tmp_path.glob(f"{NOTE_PREFIX}*")))
        path = find(tmp_path, digest(1), SUFFIX)
        assert path is not None
        harmed = self.DAMAGE[damage](source.content)
        assert harmed != source.content
        harm(path, harmed)
        model = serving_of(source)
        with pytest.raises(ValueError, match="expected"):
            await model.refresh()
        assert not path.exists()
        await model.refresh()
        assert model.current().predict("u", ["a"], []).scores == pytest.approx([0.5])
        assert source.fetched == [digest(1)] * 2
        assert path.read_bytes() == source.content

    async def test_are_never_served_however_often_they_come(self, tmp_path: Path) -> None:
        source = Source(tmp_path)
        model = serving_of(source)
        source.publish(1, at=time.time())
        async with following(model):
            await model.wait_loaded()

            source.harming = True
            source.publish(2, at=time.time())
            await eventually(lambda: source.fetched.count(digest(2)) == 3)
            assert model.current().version == 1
            assert "expected a file with this XXH3-128" in str(model.trouble)

    def test_a_file_whose_name_has_no_checksum_is_believed(self, tmp_path: Path) -> None:
        path = tmp_path / "by hand.safetensors"
        path.write_bytes(prior_snapshot(0.5))
        assert load_snapshot(path, 3, 2).version == 3

    def test_are_told_apart_from_those_that_never_were_any(self, tmp_path: Path) -> None:
        with create(tmp_path, SUFFIX) as file:
            file.write(b"no snapshot at all")
        assert file.path is not None
        with pytest.raises(ValueError, match="expected a safetensors file") as raised:
            load_snapshot(file.path, 1, 1)
        assert not isinstance(raised.value, SnapshotDamaged)


def off_by(difference: float) -> Callable[..., Forward]:
    """A compiled forward pass that is wrong, as a compiler's error would make it."""

    def build(meta: Mapping[str, Any], files: SnapshotFiles) -> Forward:
        inner = compiled_forward(meta, files)

        def forward(asked: Any, history: Any, recent: Any, values: Any, scores: Any, cold: Any, /) -> tuple[int, bool]:
            found = inner(asked, history, recent, values, scores, cold)
            scores += np.float32(difference)
            return found

        return forward

    return build


class TestCheckQuestions:
    def test_where_machine_code_errs_torch_serves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = random_model(21, categories=True)
        made.snapshot(tmp_path)
        path = tmp_path / "snapshot.safetensors"
        monkeypatch.setattr(snapshot_module, "compiled_forward", off_by(1e-3))
        with caplog.at_level(logging.ERROR):
            snapshot = load_snapshot(path, 4, 3)
        assert "model version 4: expected the scores of the check questions" in caplog.text
        assert "the reference in torch serves" in caplog.text
        asked = ("u3", [*ITEMS, "unknown"], ITEMS[:7])
        assert snapshot.predict(*asked).scores == pytest.approx(made.scores(*asked).numpy(), abs=1e-5)
        assert (snapshot.version, snapshot.period) == (4, 3)

    async def test_where_torch_errs_too_the_version_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = Source(tmp_path)
        model = serving_of(source)
        source.publish(1, at=time.time())
        await model.refresh()
        source.publish(2, at=time.time())
        monkeypatch.setattr(snapshot_module, "compiled_forward", off_by(1e-3))
        monkeypatch.setattr("service.serving.forward.reference.reference_forward", off_by(-1e-3))
        with pytest.raises(WrongScores, match="model version 2"):
            await model.refresh()
        assert model.current().version == 1
        assert find(tmp_path, digest(2), SUFFIX) is not None  # the file is as it was written
        monkeypatch.undo()
        await model.refresh()
        assert model.current().version == 2
        assert source.fetched == [digest(1), digest(2)]

    def test_a_small_difference_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        random_model(22).snapshot(tmp_path)
        monkeypatch.setattr(snapshot_module, "compiled_forward", off_by(5e-6))
        monkeypatch.setattr("service.serving.forward.reference.reference_forward", None)
        load_snapshot(tmp_path / "snapshot.safetensors", 1, 1)


class TestTheOldOne:
    async def test_is_loaded_and_released_in_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, int, int]] = []

        def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*arguments: Any, **options: Any) -> Any:
                result = function(*arguments, **options)
                version = getattr(arguments[0], "version", arguments[1])
                calls.append((name, version, threading.get_ident()))
                return result

            return noted

        monkeypatch.setattr(Snapshot, "release_pages", noting("release", Snapshot.release_pages))
        monkeypatch.setattr(swap, "load_snapshot", noting("load", load_snapshot))
        source = Source(tmp_path)
        model = serving_of(source)
        for version in (1, 2):
            source.publish(version, at=time.time())
            await model.refresh()
        await eventually(lambda: len(calls) == 3)
        assert [(name, version) for name, version, _ in calls] == [("load", 1), ("load", 2), ("release", 1)]
        assert threading.get_ident() not in {thread for *_, thread in calls}

    async def test_goes_on_answering_who_has_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also in a thread, while its pages are released."""
        made = random_model(23, items=[f"i{n}" for n in range(1, 30_001)])
        source = Source(tmp_path, content=made.encoded())
        model = serving_of(source)
        source.publish(1, at=time.time())
        await model.refresh()
        taken = model.current()
        items = made.items[::30]
        before = taken.predict("u1", items, ITEMS[:30])
        stop = threading.Event()

        def ask() -> int:
            asked = 0
            while not stop.is_set():
                assert np.array_equal(taken.predict("u1", items, ITEMS[:30]).scores, before.scores)
                asked += 1
            return asked

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                source.publish(2, at=time.time())
                await model.refresh()
                for _ in range(20):
                    await asyncio.to_thread(taken.release_pages)
            finally:
                stop.set()
            assert asking.result() > 0
        assert (model.current().version, taken.version) == (2, 1)

    async def test_is_gone_when_nobody_has_it_any_more(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        released, release_pages = [], Snapshot.release_pages

        def noted(snapshot: Snapshot, kept: Collection[Pages]) -> None:
            release_pages(snapshot, kept)
            released.append(snapshot.version)

        monkeypatch.setattr(Snapshot, "release_pages", noted)
        source = Source(tmp_path)
        model = serving_of(source)
        source.publish(1, at=time.time())
        await model.refresh()
        taken = [model.current()]
        old = weakref.ref(taken[0])
        source.publish(2, at=time.time())
        await model.refresh()
        await eventually(lambda: released == [1])
        assert old() is taken[0]
        assert mapped() == {digest(1), digest(2)}
        taken.clear()
        gc.collect()
        assert old() is None
        assert mapped() == {digest(2)}


def mapped() -> set[str]:
    """Digests of the artifacts of this module that the process maps."""
    return set(re.findall(r"/memfd:asmg:(digest\d+)", Path("/proc/self/maps").read_text()))
