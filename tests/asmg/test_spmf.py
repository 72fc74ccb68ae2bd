"""SPMF: what is kept in the reservoirs, what is drawn from them, and what is learned."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from asmg.batch import PeriodData
from asmg.models import EmbeddingMLPConfig
from asmg.training import TrainingConfig
from asmg.updaters.iu import IncrementalUpdate
from asmg.updaters.spmf import Reservoir, ReservoirUpdate, SpmfConfig, SpmfState, weighted_sample
from tests.asmg.baselines import SMALL, configs, listed, numbered, period, rows, same, spmf
from tests.asmg.cases import to_bytes
from tests.asmg.support import period as make_period
from tests.asmg.support import slow_logit, torch_rng, unrounded


def arrivals(state: SpmfState, label: int) -> list[int]:
    """Which rows of a numbered stream a reservoir holds; all of them as they were."""
    reservoir = state.reservoirs[label]
    if reservoir is None:
        return []
    assert set(reservoir.data.label.tolist()) == {float(label)}
    assert reservoir.arrival.tolist() == [item - 1 for item in reservoir.data.item.tolist()]
    return [int(n) for n in reservoir.arrival]


def near(found: np.ndarray, expected: np.ndarray | float, draws: int) -> None:
    """Frequencies within five standard deviations of probabilities."""
    p = np.asarray(expected)
    assert bool((np.abs(found / draws - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 1e-12).all()), (found / draws, p)


def test_sampling_is_one_by_one_without_replacement() -> None:
    """The chance of every pair of five, both orders added up: w_a/Σ · w_b/(Σ-w_a) + the same of (b, a)."""
    weights, draws = np.exp([0.0, 1.0, 0.4, 0.8, 2.0]), 20_000
    rng = torch_rng(0)
    found = np.zeros((5, 5))
    for _ in range(draws):
        a, b = weighted_sample(torch.tensor(weights).log(), 2, rng).tolist()
        assert a < b
        found[a, b] += 1
    expected = np.zeros((5, 5))
    for a, b in itertools.permutations(range(5), 2):
        expected[min(a, b), max(a, b)] += weights[a] / weights.sum() * weights[b] / (weights.sum() - weights[a])
    assert expected.sum() == pytest.approx(1)
    near(found, expected, draws)
    assert weighted_sample(torch.zeros(4, dtype=torch.float64), 4, rng).tolist() == [0, 1, 2, 3]


@configs
def test_the_worst_fitted_weighs_most(config: EmbeddingMLPConfig) -> None:
    """Against a sort of slow logits: rank 0 is the best fitted; with ids younger than the model."""
    updater = spmf(config)
    state = updater.initial(torch_rng(0))
    for t in (1, 2):
        state = updater.update(state, period(t, 40, config), rng=torch_rng(t))
    data = period(4, 30, config)
    logits = [slow_logit(config, state.base.params, data, n) for n in range(30)]
    expected = np.empty(30)
    for rank, n in enumerate(sorted(range(30), key=lambda n: -logits[n])):
        expected[n] = rank / 30
    np.testing.assert_allclose(updater.log_weights(state, data), expected, atol=1e-12)


def test_of_equal_scores_the_earlier_ranks_better() -> None:
    updater = spmf()
    state = updater.update(updater.initial(torch_rng(0)), period(1), rng=torch_rng(0))
    alike = make_period([1] * 4, [2] * 4, [[]] * 4, [1.0] * 4, users=7, items=11)
    assert updater.log_weights(state, alike).tolist() == [0, 0.25, 0.5, 0.75]


def learned(updater: ReservoirUpdate, *periods: PeriodData) -> SpmfState:
    state = updater.initial(torch_rng(0))
    for t, data in enumerate(periods, start=1):
        state = updater.update(state, data, rng=torch_rng(t))
    return state


MIXED = [float(i % 5 < 2) for i in range(200)]
"""Two positives, three negatives, and so on."""


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_old_interactions_come_first_in_time_order_then_the_period_as_stored(ratio: float) -> None:
    updater = spmf(ratio=ratio)
    state = learned(updater, numbered(0, MIXED[:60]), numbered(60, MIXED[:40]))
    data = numbered(100, MIXED[:59])
    data = replace(data, item=data.item.flip(0))  # in no order that a sort would find
    everything = rows(listed([numbered(0, MIXED[:60]), numbered(60, MIXED[:40])]))
    drawn_before = None
    for seed in range(5):
        together = updater.rehearsal(state, data, torch_rng(seed))
        drawn, own = rows(together)[: len(together) - 59], rows(together)[len(together) - 59 :]
        assert own == rows(data)
        positives = sum(row[3] == 1 for row in drawn)
        assert positives == math.floor(ratio * 24)  # of 59: ⌈59·2/5⌉
        assert len(drawn) - positives == math.floor(ratio * 35)
        numbers = [row[1] - 1 for row in drawn]
        assert numbers == sorted(set(numbers))
        assert drawn == [everything[n] for n in numbers]
        assert (together.users, together.items) == (data.users, data.items)
        assert not drawn or drawn != drawn_before
        drawn_before = drawn


def test_the_rows_are_trained_on_in_that_order() -> None:
    updater, data = unrounded(spmf()), numbered(100, MIXED[:59])
    state = learned(updater, numbered(0, MIXED[:60]), numbered(60, MIXED[:40]))
    together = updater.rehearsal(state, data, torch_rng(7))
    assert len(together) == 59 + 2 + 3
    got = updater.run_stage("update_base", state, data, rng=torch_rng(7))
    expected = updater.base.train(state.base, together, torch_rng(1), shuffle=False)
    assert same(got.base, expected)  # no coin is tossed but for the sample
    shuffled = updater.base.train(state.base, together, torch_rng(1))
    assert not same(got.base, shuffled)


def test_positives_are_drawn_by_weight_and_negatives_uniformly() -> None:
    """Half of six positives, by the enumerated chances of drawing one by one; a third of nine negatives."""
    updater, draws = spmf(ratio=1.0), 1000  # drawn uniformly, the best and the worst would be seven deviations off
    state = learned(updater, numbered(0, MIXED[:15]))
    data = numbered(15, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    logits = {n: slow_logit(SMALL, state.base.params, numbered(0, MIXED[:15]), n) for n in arrivals(state, 1)}
    ranked = sorted(logits, key=lambda n: -logits[n])
    weight = {n: math.exp(rank / 6) for rank, n in enumerate(ranked)}
    expected = dict.fromkeys(range(15), 3 / 9)
    expected |= dict.fromkeys(logits, 0.0)
    for chosen in itertools.permutations(logits, 3):
        left, chance = sum(weight.values()), 1.0
        for n in chosen:
            chance *= weight[n] / left
            left -= weight[n]
        for n in chosen:
            expected[n] += chance
    assert expected[ranked[-1]] > 1.3 * expected[ranked[0]]
    found, rng = np.zeros(15), torch_rng(3)
    for _ in range(draws):
        together = updater.rehearsal(state, data, rng)
        assert len(together) == 3 + 3 + 6
        found[together.item[:6].long() - 1] += 1
    near(found, np.array([expected[n] for n in range(15)]), draws)


def test_more_than_there_is_cannot_be_drawn() -> None:
    updater = spmf(ratio=3.0)
    state = learned(updater, numbered(0, MIXED[:15]))
    together = updater.rehearsal(state, numbered(15, MIXED[:20]), torch_rng(0))
    assert rows(together) == rows(listed([numbered(0, MIXED[:15]), numbered(15, MIXED[:20])]))


@pytest.mark.parametrize("reservoir", [5, None])
def test_the_first_period_is_learned_as_by_iu(reservoir: int | None) -> None:
    updater = ReservoirUpdate(SMALL, SpmfConfig(reservoir=reservoir))
    plain = IncrementalUpdate(SMALL)
    start, data = updater.initial(torch_rng(0)), numbered(0, MIXED[:50])
    got = updater.update(start, data, rng=torch_rng(1))
    assert same(got.base, plain.update(start.base, data, rng=torch_rng(1)))
    assert got.seen == (30, 20)
    kept = [arrivals(got, label) for label in (0, 1)]
    assert [len(k) for k in kept] == ([5, 5] if reservoir else [30, 20])
    if reservoir is None:
        assert kept == [[i for i in range(50) if MIXED[i] == label] for label in (0, 1)]


def remember(
    updater: ReservoirUpdate, parts: Sequence[PeriodData], rng: torch.Generator, *, start: SpmfState | None = None
) -> SpmfState:
    """The reservoirs after some periods; whoever draws thousands of them makes what nothing is drawn for once."""
    state = updater.initial(torch_rng(0)) if start is None else start
    for data in parts:
        state = updater.remembered(state, data, rng)
    return state


SIZES = [[3, 4, 9], [8, 1, 7], [2, 2, 1, 20], [16], [1, 15]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_row_that_ever_came_is_as_likely_to_be_kept(sizes: list[int]) -> None:
    """Five of each class; negatives and positives of their own."""
    updater, draws, rng = spmf(reservoir=5), 1500, torch_rng(1)
    starts = np.cumsum([0, *sizes]) * 2
    parts = [numbered(int(start), [0.0, 1.0] * n) for start, n in zip(starts[:-1], sizes, strict=True)]
    total = sum(sizes)
    found, pairs = np.zeros(2 * total), np.zeros((total, total))
    whole = int((np.cumsum(sizes) <= 5).sum())  # nothing is drawn while everything is kept
    start = remember(updater, parts[:whole], rng)
    assert arrivals(start, 0) + arrivals(start, 1) == [*range(0, starts[whole], 2), *range(1, starts[whole], 2)]
    for _ in range(draws):
        state = remember(updater, parts[whole:], rng, start=start)
        assert state.seen == (total, total)
        for label in (0, 1):
            kept = arrivals(state, label)
            assert len(kept) == 5
            found[kept] += 1
        for a, b in itertools.combinations(kept, 2):
            pairs[a // 2, b // 2] += 1
    near(found, 5 / total, draws)
    # And so is every pair: 5·4 / (n·(n-1)).
    near(pairs[np.triu_indices(total, 1)], 20 / (total * (total - 1)), draws)


def test_until_it_is_full_everything_is_kept() -> None:
    updater = spmf(reservoir=10)
    parts = [numbered(0, [1.0]), numbered(1, MIXED[:10]), numbered(11, MIXED[:10]), numbered(21, MIXED[:5])]
    for upto in range(1, 4):
        state = remember(updater, parts[:upto], torch_rng(0))
        labels = [label for data in parts[:upto] for label in data.label.tolist()]
        assert arrivals(state, 1) == [i for i, label in enumerate(labels) if label]
    full = remember(updater, parts, torch_rng(0))
    assert [len(arrivals(full, label)) for label in (0, 1)] == [10, 10]
    assert full.seen == (15, 11)


def slow_reservoir(sizes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """methods.md, section 4, step 4, word by word; all of the first period is the initial content."""
    kept, seen = list(range(sizes[0])), sizes[0]
    for n in sizes[1:]:
        capacity = len(kept)
        new = [seen + j for j in range(n) if rng.random() < capacity / (seen + j + 1)]
        gone = set(rng.choice(capacity, size=len(new), replace=False).tolist())
        kept = [row for i, row in enumerate(kept) if i not in gone] + new
        seen += n
    return kept


def test_the_authors_reservoir_is_replaced_in_one_block() -> None:
    """After one period by the formulas, after two against the slow version."""
    updater, draws, rng = ReservoirUpdate(SMALL, SpmfConfig.reference()), 3000, torch_rng(2)
    sizes = [8, 6, 5]
    parts = [numbered(start, [1.0] * n) for start, n in ((0, 8), (8, 6), (14, 5))]
    one, two, slow = np.zeros(14), np.zeros(19), np.zeros(19)
    slow_rng = np.random.default_rng(0)
    start = remember(updater, parts[:1], rng)  # all of the first
    assert arrivals(start, 1) == list(range(8))
    for _ in range(draws):
        state = updater.remembered(start, parts[1], rng)
        one[arrivals(state, 1)] += 1
        kept = arrivals(updater.remembered(state, parts[2], rng), 1)
        assert len(kept) == 8
        two[kept] += 1
        slow[slow_reservoir(sizes, slow_rng)] += 1
    new = [8 / (8 + j + 1) for j in range(6)]
    near(one, np.array([1 - sum(new) / 8] * 8 + new), draws)
    p = slow / draws
    assert bool((np.abs(two - slow) / draws <= 5 * np.sqrt(2 * p * (1 - p) / draws)).all())


def test_a_period_many_times_the_reservoir_leaves_it_as_large_as_it_was() -> None:
    updater = ReservoirUpdate(SMALL, SpmfConfig.reference())
    for seed in range(20):
        state = remember(updater, [numbered(0, [1.0] * 3), numbered(3, [1.0] * 500)], torch_rng(seed))
        assert len(arrivals(state, 1)) == 3


def test_a_class_that_comes_late_starts_its_reservoir_then() -> None:
    for updater, expected in ((spmf(reservoir=4), 4), (ReservoirUpdate(SMALL, SpmfConfig.reference()), 6)):
        parts = [numbered(0, [0.0] * 5), numbered(5, [0.0] * 2), numbered(7, [1.0] * 6), numbered(13, [1.0, 0.0])]
        state = remember(updater, parts[:2], torch_rng(0))
        assert state.reservoirs[1] is None
        assert "reservoir.positive" not in updater.dump(state)
        assert updater.rehearsal(state, parts[2], torch_rng(0)) is parts[2]
        state = remember(updater, parts, torch_rng(0))
        assert state.seen == (8, 7)
        assert len(arrivals(state, 1)) == expected


@configs
def test_what_is_drawn_fits_into_the_tables_of_today(config: EmbeddingMLPConfig) -> None:
    """The reservoirs were last added to at different times, by periods with different tables and catalogues."""
    updater = spmf(config, ratio=1.0)
    state = updater.initial(torch_rng(0))
    for t, labels in enumerate(([1.0] * 20, [0.0] * 20, [1.0] * 20, [0.0] * 30), start=1):
        state = updater.update(state, period(t, len(labels), config, labels=labels), rng=torch_rng(t))
    data = period(9, 30, config)
    together = updater.rehearsal(state, data, torch_rng(0))
    assert len(together) == 60
    assert (together.sizes, together.item_categories is data.item_categories) == (data.sizes, True)
    assert all(r is not None and r.data.item_categories is None for r in state.reservoirs)
    updater.update(state, data, rng=torch_rng(0))


def test_a_reservoir_without_anything_new_keeps_its_bytes() -> None:
    updater = spmf(reservoir=20)
    state = learned(updater, numbered(0, MIXED[:50]))
    before = to_bytes(updater, state)
    after = to_bytes(updater, updater.update(state, numbered(50, [1.0] * 30), rng=torch_rng(2)))
    assert after["reservoir.negative"] == before["reservoir.negative"]
    assert after["reservoir.positive"] != before["reservoir.positive"]
    # One interaction more after thousands: most of the time it is not kept.
    seen = replace(state, seen=(10_000, 10_000))
    later = to_bytes(updater, updater.remembered(seen, numbered(50, [1.0]), torch_rng(0)))
    assert later["reservoir.positive"] == before["reservoir.positive"]
    assert later["updater"] != before["updater"]


def test_the_reservoirs_are_filled_by_pretraining() -> None:
    periods = [replace(numbered(start, MIXED[:40]), items=200) for start in (0, 40, 80, 120)]
    for reservoir, expected in ((None, [72, 48]), (50, [50, 48])):
        updater = ReservoirUpdate(SMALL, SpmfConfig(reservoir=reservoir), TrainingConfig.reference())
        state = updater.pretrained(periods[:3], periods[3], rng=torch_rng(0))
        assert state.seen == (72, 48)
        assert [len(arrivals(state, label)) for label in (0, 1)] == expected
        assert max(arrivals(state, 0) + arrivals(state, 1)) < 120
        plain = IncrementalUpdate(SMALL, TrainingConfig.reference())
        assert same(state.base, plain.pretrained(periods[:3], periods[3], rng=torch_rng(0)))


def test_taking_rows_keeps_histories() -> None:
    data = numbered(0, [1.0] * 9)
    taken = Reservoir(data, torch.arange(9)).take(torch.tensor([1, 3, 6]))
    assert rows(taken.data) == [rows(data)[n] for n in (1, 3, 6)]
    assert taken.arrival.tolist() == [1, 3, 6]
