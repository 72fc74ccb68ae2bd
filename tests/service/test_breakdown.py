"""The scores of a version by parts of a period, against the log that they are about."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from asmg.datasets.synthetic import DriftPeriod
from asmg.features import Field, Schema
from service.storage.postgres.repositories import EntityKind, EventBatch
from service.use_cases.breakdown import Part, get_breakdown
from service.use_cases.catalogue import put_items
from service.use_cases.ingest import ingest
from service.use_cases.update import scored_parts
from tests.service.deletion_support import delete
from tests.service.update_support import Bench, bench, interactions, periods

SCHEMA = Schema(
    (
        Field("shop", "context", "categorical"),
        Field("age", "context", "numeric", enter="buckets", buckets=(18.0, 65.5)),
        Field("tags", "context", "multi", most=2),
        Field("price", "context", "numeric"),
    ),
    time=(),
)
AGES = {"below 18": 7, "18 to 65.5": 18, "65.5 or more": 70, "": None}
"""Buckets, as they are shown, and an age in each."""

pytestmark = pytest.mark.usefixtures("one_thread")


def context(period: DriftPeriod, n: int) -> dict[str, Any]:
    """Of an interaction: one of eleven shops, of which the first is the most frequent one, and so on."""
    random = Random(f"{period.number} {n}")
    shops = [f"shop {chr(97 + number)}" for number in range(11)]
    return {
        "shop": random.choices(shops, range(40, 18, -2))[0],
        "age": random.choice(list(AGES.values())),
        "tags": random.choice((["new", "sale"], ["sale"], [])),
        "price": random.random(),
    }


async def learn(b: Bench, period: DriftPeriod) -> None:
    given = [replace(event, context=json.dumps(context(period, n))) for n, event in enumerate(interactions(period))]
    await put_items(b.database, {**period.new_items, "never shown": ()})
    await ingest(b.database, b.context.histories, EventBatch.of(given))
    await b.close(period.number)
    await b.update(period.number)


def sizes(part: Part) -> tuple[int, int]:
    return part.rows, part.clicks


async def test_each_part_is_what_the_log_says(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = periods(3)
    # An item of the catalogue that is shown in the third period only: it has a row before, and is new all the same.
    third = replace(third, item_ids=["never shown", *third.item_ids[1:]])
    (tmp_path / "features.toml").write_text(SCHEMA.to_toml(), encoding="utf-8")
    async with bench(postgres_dsn, redis_url, tmp_path, features=tmp_path / "features.toml") as b:
        for period in (first, second, third):
            await learn(b, period)
        async with b.database.read() as session:
            evaluations = {each.model: each for each in await session.evaluations.list(3)}
        found = await get_breakdown(b.database, 2, period=None)
        assert (found.version, found.periods, found.period, found.rows, found.against) == (2, [3], 3, 300, 1)
        assert [each.model for each in found.models] == ["generated", "incremental"]

        clicks = third.labels.tolist()
        sent = [context(third, n) for n in range(300)]
        seen = {"users": {*first.user_ids, *second.user_ids}, "items": {*first.item_ids, *second.item_ids}}
        for model in found.models:
            whole = evaluations[model.model]
            assert sum(each.rows for each in model.curve) == 300 and len(model.curve) > 5
            predicted = sum(each.rows * each.predicted for each in model.curve)
            assert whole.calibration == pytest.approx(predicted / sum(clicks), rel=1e-3)
            assert sum(clicks) == pytest.approx(sum(each.rows * each.clicked for each in model.curve), rel=1e-3)
            for kind, ids in (("users", third.user_ids), ("items", third.item_ids)):
                both = getattr(model, kind)
                for part, known in ((both.new, False), (both.known, True)):
                    of = [click for id_, click in zip(ids, clicks, strict=True) if (id_ in seen[kind]) == known]
                    assert sizes(part) == (len(of), sum(of)) and len(of) > 0
                parts = (both.new, both.known)
                assert sum(each.rows * each.logloss for each in parts) / 300 == pytest.approx(whole.logloss, rel=1e-4)

            shop, age, tags = model.fields  # not the price, which has no values
            *named, rest = shop.values
            shops = Counter(each["shop"] for each in sent)
            assert [each.rows for each in named] == sorted(shops.values(), reverse=True)[:8]
            for each in named:
                of = [click for click, of in zip(clicks, sent, strict=True) if of["shop"] == each.value]
                assert sizes(each) == (len(of), sum(of)) and not each.other
            assert (rest.value, rest.other, rest.rows) == (None, True, 300 - sum(each.rows for each in named))
            assert {each.value: each.rows for each in age.values} == {
                name: sum(of["age"] == value for of in sent) for name, value in AGES.items()
            }
            assert {each.value: each.rows for each in tags.values} == {
                "new": sum("new" in of["tags"] for of in sent),
                "sale": sum("sale" in of["tags"] for of in sent),
                "": sum(not of["tags"] for of in sent),
            }
            assert sum(each.rows * each.logloss for each in age.values) / 300 == pytest.approx(whole.logloss, rel=1e-4)

            shown = Counter(third.item_ids)
            assert len(model.changed) > 5
            for item in model.changed:
                assert item.rows == shown[item.item_id] >= 3
            moved = [abs(log_odds(item.after) - log_odds(item.before)) for item in model.changed]
            assert moved == pytest.approx(sorted(moved, reverse=True), abs=1e-3)  # they are rounded
            of_baseline = await get_breakdown(b.database, 1, period=3)
            assert [each.model for each in of_baseline.models] == ["previous", "baseline"]
            assert [each.changed for each in of_baseline.models] == [[], []] and of_baseline.against is None

        # A deleted item has no name any more, and neither has it when its row belongs to another.
        gone = found.models[0].changed[0].item_id
        assert gone is not None
        await delete(b, "item", gone)
        again = await get_breakdown(b.database, 2, period=3)
        assert [each.item_id for each in again.models[0].changed] == [
            None if each.item_id == gone else each.item_id for each in found.models[0].changed
        ]

        def fail(*_: Any, **__: Any) -> None:
            raise ValueError("it cannot be broken down")

        with monkeypatch.context() as patched:
            patched.setattr(scored_parts, "scored_parts", fail)
            await learn(b, replace(periods(4)[3], new_items={"newcomer": ()}))
        async with b.database.read() as session:
            row = np.array([(await session.breakdowns.get(3) or {})["models"]["generated"]["changed"][0][0]])
            assert await session.entities.ids_at(EntityKind.ITEM, row) != [None]
        assert (await get_breakdown(b.database, 2, period=3)).models[0].changed[0].item_id is None
        # The update that could not break its period down has published all the same.
        nothing = await get_breakdown(b.database, 2, period=4)
        assert (nothing.periods, nothing.period, nothing.models) == ([3], None, [])
        assert (await get_breakdown(b.database, 4, period=None)).periods == []


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
