"""Fields are added and dropped while the service runs: predictions continue, and so does the model."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from asmg.checkpoint import Checkpoint
from asmg.datasets.synthetic import DriftPeriod
from asmg.features import Field, Schema
from asmg.field_columns import SUMS
from asmg.models import EmbeddingMLPConfig
from asmg.statistics import StatisticsConfig
from asmg.updaters import build_updater
from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind, EventBatch, FeatureVersion, ModelVersion
from service.storage.redis.notices import Notices
from service.use_cases.catalogue import put_items
from service.use_cases.ingest import ingest
from tests.service.api_support import Api, eventually, running_app, settings_for
from tests.service.layers_support import stored_period, whole_parts
from tests.service.update_doubles import working
from tests.service.update_support import Bench, bench, interactions, moment, open_snapshot, periods, single_thread

DEVICE = Field("device", "context", "categorical")
PAGE = Field("page", "context", "numeric")
CAMPAIGN = Field("campaign", "context", "multi", most=2)
PRICE = Field("price", "item", "numeric")
BEFORE, AFTER = Schema((PAGE, DEVICE, PRICE)), Schema((CAMPAIGN, DEVICE, PRICE), "Asia/Tokyo")

EVERYWHERE: dict[str, Any] = {"device": "phone"}
"""What every process takes, whatever its schema."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def file_of(folder: Path, schema: Schema) -> Path:
    file = folder / f"features-{abs(hash(schema.to_toml()))}.toml"
    file.write_text(schema.to_toml(), encoding="utf-8")
    return file


def contexts(period: DriftPeriod, schema: Schema) -> list[dict[str, Any]]:
    """Of each interaction. All schemas have the same but for what they do not know."""
    found = []
    for n, label in enumerate(period.labels.tolist()):
        random = Random(f"{period.number} {n}")
        sent = {
            "device": random.choice(["phone", "tv"]),
            "page": random.gauss(3 + label, 1) if n % 5 else None,
            "campaign": random.sample(["spring", "sale", "none"], 1 + label),
        }
        found.append({name: value for name, value in sent.items() if name in schema.declared("context")})
    return found


async def log(b: Bench, period: DriftPeriod, schema: Schema) -> None:
    """A period with contexts, closed."""
    prices = [
        FeatureVersion(item, moment(int(period.timestamps_ms[0]) - 1), {"price": 1.5 * len(item) + n})
        for n, item in enumerate(period.new_items)
    ]
    await put_items(b.database, period.new_items, prices)
    given = zip(interactions(period), contexts(period, schema), strict=True)
    events = [replace(event, context=json.dumps(context)) for event, context in given]
    await ingest(b.database, b.context.histories, EventBatch.of(events))
    await b.close(period.number)


@dataclass
class Traffic:
    """Predictions that never end, of the same question; any process that runs is asked."""

    apps: list[Api] = field(default_factory=list)
    question: dict[str, Any] = field(default_factory=dict)
    answers: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)

    async def flow(self) -> None:
        for turn in range(10**9):
            self.answers.append(await self.ask(self.apps[turn % len(self.apps)], context=EVERYWHERE))
            await asyncio.sleep(0.01)

    async def ask(self, api: Api, **more: Any) -> tuple[int, tuple[float, ...]]:
        answer = await api.client.post("/predict", json=self.question | more)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        return said["model_version"], tuple(said["scores"])

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.flow())
        try:
            yield
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def version_of(database: Database, number: int) -> ModelVersion:
    async with database.read() as session:
        found = await session.models.get(number)
    assert found is not None
    return found


async def parts_of(b: Bench, number: int) -> dict[str, Checkpoint]:
    return await whole_parts(b.context.artifacts, (await version_of(b.database, number)).state["parts"])


async def values_of(database: Database) -> dict[str, int]:
    async with database.read() as session:
        ids, rows = await session.entities.rows(EntityKind.FIELD)
    return dict(zip(ids, rows.tolist(), strict=True))


async def test_on_a_running_service(
    copy: Callable[..., str], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, first, second = copy(), *periods(2)
    settings = [
        settings_for(dsn, redis_url, tmp_path, features=file_of(tmp_path, schema), swap_lead_seconds=0.0)
        for schema in (BEFORE, AFTER)
    ]
    of_worker: dict[str, Any] = {"swap_lead_seconds": 0.0, "history_length": 30}
    traffic = Traffic(question={"user_id": first.user_ids[0], "items": sorted(first.new_items)[:8]})
    async with bench(dsn, redis_url, tmp_path, features=settings[0].features) as b, AsyncExitStack() as stack:
        await log(b, first, BEFORE)
        processes = [AsyncExitStack() for _ in range(2)]
        for process in processes:
            stack.push_async_callback(process.aclose)
            traffic.apps.append(await process.enter_async_context(running_app(settings[0])))

        async def everywhere(version: int) -> None:
            await eventually(
                lambda: all(api.state.serving.current().version == version for api in traffic.apps), seconds=60
            )

        async with working(dsn, redis_url, tmp_path, monkeypatch, features=settings[0].features, **of_worker):
            await everywhere(1)
        assert (await traffic.apps[0].client.get("/admin/models/1")).json()["state"][
            "serving_schema"
        ] == BEFORE.to_json()
        async with traffic.flowing():
            # The processes are started anew with the other schema, one after the other, the worker last.
            said = [await traffic.ask(api, context=EVERYWHERE | {"page": 4.5}) for api in traffic.apps]
            assert said[0] == said[1]
            for n, process in enumerate(processes):
                old = traffic.apps.pop(0)
                await asyncio.sleep(0.05)
                await process.aclose()
                traffic.apps.append(await processes[n].enter_async_context(running_app(settings[1])))
                await eventually(lambda: traffic.apps[-1].state.serving.current().version == 1)
                assert old not in traffic.apps
            # What is there serves on by the schema that it was learned with; the processes check by the new one.
            api = traffic.apps[0]
            refused = await api.client.post("/predict", json=traffic.question | {"context": {"page": 4.5}})
            assert refused.status_code == 422 and "page" in refused.text
            plain = await traffic.ask(api, context=EVERYWHERE)
            assert await traffic.ask(api, context=EVERYWHERE | {"campaign": ["sale"]}) == plain
            assert {said for said in traffic.answers if said[0] == 1} == {plain}
            b = Bench(settings[1], b.database, b.redis)
            await log(b, second, AFTER)
            before = len(traffic.answers)
            async with working(dsn, redis_url, tmp_path, monkeypatch, features=settings[1].features, **of_worker):
                await everywhere(2)
            assert len(traffic.answers) > before + 5
            with_campaign = await traffic.ask(api, context=EVERYWHERE | {"campaign": ["sale"]})
            now = await traffic.ask(api, context=EVERYWHERE)
        assert {version for version, _ in traffic.answers} == {1, 2}
        assert (await api.client.get("/admin/models/2")).json()["state"]["serving_schema"] == AFTER.to_json()
        await goes_on(b, (BEFORE, AFTER))
        assert now[1] != plain[1] and with_campaign[1] != now[1]
        await by_own_schema(b, tmp_path)


async def goes_on(b: Bench, schemas: tuple[Schema, Schema]) -> None:
    """Version 2 is version 1, one period later; nothing began anew."""
    one, two = await version_of(b.database, 1), await version_of(b.database, 2)
    assert (two.parent_version, two.period) == (1, 2)
    assert [v.state["serving_schema"] for v in (one, two)] == [schema.to_json() for schema in schemas]
    parts = [await parts_of(b, number) for number in (1, 2)]
    assert [p["optimizer"].meta["periods"] for p in parts] == [1, 2]
    assert parts[1]["optimizer"].meta["step"] > parts[0]["optimizer"].meta["step"]
    assert parts[1]["updater"].meta["models"] == 2
    old, new = (p["base"].tensors for p in parts)
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        grown = new[name][: len(tensor)]
        assert grown.shape[1:] == tensor.shape[1:] and len(new[name]) >= len(tensor)
        # Of what a model is made of, a pass over a period changes some; a model from scratch would be another.
        likeness = torch.nn.functional.cosine_similarity(grown.flatten(), tensor.flatten(), dim=0)
        assert likeness > 0.7, (name, likeness)
    values = await values_of(b.database)
    known = {name.split("=")[0] for name, row in values.items() if row < len(old["field"])}
    assert known == {"hour", "weekday", "page", "device", "price"}
    assert {name.split("=")[0] for name, row in values.items() if row >= len(old["field"])} >= {"campaign"}
    # The rows of what was dropped are where they were; what is new has rows of its own, and learned something.
    moved = (new["field"][: len(old["field"])] - old["field"]).abs().max(1).values
    assert moved[values["device=tv"]] > 1e-3
    fresh = [row for name, row in values.items() if name.startswith("campaign=") and name != "campaign="]
    assert (new["field"][fresh] - new["field"][0]).abs().max() > 1e-3


async def snapshot_of(b: Bench, number: int, folder: Path) -> Snapshot:
    return await open_snapshot(b.context.artifacts, await version_of(b.database, number), folder / str(number))


async def by_own_schema(b: Bench, folder: Path) -> None:
    """A snapshot has the schema in its header."""
    for number, schema in ((1, BEFORE), (2, AFTER)):
        snapshot = await snapshot_of(b, number, folder)
        assert snapshot.fields is not None and snapshot.fields.schema == schema
        snapshot.check()


async def test_a_score_moves_by_what_is_learned(copy: Callable[..., str], redis_url: str, tmp_path: Path) -> None:
    """If the new field is never sent and the dropped one no longer, versions of the new and the old schema give the
    same scores, except for a small part of what the period taught both.
    """
    first, second = periods(2)
    common = Schema((DEVICE, PRICE))
    said = []
    for schema in (BEFORE, Schema((CAMPAIGN, DEVICE, PRICE))):
        dsn = copy()
        async with bench(dsn, redis_url, tmp_path, features=file_of(tmp_path, BEFORE)) as b:
            await log(b, first, BEFORE)
            await b.update(1)
        async with bench(dsn, redis_url, tmp_path, features=file_of(tmp_path, schema)) as b:
            await log(b, second, common)
            await b.update(2)
            for number in (1, 2):
                snapshot = await snapshot_of(b, number, tmp_path)
                assert snapshot.fields is not None
                values = snapshot.fields.read({"device": "tv"}, {}, timestamp_ms=int(second.timestamps_ms[-1]))
                users, items = sorted(set(first.user_ids)), sorted(first.new_items)
                said.append(np.array([snapshot.predict(user, items, [], values=values).scores for user in users]))
    kept_one, kept_two, changed_one, changed_two = said
    assert np.array_equal(kept_one, changed_one)
    learned, apart = np.abs(kept_two - kept_one).mean(), np.abs(changed_two - kept_two).mean()
    assert 0 < apart < learned / 3


async def test_an_update_that_is_under_way_begins_again(
    copy: Callable[..., str], redis_url: str, tmp_path: Path
) -> None:
    """Intermediate results made with the earlier schema are not used, as with another method."""

    class Stopped(Exception):
        pass

    class Stopping(Notices):
        @override
        async def publish_progress(self, period: int, progress: Any) -> None:
            if progress["stage"] == "gate":
                raise Stopped

    dsn, first = copy(), periods(1)[0]
    for schema, stops in ((BEFORE, True), (AFTER, True), (AFTER, False)):
        async with bench(dsn, redis_url, tmp_path, features=file_of(tmp_path, schema)) as b:
            if schema is BEFORE:
                await log(b, first, Schema((PAGE, DEVICE, CAMPAIGN)))
            if stops:
                with pytest.raises(Stopped):
                    await b.update(1, notices=Stopping(b.redis))
            else:
                assert await b.update(1) == 1
            async with b.database.read() as session:
                stage = await session.stages.get(1, "prepare")
            assert stage is not None
            data = await stored_period(b.context, stage.result["data"])
            assert data.fields is not None
            of = [SUMS[n] for n in data.fields.sums.tolist()]
            assert of == [one.of for one in schema.all for _ in range(one.most)]


@pytest.mark.parametrize("method", ["asmg-gru-multi", "iu"])
async def test_a_state_from_before_there_were_fields_goes_on(
    copy: Callable[..., str],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """The state that an upgrade finds. The base model is the same and gets the fields; the old version serves on."""
    dsn, (first, second, third) = copy(), periods(3)
    async with bench(dsn, redis_url, tmp_path, updater=method) as b:
        now = b.context.updater
        shape = now.model.config
        assert isinstance(shape, EmbeddingMLPConfig) and shape.fields
        before = build_updater(method, replace(shape, fields=False), statistics=StatisticsConfig())
        await b.log(first)
        await b.update(1, updater=before)
        assert (await snapshot_of(b, 1, tmp_path)).fields is None
        assert "serving_schema" not in (await version_of(b.database, 1)).state
        old = await parts_of(b, 1)
        assert "fields" not in old["updater"].meta["model"]
        await log(b, second, BEFORE)
        await log(b, third, BEFORE)
        file = file_of(tmp_path, BEFORE)
        async with working(dsn, redis_url, tmp_path, monkeypatch, updater=method, features=file) as database:
            async with asyncio.timeout(120):
                while True:
                    if await version_at(database, 3) is not None:
                        break
                    await asyncio.sleep(0.05)
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert f"period 2: {method} goes on from the base model that {method} left" in said
        assert [line for line in said if "made before it had fields" in line] == [
            "period 2: that base model was made before it had fields, and gets them"
        ]
        new = await parts_of(b, 2)
        assert [parts["optimizer"].meta["periods"] for parts in (old, new, await parts_of(b, 3))] == [1, 2, 3]
        for name in ("user", "item"):
            one, two = old["base"].tensors[name], new["base"].tensors[name][: len(old["base"].tensors[name])]
            assert torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.7
        # It was asked about period 2 before it learned it: what version 1 said.
        async with b.database.read() as session:
            found = {e.model: e for e in await session.evaluations.list(2, 2)}
        assert found["incremental"].logloss == pytest.approx(found["baseline"].logloss, abs=1e-6)
        assert found["incremental"].auc == pytest.approx(found["baseline"].auc, abs=1e-4)
        snapshot = await snapshot_of(b, 2, tmp_path)
        assert snapshot.fields is not None and snapshot.fields.schema == BEFORE
        values = [
            snapshot.fields.read({"device": device, "page": page}, {}, timestamp_ms=int(third.timestamps_ms[0]))
            for device, page in (("tv", 4.5), ("tv", 2.5), ("phone", 4.5))
        ]
        scores = [snapshot.predict("u1", sorted(first.new_items), [], values=v).scores.tolist() for v in values]
        assert scores[0] != scores[1] and scores[0] != scores[2]


async def version_at(database: Database, period: int) -> int | None:
    async with database.read() as session:
        found = await session.periods.get(period)
    return None if found is None else found.version
