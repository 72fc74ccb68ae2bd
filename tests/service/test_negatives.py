"""Logs with clicks only: negatives are sampled when a period is resolved, and predictions are calibrated."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sqlalchemy import text

from service.limits import MAX_ID_LENGTH
from service.storage.postgres.repositories import EventBatch, Interaction
from service.use_cases.ingest import ingest
from service.use_cases.update.negatives import Sampling, logit_correction
from tests.conftest import Servers, database_dsn
from tests.service.api_support import running_app
from tests.service.update_support import Bench, bench, copies, snapshot_of

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
Make = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
async def make(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], redis_url: str, tmp_path: Path
) -> AsyncIterator[Make]:
    """Benches on databases of their own."""
    async with AsyncExitStack() as stack:
        copy = stack.enter_context(copies(servers, migrated_template, database_numbers))

        async def bench_with(**changes: Any) -> Bench:
            dsn = database_dsn(servers, copy())
            return await stack.enter_async_context(bench(dsn, redis_url, tmp_path, swap_lead_seconds=0, **changes))

        yield bench_with


def clicks(count: int, *, users: int = 7, items: int = 12, start: int = 0) -> list[Interaction]:
    """Of user n % users on item n % items, several of them at one moment."""
    return [
        Interaction(f"e{n:05}", f"u{n % users}", f"i{n % items:02}", 1, NOON + timedelta(seconds=n // 3))
        for n in range(start, start + count)
    ]


async def close(b: Bench, number: int, events: list[Interaction]) -> None:
    await ingest(b.database, b.context.histories, EventBatch.of(events))
    await b.close(number)


async def rows(b: Bench, number: int) -> list[Any]:
    """The log of a period in its order."""
    async with b.database.read() as session:
        query = (
            "SELECT event_id, user_id, item_id, label, occurred_at, sampled FROM interactions WHERE period = :period"
        )
        query += " ORDER BY occurred_at, event_id"
        return list((await session.connection.execute(text(query), {"period": number})).all())


async def sampling(b: Bench, number: int) -> Any:
    async with b.database.read() as session:
        period = await session.periods.get(number)
    assert period is not None and period.labels is not None
    return period.labels.get("sampling")


class TestSampling:
    async def test_each_positive_is_followed_by_its_negatives(self, make: Make) -> None:
        b = await make(negatives_per_positive=3)
        await close(b, 1, clicks(60))
        await b.update(1)
        log = await rows(b, 1)
        assert len(log) == 240
        clicked = {(row.user_id, row.item_id) for row in log if row.label}
        for at in range(0, 240, 4):
            positive, *negatives = log[at : at + 4]
            assert (positive.label, positive.sampled) == (1, False)
            for k, negative in enumerate(negatives, start=1):
                assert negative.event_id == f"{positive.event_id}~sampled{k}"
                assert (negative.user_id, negative.occurred_at) == (positive.user_id, positive.occurred_at)
                assert (negative.label, negative.sampled) == (0, True)
                assert (negative.user_id, negative.item_id) not in clicked
        noted = await sampling(b, 1)
        assert noted | {"seed": 0} == {
            "method": "uniform over the items known, without those that the user clicked in the period",
            "seed": 0,
            "per_positive": 3,
            "items": 12,
            "positives": 60,
            "negatives": 180,
        }
        async with b.database.read() as session:
            period = await session.periods.get(1)
            ids = set((await session.connection.execute(text("SELECT event_id FROM event_ids"))).scalars())
        assert period is not None and period.events == 240
        assert {row.event_id for row in log if row.sampled} <= ids
        # Sent by a client, such an id is known.
        again = await ingest(
            b.database,
            b.context.histories,
            EventBatch.of([clicks(1)[0], Interaction(log[1].event_id, "u", "i", 1, NOON)]),
        )
        assert again.accepted == 0

    async def test_negatives_have_the_context_of_their_positive(self, make: Make) -> None:
        """Otherwise a missing context would reveal that nobody clicked. They have the same weight, so that the odds
        equal those of the counts by which predictions are corrected.
        """
        b = await make(negatives_per_positive=2)
        events = [
            replace(event, context=f'{{"device": "d{n % 4}"}}' if n % 4 else None, weight=2.5 if n % 3 else None)
            for n, event in enumerate(clicks(60))
        ]
        await close(b, 1, events)
        await b.update(1)
        async with b.database.read() as session:
            query = "SELECT event_id, context, weight FROM interactions WHERE period = 1"
            found = {row.event_id: (row.context, row.weight) for row in await session.connection.execute(text(query))}
        assert len(found) == 180
        for n, event in enumerate(events):
            expected = ({"device": f"d{n % 4}"} if n % 4 else None, 2.5 if n % 3 else None)
            assert [found[event.event_id + of] for of in ("", "~sampled1", "~sampled2")] == [expected] * 3

    async def test_the_same_log_gets_the_same_negatives(self, make: Make) -> None:
        """In any order of arrival; another seed or another period gives others."""
        outcomes, logs = [], []
        for seed, step in ((0, 1), (0, -1), (1, 1)):
            b = await make(negatives_per_positive=2, seed=seed, prior_ctr=0.02)
            for number in (1, 2):
                await close(b, number, clicks(80, users=11, items=30, start=100 * number)[::step])
                await b.update(number)
            outcomes.append(await b.outcome())
            logs.append([await rows(b, number) for number in (1, 2)])
        assert outcomes[0] == outcomes[1] and logs[0] == logs[1]
        drawn = [[row.item_id for row in log if row.sampled] for log in (*logs[0], *logs[2])]
        assert all(drawn[n] != drawn[m] for n in range(4) for m in range(n))

    async def test_items_of_before_are_drawn_and_those_clicked_are_not(self, make: Make) -> None:
        b = await make(negatives_per_positive=4)
        await close(b, 1, clicks(60, items=30))
        await b.update(1)
        # One has clicked all that there is, another nearly all.
        everything = [Interaction(f"all{n}", "greedy", f"i{n:02}", 1, NOON) for n in range(30)]
        nearly = [Interaction(f"most{n}", "picky", f"i{n:02}", 1, NOON) for n in range(29)]
        few = [Interaction("one", "modest", "i00", 1, NOON)]
        await close(b, 2, [*everything, *nearly, *few])
        await b.update(2)
        drawn = Counter((row.user_id, row.item_id) for row in await rows(b, 2) if row.sampled)
        assert {item for user, item in drawn if user == "picky"} == {"i29"}
        assert not [item for user, item in drawn if user in ("greedy",) or (user, item) == ("modest", "i00")]
        noted = await sampling(b, 2)
        assert (noted["items"], noted["positives"], noted["negatives"]) == (30, 60, 4 * 30)

    async def test_a_log_with_a_negative_is_left_alone(self, make: Make) -> None:
        b = await make(negatives_per_positive=2, prior_ctr=0.02)
        events = clicks(60)
        await close(b, 1, [*events, Interaction("no", "u1", "i01", 0, NOON)])
        await b.update(1)
        assert len(await rows(b, 1)) == 61
        assert await sampling(b, 1) is None
        assert "logit_correction" not in (await b.outcome())["versions"][1]["state"]

    async def test_it_is_off_by_default(self, make: Make) -> None:
        b = await make()
        await close(b, 1, clicks(60))
        await b.update(1)
        assert len(await rows(b, 1)) == 60
        assert await sampling(b, 1) is None

    async def test_long_ids_and_ids_that_are_taken(self, make: Make) -> None:
        """An event that a client stored under the id of a negative stays, and no id is longer than allowed."""
        b = await make(negatives_per_positive=1)
        long = "😀" * MAX_ID_LENGTH
        taken = Interaction("e~sampled1", "u2", "i01", 1, NOON)
        events = [Interaction("e", "u1", "i00", 1, NOON), Interaction(long, "u1", "i02", 1, NOON), taken]
        await close(b, 1, events)
        await b.update(1)
        log = {row.event_id: row for row in await rows(b, 1)}
        assert len(log) == 5
        assert not log["e~sampled1"].sampled
        assert sorted(len(row.event_id) for row in log.values() if row.sampled) == [len("e~sampled1~sampled1"), 64]
        assert (await sampling(b, 1))["negatives"] == 2


class TestCorrection:
    def test_by_hand(self) -> None:
        """4 negatives for each positive: the model learns odds of 1 : 4; those of a click rate of 2 % are 2 : 98."""
        noted = Sampling(seed=0, per_positive=4, items=9, positives=100, negatives=400)
        assert logit_correction(noted, 0.02) == pytest.approx(math.log(2 / 98) - math.log(1 / 4))
        learned = math.log(1 / 4)
        assert 1 / (1 + math.exp(-(learned + logit_correction(noted, 0.02)))) == pytest.approx(0.02)
        assert logit_correction(noted, 0.2) == pytest.approx(0)

    async def test_predictions_are_calibrated(self, make: Make, tmp_path: Path) -> None:
        """Only the clicks of a stream with a click rate of 2 % are logged, with four negatives each. The mean
        prediction is 2 % if that rate is known, and near 20 % if it is not; everything else is the same.
        """
        rng = np.random.default_rng(5)
        users, items = 150, 80
        logit = rng.normal(0, 0.6, users)[:, None] + rng.normal(0, 0.6, items)[None, :]
        chance = 0.02 * np.exp(logit) / np.exp(logit).mean()
        logs = []
        for number in range(1, 4):
            shown = rng.integers(users, size=150_000), rng.integers(items, size=150_000)
            clicked = np.flatnonzero(rng.random(150_000) < chance[shown])
            pairs = zip(shown[0][clicked].tolist(), shown[1][clicked].tolist(), strict=True)
            logs.append(
                [
                    Interaction(f"{number}-{n:05}", f"u{user}", f"i{item}", 1, NOON + timedelta(days=number, seconds=n))
                    for n, (user, item) in enumerate(pairs)
                ]
            )
        found = {}
        for prior in (0.02, None):
            b = await make(negatives_per_positive=4, prior_ctr=prior)
            for number, events in enumerate(logs, start=1):
                await close(b, number, events)
                await b.update(number)
            outcome = await b.outcome()
            snapshot = await snapshot_of(b, 3, tmp_path / str(prior))
            asked = [f"i{n}" for n in range(items)]
            assert snapshot.fields is not None
            then = snapshot.fields.read({}, {}, timestamp_ms=int((NOON + timedelta(days=4)).timestamp() * 1000))
            scores = np.array([snapshot.predict(f"u{n}", asked, [], values=then).scores for n in range(users)])
            found[prior] = scores, outcome
        corrected, plain = found[0.02][0], found[None][0]
        assert 0.016 < corrected.mean() < 0.024
        assert 0.16 < plain.mean() < 0.24
        # The order is the same, and so is all that was learned and scored.
        clicks_of_today = rng.random(chance.shape) < chance * 10
        assert roc_auc_score(clicks_of_today.ravel(), corrected.ravel()) == pytest.approx(
            roc_auc_score(clicks_of_today.ravel(), plain.ravel()), abs=1e-6
        )
        assert roc_auc_score(clicks_of_today.ravel(), corrected.ravel()) > 0.6
        versions = [found[prior][1]["versions"] for prior in (0.02, None)]
        for number in (1, 2, 3):
            one, other = (dict(each[number]["state"]) for each in versions)
            correction = one.pop("logit_correction")
            assert not set(one.pop("snapshot")) & set(other.pop("snapshot"))
            assert correction == pytest.approx(math.log(2 / 98) - math.log(1 / 4), abs=0.02)
            assert one == other
            assert versions[0][number]["scores"] == versions[1][number]["scores"]
            assert versions[0][number]["gate"] == versions[1][number]["gate"]
            assert versions[0][number]["serving"] != versions[1][number]["serving"]

    async def test_a_version_says_so_and_one_that_serves_on_keeps_it(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        b = await make(negatives_per_positive=1, prior_ctr=0.1)
        await close(b, 1, clicks(60))
        await b.update(1)
        monkeypatch.setattr("service.use_cases.update.gate.CALIBRATION_RANGE", (100.0, 200.0))
        await close(b, 2, [Interaction(f"x{n}", "u1", f"i{n:02}", n % 2, NOON) for n in range(60)])
        await b.update(2)
        async with running_app(b.settings) as api:
            models = [(await api.client.get(f"/admin/models/{number}")).json() for number in (0, 1, 2)]
            period = (await api.client.get("/periods/1")).json()
        assert [model["kind"] for model in models] == ["prior", "generated", "previous"]
        assert "logit_correction" not in models[0]["state"]
        assert models[1]["state"]["logit_correction"] == pytest.approx(math.log(1 / 9))
        assert models[2]["state"]["logit_correction"] == models[1]["state"]["logit_correction"]
        assert period["labels"]["sampling"]["per_positive"] == 1
