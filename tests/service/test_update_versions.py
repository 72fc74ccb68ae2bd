"""A version's parts, lineage and scores follow only from the periods up to its own."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from asmg.batch import PeriodData
from asmg.progressive import stage_rng
from asmg.updaters.asmg import Asmg, AsmgConfig
from asmg.updaters.with_statistics import WithStatistics
from service.files import find
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.postgres.repositories import AliasName, EventBatch
from tests.service.layers_support import (
    served_parameters,
    stored_period,
    whole_parts,
    whole_statistics,
    with_all_items,
)
from tests.service.predictions_by_hand import clicks_by_hand
from tests.service.update_doubles import Meddled
from tests.service.update_support import (
    MODELS,
    SEED,
    STAGES,
    Bench,
    bench,
    interactions,
    named,
    parts_of,
    periods,
    prepare_period,
    stored,
    updater_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


async def test_four_periods(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    async with bench(postgres_dsn, redis_url, tmp_path, swap_lead_seconds=30) as b:
        for period in periods(4, seed=SEED):
            await b.log(period)
            assert await b.update(period.number) == period.number
            found = await b.outcome()
            number = period.number
            assert found["aliases"] == {"champion": number, "head": number, "baseline": 1}
            assert found["periods"][number] == ("updated", number, 0, None)
            assert found["periods"][number + 1] == ("open", None, 0, None)
            await check_stages(b, number)
            assert named(found) <= await stored(b.database)
    versions = found["versions"]
    assert list(versions) == [4, 3, 2, 1, 0]
    assert [versions[n]["parent"] for n in range(5)] == [None, 0, 1, 2, 3]
    assert [versions[n]["period"] for n in range(5)] == [0, 1, 2, 3, 4]
    assert len({versions[n]["serving"] for n in range(5)}) == 5
    # The api processes of this host find the last ones as files.
    newest = [digest for n in (2, 3, 4) for digest in versions[n]["state"]["snapshot"]]
    files = {find(b.settings.serving_dir, digest, FILE_SUFFIX) for digest in newest}
    assert set(b.settings.serving_dir.iterdir()) == files
    always = {
        "updater",
        "base",
        "optimizer",
        "generator",
        "generator_optimizer",
        "hidden",
        "generated",
        "statistics",
    }
    # A window of three models: the newest is `base`, and the logs after all of them but it are kept.
    full = {"model.1", "model.2", "data.0", "data.1"}
    more = [set(), {"model.1", "data.0"}, full, full]
    for number, further in enumerate(more, start=1):
        assert set(versions[number]["state"]["parts"]) == always | further
    for number in (2, 3, 4):
        parts, before = (versions[n]["state"]["parts"] for n in (number, number - 1))
        assert parts["model.1"] == before["base"]
        if number > 2:
            assert parts["data.1"] == before["data.0"]
    for number in range(1, 5):
        state = versions[number]["state"]
        if versions[number]["kind"] != "previous":
            assert state["serving_statistics"] == state["parts"]["statistics"]
    # Who was scored on what: nobody on the first log, and "previous" is the one served before the champion.
    assert [(e.period, e.model, e.version) for e in found["evaluations"]] == [
        (2, "baseline", 1),
        (2, "generated", 1),
        (2, "incremental", 1),
        *((3, name, version) for name, version in zip(MODELS, (1, 2, 2, 1), strict=True)),
        *((4, name, version) for name, version in zip(MODELS, (1, 3, 3, 2), strict=True)),
    ]
    for number in range(1, 5):
        at = {e.model: e for e in found["evaluations"] if e.period == number}
        assert {name: values["logloss"] for name, values in versions[number]["scores"].items()} == {
            name: e.logloss for name, e in at.items()
        }
        assert versions[number]["gate"]["decision"] == versions[number]["kind"]


async def check_stages(b: Bench, number: int) -> None:
    async with b.database.read() as session:
        stages = await session.stages.list(number)
        champion = await session.models.alias(AliasName.CHAMPION)
        audit = [e for e in await session.audit.list(10) if e.action == "publish"]
        period = await session.periods.get(number)
        events = await session.interactions.count(number)
    assert tuple(stage.stage for stage in stages) == STAGES
    assert {stage.status for stage in stages} == {"done"}
    assert all(stage.seconds is not None and stage.seconds > 0 for stage in stages)
    assert champion is not None and period is not None and period.finished_at is not None
    assert champion.active_from - champion.updated_at == pytest.approx(timedelta(seconds=30), abs=timedelta(0, 1))
    assert audit[0].detail["version"] == audit[0].detail["period"] == number
    assert (audit[0].actor, audit[0].reason) == ("worker", champion.reason)
    assert period.events == events == 300


async def test_scores_are_those_of_the_models_before(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    # A generator that is trusted from the first, so that its model is another than the incremental one.
    shape = updater_of("asmg-gru-multi").model.config
    updater = WithStatistics(Asmg(shape, AsmgConfig(blends=(1.0,))))
    async with bench(postgres_dsn, redis_url, tmp_path) as b:
        for period in periods(3, seed=SEED):
            await b.log(period)
            if period.number == 3:
                data = with_all_items((await prepare_period(b.database, 3, 30)).data)
                before = await b.outcome()
            await b.update(period.number, updater=updater)
        found = {e.model: e for e in (await b.outcome())["evaluations"] if e.period == 3}
        artifacts, one = b.context.artifacts, before["versions"][1]["state"]
        two = await parts_of(b, before, 2)
        served = (await served_parameters(artifacts, one), one["serving_statistics"])
        counted = before["versions"][2]["state"]["parts"]["statistics"]
        models = {
            "generated": (two["generated"], counted),
            "incremental": (two["base"], counted),
            "previous": served,
            "baseline": served,
        }
        assert set(models) == set(found) == set(MODELS)
        assert counted != one["serving_statistics"]
        label = data.label.numpy()
        for name, (params, digests) in models.items():
            numeric = (await whole_statistics(artifacts, digests)).inputs(data).double().numpy()
            guess = clicks_by_hand({n: t.double().numpy() for n, t in params.items()}, data, numeric)
            assert found[name].events == len(label) == 300
            assert found[name].logloss == pytest.approx(log_loss(label, guess), rel=1e-5)
            assert found[name].auc == pytest.approx(roc_auc_score(label, guess), abs=1e-4)
            assert found[name].calibration == pytest.approx(guess.sum() / label.sum(), rel=1e-5)
    assert len({e.logloss for e in found.values()}) == 3  # "previous" is the baseline here


async def test_a_version_knows_nothing_of_the_next_period(
    copy: Callable[..., str], redis_url: str, tmp_path: Path
) -> None:
    first, second, other = *periods(2, seed=SEED), periods(2, seed=99)[1]
    outcomes = []
    # The log of period 2 is there already, or another one is, when the model learns period 1.
    for following in (None, second, other):
        async with bench(copy(), redis_url, tmp_path) as b:
            await b.log(first)
            if following is not None:
                late = replace(following, new_items={}, timestamps_ms=first.timestamps_ms)
                async with b.database.unit_of_work() as work:
                    await work.interactions.insert(2, EventBatch.of(interactions(late)))
                    await work.commit()
            await b.update(1)
            outcomes.append([await b.outcome()])
            if following is not None:
                await b.close(2)
                await b.update(2)
                outcomes[-1].append(await b.outcome())
    one = [made[0]["versions"][1] for made in outcomes]
    assert one[0] == one[1] == one[2]
    two = [made[1]["versions"][2]["state"]["parts"] for made in outcomes[1:]]
    assert two[0]["base"] != two[1]["base"]


async def test_the_baseline_is_a_trained_model(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the gate lets no version through, the prior is served; the prior is never a baseline."""
    first, second, third = periods(3, seed=SEED)
    async with bench(postgres_dsn, redis_url, tmp_path) as b:
        with monkeypatch.context() as patch:
            patch.setattr("service.use_cases.update.gate.CALIBRATION_RANGE", (100.0, 200.0))
            await b.log(first)
            await b.update(1)
        found = await b.outcome()
        assert found["versions"][1]["kind"] == "previous"
        assert found["versions"][1]["serving"] == found["versions"][0]["serving"]
        assert found["aliases"] == {"champion": 1, "head": 1, "baseline": None}
        for period in (second, third):
            await b.log(period)
            await b.update(period.number)
        found = await b.outcome()
        assert found["versions"][2]["kind"] == "generated"
        assert found["aliases"] == {"champion": 3, "head": 3, "baseline": 2}
        assert {e.version for e in found["evaluations"] if (e.period, e.model) == (3, "baseline")} == {2}


async def test_another_method_goes_on_from_the_base_model(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """ASMG_UPDATER was changed between two periods, and once in the middle of an update."""

    def stopped(stage: str, _: PeriodData) -> None:
        if stage == "generate":
            raise SystemExit("killed")

    log = list(periods(4, seed=SEED))
    async with bench(postgres_dsn, redis_url, tmp_path, updater="asmg-gru-multi") as b:
        for period in log[:2]:
            await b.log(period)
            await b.update(period.number)
        await b.log(log[2])
        with pytest.raises(SystemExit):
            await b.update(3, updater=Meddled(b.context.updater, stopped))
        before = await b.outcome()
    base = before["versions"][2]["state"]["parts"]["base"]
    async with bench(postgres_dsn, redis_url, tmp_path, updater="iu") as b:
        await b.update(3)
        found = await b.outcome()
        artifacts = b.context.artifacts
        data = await stored_period(b.context, await data_digest(b, 3))
        iu = updater_of("iu")
        parts = await whole_parts(artifacts, found["versions"][2]["state"]["parts"])
        state = iu.adopted(
            {n: parts[n] for n in ("base", "optimizer", "statistics")}, rng=stage_rng(SEED, 3, "adopted")
        )
        for stage in iu.stages:
            state = iu.run_stage(stage, state, data, rng=stage_rng(b.settings.seed, 3, stage))
        made = await whole_parts(artifacts, found["versions"][3]["state"]["parts"])
        now = made["base"].tensors
        assert all(torch.equal(now[name], p) for name, p in iu.base_of(state).params.items())
        counted = made["statistics"]
        assert counted.meta["periods"] == 3  # those that the other method had counted, and this one
        expected = iu.statistics_of(state)
        assert expected is not None
        for name, tensor in expected.dump().tensors.items():
            assert torch.equal(counted.tensors[name], tensor), name
    assert found["versions"][2]["state"]["parts"]["base"] == base
    assert set(found["versions"][3]["state"]["parts"]) == {"updater", "base", "optimizer", "statistics"}


async def data_digest(b: Bench, number: int) -> str:
    async with b.database.read() as session:
        prepared = await session.stages.get(number, "prepare")
    assert prepared is not None
    return str(prepared.result["data"])
