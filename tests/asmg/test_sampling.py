"""Sampled negatives, against a slow loop over the rows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.datasets import InteractionLog, SamplingMode, sample_negatives
from tests.asmg.logs import MODES, make_log, positive_logs, rng


def slow_known(log: InteractionLog, row: int, mode: SamplingMode) -> set[str]:
    """The items that the user of a row has interacted with, as the rule says it, row by row."""
    if mode == "whole_log":
        return {item for user, item in zip(log.user_ids, log.item_ids, strict=True) if user == log.user_ids[row]}
    return {
        log.item_ids[other]
        for other in range(len(log))
        if log.user_ids[other] == log.user_ids[row]
        and (log.timestamps_ms[other], other) <= (log.timestamps_ms[row], row)
    }


@pytest.mark.parametrize("mode", MODES)
@given(log=positive_logs, seed=st.integers(0, 9), per_positive=st.integers(1, 3))
@settings(deadline=None)
def test_negatives_follow_the_rule(mode: SamplingMode, log: InteractionLog, seed: int, per_positive: int) -> None:
    everything = set(log.item_ids)
    sampled, without_negative = sample_negatives(log, rng=rng(seed), per_positive=per_positive, mode=mode)
    place = 0
    missing = 0
    for row in range(len(log)):
        assert (sampled.user_ids[place], sampled.item_ids[place]) == (log.user_ids[row], log.item_ids[row])
        assert (sampled.timestamps_ms[place], sampled.labels[place]) == (log.timestamps_ms[row], 1)
        place += 1
        allowed = everything - slow_known(log, row, mode)
        missing += not allowed
        for _ in range(per_positive if allowed else 0):
            assert sampled.item_ids[place] in allowed
            assert (sampled.user_ids[place], sampled.timestamps_ms[place]) == (
                log.user_ids[row],
                log.timestamps_ms[row],
            )
            assert sampled.labels[place] == 0
            place += 1
    assert place == len(sampled)
    assert missing == without_negative
    assert not sampled.positives_only


@pytest.mark.parametrize("mode", MODES)
def test_negatives_are_uniform_over_the_items_allowed(mode: SamplingMode) -> None:
    # By hand: of a..f, u knows a, b in the whole log but only a at the first row. Other users make c..f exist.
    rows = [("u", "a", 0), ("u", "b", 1), *(("v", item, 0) for item in "cdef")]
    draws = 6000
    sampled, _ = sample_negatives(make_log(rows), rng=rng(), per_positive=draws, mode=mode)
    counts = Counter(sampled.item_ids[1 : 1 + draws])
    allowed = "cdef" if mode == "whole_log" else "bcdef"
    assert set(counts) == set(allowed)
    expected = draws / len(allowed)
    # Five standard deviations of a binomial count.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_one_item_left_is_found_among_many(mode: SamplingMode) -> None:
    # u knows 999 of 1000 items: 32 rounds of drawing miss the last one with probability 0.97, so the exact way is used.
    rows = [("u", f"i{n}", 0) for n in range(999)] + [("v", "last", 0)]
    sampled, without_negative = sample_negatives(make_log(rows), rng=rng(), mode=mode)
    assert without_negative == 0
    assert sampled.item_ids[2 * 998 + 1] == "last"
    if mode == "whole_log":
        assert set(sampled.item_ids[1 : 2 * 999 : 2]) == {"last"}


@pytest.mark.parametrize("mode", MODES)
def test_equal_seeds_give_equal_negatives_and_others_do_not(mode: SamplingMode) -> None:
    log = make_log([(f"u{n % 7}", f"i{n % 100}", n) for n in range(500)])
    first, again, other = (sample_negatives(log, rng=rng(seed), mode=mode).log.item_ids for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_who_knows_every_item_gets_no_negative() -> None:
    log = make_log([("u", "a", 0), ("u", "b", 1), ("v", "a", 2)])
    sampled, without_negative = sample_negatives(log, rng=rng())
    assert list(zip(sampled.user_ids, sampled.item_ids, sampled.labels, strict=True)) == [
        ("u", "a", 1),
        ("u", "b", 1),
        ("v", "a", 1),
        ("v", "b", 0),
    ]
    assert without_negative == 2


def test_so_far_follows_time_and_not_the_order_of_the_file() -> None:
    # u chose b before a; at the time of b, a is allowed, at the time of a nothing is.
    sampled, without_negative = sample_negatives(make_log([("u", "a", 9), ("u", "b", 5)]), rng=rng(), mode="so_far")
    assert list(sampled.item_ids) == ["a", "b", "a"]
    assert without_negative == 1


def test_periods_and_categories_survive_sampling() -> None:
    log = make_log([("u", "a", 0), ("v", "b", 1)], period=np.array([4, 5]), categories={"a": ("x",)})
    sampled, _ = sample_negatives(log, rng=rng())
    assert sampled.period is not None
    assert list(sampled.period) == [4, 4, 5, 5]
    assert sampled.categories == log.categories


def test_an_empty_log_stays_empty() -> None:
    sampled, without_negative = sample_negatives(make_log([]), rng=rng())
    assert (len(sampled), without_negative) == (0, 0)


def test_bad_arguments_of_sampling_are_named() -> None:
    log = make_log([("u", "a", 0), ("v", "b", 0)])
    with pytest.raises(ValueError, match="per_positive: expected at least 1; received 0"):
        sample_negatives(log, rng=rng(), per_positive=0)
    with pytest.raises(ValueError, match="mode: expected 'whole_log' or 'so_far'; received 'none'"):
        sample_negatives(log, rng=rng(), mode="none")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="log: expected positives only; received 2 negatives"):
        sample_negatives(sample_negatives(log, rng=rng()).log, rng=rng())
