"""Model versions, swaps and the way back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.errors import ArtifactMissing, NotReady
from service.serving.snapshot import prior_snapshot
from service.serving.swap import Champion, ServingModel
from service.settings import Settings
from service.storage.database import Database
from tests.service.api_support import Api, eventually, publish, running_app

QUESTION = {"user_id": "u", "items": ["a"]}


async def served(api: Api) -> tuple[int, float]:
    answer = (await api.client.post("/predict", json=QUESTION)).json()
    return answer["model_version"], round(answer["scores"][0], 3)


async def roll(api: Api, version: int, sequence: str = "keep") -> Any:
    body = {"to_version": version, "sequence": sequence, "reason": "worse clicks"}
    response = await api.client.post("/admin/rollback", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_published_version_takes_over_and_rolls_back(api: Api, database: Database) -> None:
    assert await served(api) == (0, 0.25)
    active_from = await publish(database, api.parts.artifacts, 1, 0.125, lead_seconds=0.3)
    await api.parts.notices.publish_swap()
    await asyncio.sleep(max(0, active_from.timestamp() - time.time()))
    assert await served(api) == (1, 0.125)

    back = await roll(api, 0)
    assert time.time() >= datetime.fromisoformat(back["active_from"]).timestamp()
    assert {name: back[name] for name in ("from_version", "to_version", "sequence", "reason")} == {
        "from_version": 1,
        "to_version": 0,
        "sequence": "keep",
        "reason": "worse clicks",
    }
    assert await served(api) == (0, 0.25)
    forward = await roll(api, 1)
    assert (forward["from_version"], forward["to_version"]) == (0, 1)
    assert await served(api) == (1, 0.125)


async def test_only_excise_moves_the_head(api: Api, database: Database) -> None:
    await publish(database, api.parts.artifacts, 1, 0.125, lead_seconds=0)

    async def aliases() -> dict[str, int]:
        models = (await api.client.get("/admin/models")).json()["models"]
        return {name: model["version"] for model in models for name in ("champion", "head") if model[name]}

    await roll(api, 0)
    assert await aliases() == {"champion": 0, "head": 1}
    await roll(api, 0, "excise")
    assert await aliases() == {"champion": 0, "head": 0}
    async with database.read() as session:
        entries = [entry for entry in await session.audit.list(10) if entry.action == "rollback"]
    assert [entry.detail["sequence"] for entry in entries] == ["excise", "keep"]
    assert entries[1].detail == {"from_version": 1, "to_version": 0, "sequence": "keep", "reason": "worse clicks"}


async def test_models_are_listed_with_their_lineage(api: Api, database: Database) -> None:
    for version in (1, 2, 3):
        await publish(database, api.parts.artifacts, version, 0.1, lead_seconds=0)
    page = (await api.client.get("/admin/models", params={"limit": 3})).json()
    assert ([model["version"] for model in page["models"]], page["next"]) == ([3, 2, 1], 1)
    last = (await api.client.get("/admin/models", params={"before": page["next"]})).json()
    assert ([model["version"] for model in last["models"]], last["next"]) == ([0], None)
    prior = last["models"][0]
    assert (prior["kind"], prior["period"], prior["parent_version"], prior["champion"]) == ("prior", 0, None, False)
    detail = (await api.client.get("/admin/models/3")).json()
    assert detail == page["models"][0] | {"state": {"generator": detail["digest"]}}
    assert (detail["parent_version"], detail["champion"], detail["head"]) == (2, True, True)
    assert (detail["scores"], detail["gate"]) == ({"generated": {"auc": 0.6}}, {"decision": "generated"})


async def test_two_processes_make_one_prior(settings: Settings, database: Database, tmp_path: Path) -> None:
    other = settings.model_copy(update={"prior_ctr": 0.75, "data_dir": tmp_path / "other"})
    async with running_app(settings) as first, running_app(other) as second:
        assert (await served(first))[1] == (await served(second))[1]
    async with database.read() as session:
        assert len(await session.models.list(10)) == 1


async def test_two_apps_never_go_back_while_one_version_after_the_other_takes_over(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    """A client that goes from one process to another sees versions move forward only, and each answer is of one."""
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    ctrs = {0: 0.25, 1: 0.1, 2: 0.2, 3: 0.3}
    async with running_app(settings) as first, running_app(other) as second:
        seen: list[tuple[int, float]] = []

        async def ask() -> None:
            while not seen or seen[-1][0] < 3:
                for api in (first, second):
                    seen.append(await served(api))

        asking = asyncio.create_task(ask())
        for version in (1, 2, 3):
            active_from = await publish(database, first.parts.artifacts, version, ctrs[version], lead_seconds=0.4)
            await first.parts.notices.publish_swap()
            await asyncio.sleep(max(0, active_from.timestamp() - time.time()))
        async with asyncio.timeout(5):
            await asking
    versions = [version for version, _ in seen]
    assert versions == sorted(versions)
    assert set(versions) == {0, 1, 2, 3}
    assert all(score == ctrs[version] for version, score in seen)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@dataclass
class Source:
    """A champion and artifacts that a test moves about."""

    folder: Path
    champion: Champion | None = None
    failing: bool = False
    fetched: list[str] = field(default_factory=list)

    def publish(self, version: int, *, at: float) -> None:
        moment = datetime.fromtimestamp(at, UTC)
        self.champion = Champion(version, version, f"digest{version}", moment)

    async def fetch_champion(self) -> Champion:
        if self.champion is None:
            raise NotReady("no model yet")
        return self.champion

    async def fetch_file(self, digest: str, folder: Path) -> Path:
        self.fetched.append(digest)
        if self.failing:
            raise ArtifactMissing(digest)
        return write(folder / f"{digest}.safetensors", prior_snapshot(0.5))


async def silence() -> AsyncIterator[None]:
    await asyncio.sleep(3600)
    yield None


def serving_of(source: Source, **changes: Any) -> ServingModel:
    values: dict[str, Any] = {
        "fetch_champion": source.fetch_champion,
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
    monkeypatch.setattr("service.serving.swap.time", clock)
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
    """A rollback before the next version took over: that version is never served."""
    source = Source(tmp_path)
    model = serving_of(source)
    source.publish(1, at=clock.now)
    await model.refresh()
    source.publish(2, at=clock.now + 1)
    await model.refresh()
    source.publish(1, at=clock.now + 2)
    await model.refresh()
    for _ in range(4):
        clock.now += 0.9
        assert model.current().version == 1
    assert source.fetched == ["digest1", "digest2"]  # what is loaded is not loaded again


async def test_two_versions_in_quick_succession_both_get_their_turn(tmp_path: Path, clock: Clock) -> None:
    """One process hears of version 3 before, another after version 2 took over; a client of both never goes back."""
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
    model = serving_of(source)
    async with following(model):
        await asyncio.sleep(0.05)  # there is no champion yet, and that is survived too
        source.publish(1, at=time.time())
        await model.wait_loaded()
        source.failing = True
        source.publish(2, at=time.time())
        while source.fetched.count("digest2") < 2:
            await asyncio.sleep(0.01)
            assert model.current().version == 1
        source.failing = False
        await eventually(lambda: model.current().version == 2)
    assert "could not load the champion (attempt 1): there is no artifact digest2" in caplog.text


async def test_a_broken_artifact_is_never_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(tmp_path)

    async def fetch_broken(digest: str, folder: Path) -> Path:
        path = await source.fetch_file(digest, folder)
        if digest == "digest2":
            path.write_bytes(b"not an artifact")
        return path

    model = serving_of(source, fetch_file=fetch_broken)
    source.publish(1, at=time.time())
    async with following(model):
        await model.wait_loaded()
        source.publish(2, at=time.time())
        await eventually(lambda: source.fetched.count("digest2") == 2)
        assert model.current().version == 1
        source.publish(3, at=time.time())
        await eventually(lambda: model.current().version == 3)


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
    assert sorted(path.stem for path in source.folder.iterdir()) == ["digest3", "digest4", "digest5"]
    assert model.current().version == 5
