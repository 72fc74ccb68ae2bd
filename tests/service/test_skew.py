"""No look-ahead, no skew: every score of /predict can be recomputed from the stored log and the version alone.

A log is replayed through HTTP, and every score is noted. Afterwards each is computed again: the user's past from
the interactions with a strictly earlier time, by a slow and obvious definition; the statistics and the model from the
artifacts of the version that answered; the forward pass by hand, in double precision.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import text

from asmg.batch import NO_CATEGORY, PeriodData
from asmg.datasets.synthetic import DriftPeriod
from asmg.features import Field, Schema
from asmg.field_columns import FieldColumns, unscaled
from asmg.models import Params
from asmg.statistics import Statistics
from asmg.training import predict_logits
from service.storage.postgres.repositories import EntityKind, EventBatch, FeatureVersion, ModelVersion
from service.use_cases.catalogue import put_items, put_users
from service.use_cases.ingest import ingest
from tests.conftest import Servers, database_dsn
from tests.service.api_support import Api, eventually, running_app, settings_for
from tests.service.layers_support import (
    served_parameters,
    stored_period,
    whole_parts,
    whole_statistics,
    with_all_items,
)
from tests.service.predictions_by_hand import clicks_by_hand
from tests.service.test_past import Event, past_of
from tests.service.update_support import (
    Bench,
    bench,
    copies,
    interactions,
    moment,
    periods,
    prepare_period,
    single_thread,
)

PRIOR = 0.25
"""What version 0 says to everything."""

WINDOW_SECONDS = 0.05
USERS = [f"u{n}" for n in range(8)]
ITEMS = [f"i{n}" for n in range(24)]
OFFERED = (16, 20, 24)
"""How many of the items there are in each period; the others nobody has seen before."""
STEPS = (50, 40, 40)
"""Moments of each period."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


SCHEMA = Schema(
    fields=(
        Field("device", "context", "categorical"),
        Field("page", "context", "numeric", enter="standardised"),
        Field("place", "context", "categorical", training_only=True),
        Field("age", "user", "numeric", enter="buckets", buckets=(4.0, 8.0)),
        Field("likes", "user", "multi", most=2),
        Field("price", "item", "numeric", enter="log"),
        Field("brand", "item", "categorical"),
    )
)


def about_user(user: str, period: int) -> dict[str, Any]:
    """What is sent of a user before a period; nothing of some."""
    number = int(user[1:])
    return {"age": number + 2 * period, "likes": ["a", "b", "c"][: (number + period) % 3]} if number % 4 else {}


def about_item(item: str, period: int) -> dict[str, Any]:
    """What is sent of an item before a period."""
    number = int(item[1:])
    return {"price": 3.0 * number * period} | ({"brand": number % 3} if number % 2 else {})


@dataclass(frozen=True)
class Asked:
    """A prediction, made at a moment (ms) before which everything earlier was stored, and nothing of that moment."""

    user: str
    items: list[str]
    ms: int
    version: int
    scores: list[float]
    context: dict[str, Any]
    contexts: list[dict[str, Any]]
    """Of each item."""
    period: int
    """The one that was open."""


@dataclass
class Replay:
    """A log that happens now, at a running service."""

    api: Api
    bench: Bench
    random: Random = field(default_factory=lambda: Random(11))
    asked: list[Asked] = field(default_factory=list)
    period: int = 1
    last_ms: int = 0
    count: int = 0

    def now(self) -> int:
        """A millisecond that has begun, and in which nothing has happened yet."""
        while (ms := time.time_ns() // 1_000_000) <= self.last_ms:
            time.sleep(0.0002)
        self.last_ms = ms
        return ms

    def sent(self, ms: int) -> str:
        """Clients know microseconds, which decide nothing."""
        return (moment(ms) + timedelta(microseconds=self.random.randrange(1000))).isoformat()

    def name(self) -> str:
        """Event ids are in no order."""
        self.count += 1
        return f"{self.random.choice('azé~B')}{self.count}"

    def likes(self, user: str, item: str) -> int:
        return int(self.random.random() < (0.75 if (int(user[1:]) + int(item[1:])) % 3 == 0 else 0.2))

    async def post(self, path: str, **document: Any) -> dict[str, Any]:
        answer = await self.api.client.post(path, json=document)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def context(self) -> dict[str, Any]:
        """What the interactions of a slate have in common; most of it, most of the time."""
        found = {"device": self.random.choice(["phone", "tv", True]), "page": self.random.gauss(5, 2), "place": "top"}
        return {name: value for name, value in found.items() if self.random.random() < 0.8}

    async def ask(self, user: str, items: list[str], ms: int, context: dict[str, Any]) -> None:
        own = [{"page": self.random.gauss(9, 1)} if self.random.random() < 0.2 else {} for _ in items]
        asked = [{"id": i, "context": c} if c else i for i, c in zip(items, own, strict=True)]
        answer = await self.post("/predict", user_id=user, items=asked, context=context)
        assert answer["history"] != "unavailable"
        version, scores = answer["model_version"], answer["scores"]
        self.asked.append(Asked(user, items, ms, version, scores, context, own, self.period))

    async def step(self) -> None:
        """Some users are asked about, and then all of them do something at one and the same moment."""
        users, ms = self.random.sample(USERS[: 4 + 2 * self.period], self.random.choice([1, 1, 2])), self.now()
        slates = {user: self.random.sample(ITEMS[: OFFERED[self.period - 1]], 2) for user in users}
        contexts = {user: self.context() for user in users}
        for user, items in slates.items():
            await self.ask(user, [*items, f"nobody's {self.random.randrange(3)}"], ms, contexts[user])
        if self.random.random() < 0.25:  # a slate is shown, of which an item is clicked
            user = users.pop()
            await self.show(user, slates[user], ms, contexts[user])
        events = [
            {
                "event_id": self.name(),
                "user_id": user,
                "item_id": item,
                "label": self.likes(user, item),
                "context": contexts[user],
            }
            for user in users
            for item in slates[user]
        ]
        if events:
            await self.post("/interactions", interactions=[e | {"timestamp": self.sent(ms)} for e in events])

    async def show(self, user: str, items: list[str], ms: int, context: dict[str, Any]) -> None:
        request = self.name()
        shown = {"request_id": request, "user_id": user, "items": items, "timestamp": self.sent(ms), "context": context}
        await self.post("/impressions", impressions=[shown])
        clicked = {"request_id": request, "item_id": items[0], "timestamp": (moment(ms) + timedelta(milliseconds=1))}
        await self.post("/clicks", clicks=[clicked | {"timestamp": clicked["timestamp"].isoformat()}])

    async def live(self) -> None:
        """A period: what is new on offer, what happens, and the update."""
        period = self.period
        offered = [
            {"item_id": item, "categories": categories_of(item), "features": about_item(item, period)}
            for item in ITEMS[: OFFERED[period - 1]]
        ]
        known = [{"user_id": user, "features": about_user(user, period)} for user in USERS]
        for path, document in (("/items", {"items": offered}), ("/users", {"users": known})):
            answer = await self.api.client.put(path, json=document)
            assert answer.status_code == 200, answer.text
        for _ in range(STEPS[self.period - 1]):
            await self.step()
        await asyncio.sleep(2 * WINDOW_SECONDS)  # all that was shown has had its time to be clicked
        answer = await self.api.client.post("/periods/close", json={"expected_period": self.period})
        assert answer.status_code == 202, answer.text
        version = await self.bench.update(self.period)
        await eventually(lambda: self.api.state.serving.current().version == version)
        self.period += 1

    async def log(self) -> list[Event]:
        """The stored interactions."""
        query = "SELECT event_id, user_id, item_id, label, occurred_at, period FROM interactions WHERE NOT sampled"
        async with self.bench.database.read() as session:
            rows = (await session.connection.execute(text(query))).all()
        epoch = moment(0)
        return [
            Event(
                r.event_id,
                r.user_id,
                r.item_id,
                r.label,
                (r.occurred_at - epoch) // timedelta(milliseconds=1),
                r.period,
            )
            for r in rows
        ]


def categories_of(item: str) -> list[str]:
    return [f"c{int(item[1:]) % 4}"] if int(item[1:]) % 5 else []


@dataclass(frozen=True)
class Recomputed:
    """What a version says to questions, in their order, all their items one after the other."""

    scores: np.ndarray
    numeric: torch.Tensor


class Version:
    """A version with what it knows, by its artifacts."""

    def __init__(
        self, number: int, params: Params, statistics: Statistics, correction: float, rows: dict[str, dict[str, int]]
    ) -> None:
        self.number = number
        self.params = {name: tensor.double().numpy() for name, tensor in params.items()}
        last = max(name for name in params if name.startswith("mlp.") and name.endswith(".bias"))
        self.params[last] = self.params[last] + correction
        self.statistics, self.rows = statistics, rows

    @classmethod
    async def of(cls, b: Bench, version: ModelVersion) -> "Version":
        artifacts, state = b.context.artifacts, version.state
        rows = {}
        async with b.database.read() as session:
            for kind in EntityKind:
                ids, numbers = await session.entities.rows(kind, state["serving_allocations"][str(kind)])
                rows[str(kind)] = dict(zip(ids, numbers.tolist(), strict=True))
        params = await served_parameters(artifacts, state)
        statistics = await whole_statistics(artifacts, state["serving_statistics"])
        return cls(version.version, params, statistics, state.get("logit_correction", 0.0), rows)

    def fields(self, asked: Sequence[Asked]) -> FieldColumns:
        """What is read of fields, for each item of each question: by name and weight, one at a time."""
        rows, scales = self.rows["field"], self.statistics.numbers.scales()

        def number(name: str, value: float | None) -> list[tuple[int, float]]:
            if value is None:
                return [(rows.get(f"{name}=", 0), 1.0)]
            mean, by = scales[rows[f"{name}=#"]]
            return [(rows[f"{name}=#"], min(max((value - mean) * by, -5.0), 5.0))]

        def text(name: str, values: list[str]) -> list[tuple[int, float]]:
            return [(rows.get(f"{name}={value}", 0), 1.0) for value in values or [""]]

        lines = []
        for question in asked:
            when, user = moment(question.ms), about_user(question.user, question.period)
            age = user.get("age")
            for item, own in zip(question.items, question.contexts, strict=True):
                context = {**question.context, **own}
                # The features of an item are those at the time when the version was made, in the period of its number.
                known = item in ITEMS[: OFFERED[self.number - 1]]
                features = about_item(item, self.number) if known else {}
                price, device = features.get("price"), context.get("device")
                parts = (
                    text("hour", [str(when.hour)])
                    + text("weekday", [str(when.weekday())])
                    + text("device", [] if device is None else ["true" if device is True else device])
                    + number("page", context.get("page"))
                    + text("place", []),
                    text("age", [] if age is None else [str(sum(age >= edge for edge in (4, 8)))])
                    + text("likes", user.get("likes", [])),
                    number("price", None if price is None else math.log1p(price))
                    + text("brand", [str(features["brand"])] if "brand" in features else []),
                )
                lines.append([(row, weight, owner) for owner, part in enumerate(parts) for row, weight in part])
        # A column for each owner and place: lines differ in how many values they have.
        width = max(len(line) for line in lines)
        read = torch.full((len(lines), 3 * width), -1, dtype=torch.int32)
        weights = torch.ones(read.shape)
        for n, line in enumerate(lines):
            for place, (row, weight, owner) in enumerate(line):
                read[n, 3 * place + owner], weights[n, 3 * place + owner] = row, weight
        return FieldColumns(
            rows=read,
            weights=weights,
            size=1 + max(rows.values()),
            sums=torch.tensor([0, 1, 2] * width, dtype=torch.int32),
            neutral=torch.full((3 * width,), -2, dtype=torch.int32),
            numbers=torch.full((3 * width,), -1, dtype=torch.int32),
            scale=unscaled(3 * width),
        )

    def answers(self, asked: Sequence[Asked], log: list[Event]) -> Recomputed:
        """What it says with the log as it was before each question."""
        new: dict[str, int] = {}
        known = 1 + max(self.rows["item"].values())

        def row(item: str) -> int:
            """Items that the version does not know are past the ends of its tables, each for itself."""
            return self.rows["item"].get(item) or new.setdefault(item, known + len(new))

        users, items, history, offsets, recent = [], [], [], [0], []
        for question in asked:
            clicked, counts = past_of(log, question.user, question.ms)
            for item in question.items:
                users.append(self.rows["user"].get(question.user, 0))
                items.append(row(item))
                history += [row(click) for click in clicked]
                offsets.append(len(history))
                recent.append(counts)
        size = known + len(new)
        categories = torch.full((size, 1), NO_CATEGORY, dtype=torch.int32)
        for item, number in self.rows["item"].items():
            for name in categories_of(item):
                categories[number] = self.rows["category"][name]
        data = PeriodData(
            user=torch.tensor(users, dtype=torch.int32),
            item=torch.tensor(items, dtype=torch.int32),
            history=torch.tensor(history, dtype=torch.int32),
            offsets=torch.tensor(offsets),
            label=torch.zeros(len(items)),
            recent=torch.tensor(recent, dtype=torch.int32),
            users=1 + max(users),
            items=size,
            categories=1 + max(self.rows["category"].values()),
            item_categories=categories,
            fields=self.fields(asked),
        )
        numeric = self.statistics.inputs(data)
        return Recomputed(clicks_by_hand(self.params, data, numeric.double().numpy()), numeric)


async def test_every_score_is_the_one_that_the_stored_log_gives(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    schema = tmp_path / "features.toml"
    schema.write_text(SCHEMA.to_toml(), encoding="utf-8")
    changes = {"attribution_window_seconds": WINDOW_SECONDS, "swap_lead_seconds": 0.0, "prior_ctr": PRIOR}
    changes |= {"features": schema}
    settings = settings_for(postgres_dsn, redis_url, tmp_path, **changes)
    async with bench(postgres_dsn, redis_url, tmp_path, **changes) as b:
        async with running_app(settings) as api:
            replay = Replay(api, b)
            for _ in STEPS:
                await replay.live()
        log = await replay.log()
        async with b.database.read() as session:
            versions = {number: await session.models.get(number) for number in {a.version for a in replay.asked}}
        assert set(versions) == {0, 1, 2}
        asked = {number: [a for a in replay.asked if a.version == number] for number in versions}
        assert all(a.scores == pytest.approx([PRIOR] * 3, abs=1e-6) for a in asked[0])
        compared, repeats, strangers = 0, 0, 0
        for number in (1, 2):
            version = versions[number]
            assert version is not None
            known = await Version.of(b, version)
            found = known.answers(asked[number], log)
            given = np.array([score for a in asked[number] for score in a.scores])
            np.testing.assert_allclose(given, found.scores, rtol=0, atol=1e-6)
            assert given.std() > 0.02
            compared += len(given)
            strangers += sum(not past_of(log, a.user, a.ms)[1][0] for a in asked[number])
            repeats += sum(item in past_of(log, a.user, a.ms)[0] for a in asked[number] for item in a.items)
            # The next update learned from the very same statistics.
            assert await learned(b, number + 1, log) == shown(found, asked[number], log)
        assert compared >= 250
        assert repeats > 10 and strangers > 1


Learned = dict[tuple[str, str, int], list[float]]
"""User, item and moment → the statistics."""


async def learned(b: Bench, period: int, log: list[Event]) -> Learned:
    """What an update has learned from."""
    async with b.database.read() as session:
        stage = await session.stages.get(period, "prepare")
    assert stage is not None
    data = await stored_period(b.context, stage.result["data"])
    assert data.numeric is not None
    events = sorted((e for e in log if e.period == period), key=lambda e: (e.ms, e.name.encode()))
    return {(e.user, e.item, e.ms): row for e, row in zip(events, data.numeric.tolist(), strict=True)}


def shown(found: Recomputed, asked: Sequence[Asked], log: list[Event]) -> Learned:
    """The statistics of the answers about what happened then."""
    happened = {(e.user, e.item, e.ms) for e in log}
    keys = [(a.user, item, a.ms) for a in asked for item in a.items]
    return {key: row for key, row in zip(keys, found.numeric.tolist(), strict=True) if key in happened}


def permuted(period: DriftPeriod, cut: int, seed: int) -> DriftPeriod:
    """The same until the first interactions are over; who does what then is another."""
    order = np.concatenate([np.arange(cut), cut + np.random.default_rng(seed).permutation(len(period.labels) - cut)])
    return replace(
        period,
        user_ids=[period.user_ids[n] for n in order],
        item_ids=[period.item_ids[n] for n in order],
        labels=period.labels[order],
    )


async def test_the_future_changes_no_score(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], redis_url: str, tmp_path: Path
) -> None:
    """Events after a moment change nothing, bit for bit, in what is learned of the time before it or
    predicted at it.
    """
    first, second, third = periods(3)
    cut = len(second.labels) // 2
    futures = [(second, None), (permuted(second, cut, 1), None), (permuted(second, cut, 2), third)]
    schema = tmp_path / "features.toml"
    schema.write_text(SCHEMA.to_toml(), encoding="utf-8")
    found = []
    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        async with bench(database_dsn(servers, name), redis_url, tmp_path, features=schema) as b:
            await log_with_fields(b, first, 0, 0)
            await b.update(1)
        for seed, (future, later) in enumerate(futures, start=1):
            async with bench(database_dsn(servers, copy(name)), redis_url, tmp_path, features=schema) as b:
                await log_with_fields(b, future, cut, seed)
                if later is not None:
                    await log_with_fields(b, later, 0, seed, close=False)
                found.append(await read_and_said(b))
    base = found[0]
    # What is missing, and values of every field, are among what is compared.
    names = {value for columns in base.fields[:cut] for value, _ in columns}
    assert names >= {f"{field.name}=" for field in SCHEMA.fields}
    assert {value.split("=")[0] for value in names if not value.endswith("=")} == {f.name for f in SCHEMA.all}
    for other in found[1:]:
        assert other.fields[:cut] == base.fields[:cut]
        assert torch.equal(other.numeric[:cut], base.numeric[:cut])
        assert torch.equal(other.logits[:cut], base.logits[:cut])
        assert all(a != b for a, b in zip(other.fields[cut:], base.fields[cut:], strict=True))
        assert not torch.equal(other.numeric[cut:], base.numeric[cut:])
        assert not torch.equal(other.logits[cut:], base.logits[cut:])


async def log_with_fields(b: Bench, period: DriftPeriod, cut: int, seed: int, *, close: bool = True) -> None:
    """Log a period with contexts and features. Those of its interactions from `cut` on depend on the seed."""
    events, times = interactions(period), period.timestamps_ms.tolist()
    assert cut == 0 or times[cut - 1] < times[cut]

    def context(n: int) -> str:
        random = Random(f"{period.number} {n} {seed if n >= cut else 0}")
        found = {
            "device": random.choice(["phone", "tv", True]),
            "page": random.gauss(5, 2),
            "place": random.choice("ab"),
        }
        sent = {name: value for name, value in found.items() if random.random() < 0.8}
        return json.dumps(sent | ({"device": f"d{seed}.{n}"} if seed and n >= cut else {}))

    def versions(ids: Sequence[str], about: Callable[[str, int], dict[str, Any]]) -> list[FeatureVersion]:
        """Of each id one before the period, one in its earlier part, and some from `cut` on."""
        moments = [(times[0] - 1, 0), (times[cut // 2], 1)] if cut else []
        moments += [(times[n], 7 * seed + n) for n in range(cut, len(times), 40)]
        found = []
        for id_, (ms, n) in product(ids, moments):
            known = {} if (hash_of(id_) + n) % 4 == 0 else about(f"x{hash_of(id_)}", n)
            found.append(FeatureVersion(id_, moment(ms), known))
        return found

    users, items = sorted(set(period.user_ids)), sorted(set(period.item_ids))
    await put_items(b.database, period.new_items, versions(items, about_item))
    await put_users(b.database, b.context.histories, versions(users, about_user))
    logged = [replace(event, context=context(n)) for n, event in enumerate(events)]
    await ingest(b.database, b.context.histories, EventBatch.of(logged))
    if close:
        await b.close(period.number)


def hash_of(id_: str) -> int:
    return sum(id_.encode())


@dataclass(frozen=True)
class Said:
    """Of the interactions of period 2."""

    numeric: torch.Tensor
    """The statistics."""
    fields: list[list[tuple[str, float]]]
    """Of each the values that it reads, and what each weighs."""
    logits: torch.Tensor
    """What version 1 says."""


async def read_and_said(b: Bench) -> Said:
    """Of the interactions of period 2, as an update would read them."""
    updater, artifacts = b.context.updater, b.context.artifacts
    async with b.database.read() as session:
        head = await session.models.get(1)
    assert head is not None
    state = updater.load(await whole_parts(artifacts, head.state["parts"]))
    prepared = await prepare_period(b.database, 2, 30, schema=b.context.schema)
    data = updater.prepare(state, with_all_items(prepared.data))
    assert data.numeric is not None and data.fields is not None
    async with b.database.read() as session:
        ids, rows = await session.entities.rows(EntityKind.FIELD)
    name_of = dict(zip(rows.tolist(), ids, strict=True))
    read = data.fields.standardised()
    fields = [
        [(name_of[row], weight) for row, weight in zip(*columns, strict=True) if row >= 0]
        for columns in zip(read.rows.tolist(), read.weights.tolist(), strict=True)
    ]
    return Said(data.numeric, fields, predict_logits(updater.model, updater.serving_models(state)["generated"], data))
