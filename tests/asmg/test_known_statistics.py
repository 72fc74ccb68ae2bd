"""The statistics against a slow, obvious count of everything, and the laws that they obey."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import EmbeddingMLPConfig
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from asmg.training import predict_logits
from asmg.updaters import build_updater
from tests.asmg.support import random_period, torch_rng

EVERYTHING = StatisticsConfig()


def log_of(t: int, n: int = 120, *, users: int = 6, items: int = 12) -> PeriodData:
    """A period's log with some past of its users; the tables grow, and some rows are those of nobody."""
    data = random_period(40 + t, n, users=users + t, items=items + 2 * t)
    rng = np.random.default_rng(t)
    seen = rng.integers(0, 31, size=n)
    late = np.array([rng.integers(0, min(s, 10) + 1) for s in seen])
    clicks = np.array([c + rng.integers(0, s - min(s, 10) + 1) for c, s in zip(late, seen, strict=True)])
    return replace(data, recent=torch.from_numpy(np.stack([seen, late, clicks], 1).astype(np.int32)))


def after(config: StatisticsConfig, periods: int) -> Statistics:
    statistics = Statistics.initial(config)
    for t in range(1, periods + 1):
        statistics = statistics.learned(log_of(t))
    return statistics


def beside(statistics: Statistics, item: int) -> dict[int, float]:
    """The neighbours of an item, and how often each was clicked beside it."""
    own = slice(*statistics.starts[item : item + 2].tolist())
    return dict(zip(statistics.neighbours[own].tolist(), statistics.together[own].tolist(), strict=True))


class Slow:
    """Everything counted in dictionaries, and forgotten nothing."""

    def __init__(self, config: StatisticsConfig) -> None:
        self.config = config
        self.clicks: list[Counter[int]] = []
        self.shown: list[Counter[int]] = []
        self.together: list[Counter[tuple[int, int]]] = []
        self.passed: list[Counter[tuple[int, int]]] = []
        self.events: list[tuple[int, float]] = []

    def past(self, data: PeriodData, n: int) -> list[int]:
        return data.history[data.offsets[n] : data.offsets[n + 1]].tolist()

    def learn(self, data: PeriodData) -> None:
        clicks, shown, together, passed = Counter[int](), Counter[int](), Counter(), Counter()  # type: ignore[var-annotated]
        for n, (item, label) in enumerate(zip(data.item.tolist(), data.label.tolist(), strict=True)):
            if item:
                shown[item] += 1
                clicks[item] += label
            for other in self.past(data, n)[:5]:
                if not item or not other or item == other:
                    continue
                if label:
                    together[other, item] += 1
                    together[item, other] += 1
                else:
                    passed[other, item] += 1
        # A pass counts where the two are neighbours by then.
        known = {pair for t in (*self.together, together) for pair in t}
        passed = Counter({pair: count for pair, count in passed.items() if pair in known})
        for past, new in ((self.clicks, clicks), (self.shown, shown), (self.together, together), (self.passed, passed)):
            past.append(new)  # type: ignore[arg-type]
        self.events.append((len(data), float(data.label.sum())))

    def faded(self, counters: list[Counter], decay: float, key: object) -> float:  # type: ignore[type-arg]
        return sum(counter[key] * decay**age for age, counter in enumerate(reversed(counters)))

    def row(self, data: PeriodData, n: int) -> list[float]:
        c, item, past = self.config, int(data.item[n]), self.past(data, n)
        weight = [c.moments_decay**age for age in range(len(self.events))][::-1]
        events = sum(w * e for w, (e, _) in zip(weight, self.events, strict=True))
        average = sum(w * k for w, (_, k) in zip(weight, self.events, strict=True)) / events if events else 0.5

        def rate(clicks: float, shown: float) -> float:
            return (clicks + 2 * average) / (shown + 2)

        seen, late, clicks = data.recent[n].tolist()  # type: ignore[index]
        user = [math.log1p(seen), rate(late, min(seen, 10)), rate(clicks, seen), math.log1p(len(past))]
        late_clicks, late_shown = (self.faded(x, c.decay, item) if item else 0.0 for x in (self.clicks, self.shown))
        all_clicks, all_shown = (self.faded(x, 1.0, item) if item else 0.0 for x in (self.clicks, self.shown))
        own = [
            math.log1p(late_clicks), rate(late_clicks, late_shown),
            math.log1p(all_clicks), math.log1p(all_shown), rate(all_clicks, all_shown),
        ]  # fmt: skip

        degrees: dict[int, float] = defaultdict(float)
        for age, counter in enumerate(reversed(self.together)):
            for (a, _), count in counter.items():
                degrees[a] += count * c.pair_decay**age
        near = [self.faded(self.together, c.pair_decay, (h, item)) if item else 0.0 for h in past[:10]]
        far = [self.faded(self.passed, c.pair_decay, (h, item)) if item else 0.0 for h in past[:10]]
        share = [v / math.sqrt(1 + degrees[h]) for v, h in zip(near, past[:10], strict=True)]
        total = sum(v * 0.7**q for q, v in enumerate(share))
        root = math.sqrt(1 + (degrees[item] if item else 0.0))
        place = past.index(item) if item and item in past else None
        pair = [
            math.log1p(share[0] if share else 0), math.log1p(max(share, default=0)), math.log1p(total),
            math.sqrt(max(share, default=0) / root), math.sqrt(total / root),
            rate(sum(near), sum(near) + sum(far)), math.log1p(sum(near) + sum(far)),
            0.0 if place is None else 1 / (1 + place), math.log1p(sum(degrees[h] for h in past[:10])),
        ]  # fmt: skip
        return [*user, *own, *pair]


def test_they_are_what_a_slow_count_of_everything_gives() -> None:
    statistics, slow = Statistics.initial(EVERYTHING), Slow(EVERYTHING)
    for t in range(1, 6):
        data = log_of(t)
        expected = np.array([slow.row(data, n) for n in range(len(data))])
        raw = statistics.raw(data).numpy()
        for column, name in enumerate(NAMES):
            np.testing.assert_allclose(
                raw[:, column], expected[:, column], rtol=2e-5, atol=2e-6, err_msg=f"{name} of {t}"
            )
        statistics = statistics.learned(data)
        slow.learn(data)
    assert (np.ptp(raw, axis=0) > 0).all()  # each of them tells something here


def test_of_many_neighbours_the_most_counted_remain_and_of_equals_the_newest() -> None:
    """User by user: an item clicked after item 1, so that item 1 gets it as a neighbour."""

    def clicks(*items: int) -> PeriodData:
        n = len(items)
        return PeriodData(
            user=torch.ones(n, dtype=torch.int32),
            item=torch.tensor(items, dtype=torch.int32),
            history=torch.ones(n, dtype=torch.int32),
            offsets=torch.arange(n + 1),
            label=torch.ones(n),
            users=2,
            items=9,
            recent=torch.zeros(n, 3, dtype=torch.int32),
        )

    statistics = Statistics.initial(StatisticsConfig(neighbours=2, pair_decay=0.5))
    statistics = statistics.learned(clicks(2, 2, 3, 4))
    assert beside(statistics, 1) == {2: 2.0, 4: 1.0}  # 3 and 4 are equals
    assert statistics.degrees[1] == 4
    statistics = statistics.learned(clicks(5))
    assert beside(statistics, 1) == {2: 1.0, 5: 1.0}  # two clicks, half as much by now; and a new one
    assert statistics.degrees[1] == 3
    assert beside(statistics, 5) == {1: 1.0}


def test_what_happens_later_changes_nothing() -> None:
    """Neither what else is in the period, nor in what order it is learned, nor labels: all of it counts afterwards."""
    statistics, data = after(StatisticsConfig(), 3), log_of(4)
    alone = torch.cat([statistics.raw(data.slice(n, n + 1)) for n in range(len(data))])
    assert torch.equal(alone, statistics.raw(data))
    assert torch.equal(statistics.raw(replace(data, label=1 - data.label)), statistics.raw(data))
    before = statistics.dump().to_bytes()
    statistics.learned(data)
    assert statistics.dump().to_bytes() == before


def test_nobody_has_the_statistics_of_nobody() -> None:
    """An item past the end of what is known, row 0, and a history of such items."""
    statistics, data = after(StatisticsConfig(), 3), log_of(4)
    unknown = replace(
        data, items=500, item=torch.full_like(data.item, 480), history=torch.full_like(data.history, 490),
        recent=torch.zeros_like(data.recent),  # type: ignore[arg-type]
    )  # fmt: skip
    cold = replace(unknown, item=torch.zeros_like(data.item), history=torch.zeros_like(data.history))
    raw = statistics.raw(unknown)
    assert torch.equal(raw, statistics.raw(cold))
    average = statistics.average
    expected = {"user_rate_10", "user_rate_30", "item_rate_late", "item_rate", "pair_rate"}
    for column, name in enumerate(NAMES):
        if name != "user_clicks":
            assert torch.allclose(raw[:, column], torch.tensor(average if name in expected else 0.0)), name


def test_inputs_are_standardised_by_what_was_seen_before() -> None:
    statistics, data = after(StatisticsConfig(moments_decay=1.0), 3), log_of(4)
    earlier = [log_of(t) for t in range(1, 4)]
    seen = torch.cat([after(StatisticsConfig(moments_decay=1.0), t).raw(log) for t, log in enumerate(earlier)]).double()
    expected = (statistics.raw(data) - seen.mean(0)) / (seen.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(statistics.inputs(data), expected.clamp(-5, 5).float(), rtol=1e-4, atol=1e-4)
    clicks = torch.cat([log.label for log in earlier])
    assert statistics.average == pytest.approx(float(clicks.mean()))


def test_the_first_period_is_standardised_by_its_own_moments() -> None:
    inputs = Statistics.initial(StatisticsConfig()).inputs(log_of(1))
    varying = inputs.std(0) > 1e-3
    assert int(varying.sum()) == 5  # those of the user, and whether it is a repeat
    torch.testing.assert_close(inputs[:, varying].mean(0), torch.zeros(5), atol=2e-2, rtol=0)


def test_what_was_always_the_same_is_not_read() -> None:
    """Before the second period every item had counts of zero: no model knows yet what other counts mean."""
    first, second = log_of(1), log_of(2)
    known = Statistics.initial(StatisticsConfig()).learned(first)
    raw, read = known.raw(second), known.inputs(second)
    of_items = slice(NAMES.index("item_clicks_late"), NAMES.index("item_rate") + 1)
    assert raw[:, of_items].std(0).min() > 0.01
    assert not read[:, of_items].any()
    assert known.learned(second).inputs(log_of(3))[:, of_items].std(0).min() > 0.1


def test_dump_and_load_lose_nothing() -> None:
    statistics = after(StatisticsConfig(neighbours=3), 3)
    again = Statistics.load(Checkpoint.from_bytes(statistics.dump().to_bytes()))
    assert again.config == statistics.config
    assert again.dump().to_bytes() == statistics.dump().to_bytes()
    assert torch.equal(again.inputs(log_of(4)), statistics.inputs(log_of(4)))


def test_those_of_another_release_are_refused() -> None:
    stored = after(StatisticsConfig(), 1).dump()
    other = Checkpoint("statistics", {**stored.meta, "names": ["age"]}, stored.tensors)
    with pytest.raises(CheckpointError, match=r"statistics: expected .*repeat.*; received \['age'\]"):
        Statistics.load(other)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(1, 40), max_size=8, unique=True))
def test_a_forgotten_item_is_a_stranger_to_itself_and_to_others(rows: list[int]) -> None:
    statistics, data = after(StatisticsConfig(), 3), log_of(4, items=40)
    gone = torch.tensor(rows, dtype=torch.int64)
    forgotten = statistics.forgotten({"item": gone})
    assert not bool(torch.isin(forgotten.neighbours, gone.int()).any())
    for row in rows:
        if row < len(forgotten.counts):
            assert not bool(forgotten.counts[row].any()) and not beside(forgotten, row)
    kept = ~torch.isin(data.item, gone.int())
    same = [NAMES.index(name) for name in ("item_clicks", "item_rate", "item_rate_late", "repeat")]
    assert torch.equal(forgotten.raw(data)[kept][:, same], statistics.raw(data)[kept][:, same])
    assert len(forgotten.counts) == len(statistics.counts)
    # What is learned afterwards is learned as of new items.
    forgotten.learned(data)


def test_a_log_without_what_users_did_before_is_refused() -> None:
    with pytest.raises(ValueError, match="recent: expected what the users did before each interaction; received none"):
        Statistics.initial(StatisticsConfig()).raw(replace(log_of(1), recent=None))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("neighbours", 0, "neighbours: expected at least 1; received 0"),
        ("decay", 0.0, r"decay: expected a number in \(0, 1\]; received 0.0"),
        ("pair_decay", 1.5, r"pair_decay: expected a number in \(0, 1\]; received 1.5"),
        ("moments_decay", -1.0, r"moments_decay: expected a number in \(0, 1\]; received -1.0"),
    ],
)
def test_what_cannot_be_counted_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StatisticsConfig(**{field: value})


def test_an_interaction_without_a_past_is_that_of_a_user_who_has_none() -> None:
    """As what such a user would have been given, the item's own numbers among it; all other interactions stay. Of
    strangers the row is gone too.
    """
    statistics, data = after(StatisticsConfig(), 3), log_of(4)
    prepared, where = statistics.prepare(data), torch.arange(len(data)) % 3 == 0
    strangers = torch.arange(len(data)) % 2 == 0
    strange = prepared.without_past(where, strangers)
    alone = replace(
        data,
        user=torch.zeros_like(data.user),
        history=data.history[:0],
        offsets=torch.zeros_like(data.offsets),
        recent=torch.zeros_like(data.recent),  # type: ignore[arg-type]
    )
    assert prepared.numeric is not None and strange.numeric is not None
    assert torch.equal(strange.numeric[where], statistics.inputs(alone)[where])
    assert torch.equal(strange.numeric[~where], prepared.numeric[~where])
    for n in range(len(data)):
        now, then = (d.history[d.offsets[n] : d.offsets[n + 1]].tolist() for d in (strange, prepared))
        assert now == ([] if where[n] else then)
        assert strange.user[n] == (0 if where[n] and strangers[n] else prepared.user[n])
    assert torch.equal(strange.item, data.item) and torch.equal(strange.label, data.label)
    nobody = torch.zeros_like(where)
    assert torch.equal(prepared.without_past(nobody, nobody).numeric, prepared.numeric)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nobody: expected the numeric inputs of a user without a past; received none"):
        data.without_past(where, strangers)


def test_users_without_a_past_are_learned_where_everybody_has_one() -> None:
    """Everybody has clicked a lot, and who did so more of late clicks more: half of the time on average. In no log was
    there a stranger, or a user whose past was not at hand, of whom the same would say that they never click.
    """
    config = EmbeddingMLPConfig(dim=4, hidden=(8,), numeric=len(NAMES))
    updater = build_updater("iu", config, statistics=StatisticsConfig())
    state = updater.initial(torch_rng(0))
    for t in range(1, 5):
        data = random_period(t, 3_000, users=50, items=20)
        rng = np.random.default_rng(t)
        recent = np.stack([np.full(3_000, 30), rng.integers(8, 11, 3_000), rng.integers(26, 31, 3_000)], 1)
        label = torch.from_numpy(rng.random(3_000) < 0.4 * recent[:, 1] - 3.1).float()
        data = replace(data, recent=torch.from_numpy(recent.astype(np.int32)), label=label)
        state = updater.update(state, data, rng=torch_rng(t))
    without = replace(
        data,
        history=data.history[:0],
        offsets=torch.zeros_like(data.offsets),
        recent=torch.zeros_like(data.recent),  # type: ignore[arg-type]
    )
    (params,) = updater.serving_models(state).values()
    for asked in (without, replace(without, user=torch.zeros_like(data.user))):
        found = torch.sigmoid(predict_logits(updater.model, params, updater.prepare(state, asked)))
        assert 0.2 < float(found.mean()) < 0.7
