"""The drifting stream: repeatable, drawn from the probabilities that it tells, and really drifting."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream

SMALL = DriftConfig(users=60, items=40, events=500, categories=5)


def periods(config: DriftConfig, count: int, seed: int = 0) -> list[DriftPeriod]:
    return list(islice(drift_stream(config, seed=seed), count))


def plain(period: DriftPeriod) -> list[object]:
    return [
        period.number, period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(),
        period.probabilities.tolist(), period.new_items,
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_stream() -> None:
    first, same, other = (list(map(plain, periods(SMALL, 4, seed))) for seed in (3, 3, 4))
    assert first == same
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_reading_further_changes_nothing_of_what_was_read() -> None:
    """A period shares nothing with the generator's state."""
    stream = drift_stream(SMALL, seed=1)
    first = next(stream)
    kept = plain(first)
    for _ in range(3):
        next(stream)
    assert plain(first) == kept


@settings(deadline=None, max_examples=25)
@given(
    st.builds(
        DriftConfig,
        users=st.integers(1, 30),
        items=st.integers(1, 30),
        events=st.integers(1, 80),
        categories=st.integers(1, 6),
        dim=st.integers(1, 5),
        user_turnover=st.floats(0, 1),
        item_turnover=st.floats(0, 1),
        interest_persistence=st.floats(0, 1),
        interest_share=st.floats(0, 1),
        popularity_persistence=st.floats(0, 1),
    ),
    st.integers(0, 1000),
)
def test_every_stream_is_a_log_whose_items_are_introduced_before_they_are_shown(config: DriftConfig, seed: int) -> None:
    known: dict[str, tuple[str, ...]] = {}
    end = 0
    for number, period in enumerate(periods(config, 4, seed), start=1):
        assert period.number == number
        lengths = {len(getattr(period, n)) for n in
                   ("user_ids", "item_ids", "labels", "timestamps_ms", "probabilities")}  # fmt: skip
        assert lengths == {config.events}
        assert not known.keys() & period.new_items.keys()
        known |= period.new_items
        assert set(period.item_ids) <= known.keys()
        assert len(set(period.user_ids)) <= config.users
        assert set(period.labels.tolist()) <= {0, 1}
        assert ((period.probabilities > 0) & (period.probabilities < 1)).all()
        assert (np.diff(period.timestamps_ms) >= 0).all()
        assert period.timestamps_ms[0] >= end
        end = period.timestamps_ms[-1]
    for names in known.values():
        assert 1 <= len(names) == len(set(names)) <= 2
        assert set(names) <= {f"c{k}" for k in range(config.categories)}


def test_the_introduced_items_are_as_many_as_the_turnover_says() -> None:
    config = replace(SMALL, item_turnover=0.25)
    assert [len(p.new_items) for p in periods(config, 4)] == [40, 10, 10, 10]


def test_turnover_brings_new_ids_and_takes_old_ones_away() -> None:
    """With events in plenty every active id is seen, so the ids of two periods tell who came and who left."""
    config = DriftConfig(users=20, items=20, events=20_000, user_turnover=0.2, item_turnover=0.1)
    seen = periods(config, 5)
    for name, size, changed in (("user_ids", 20, 4), ("item_ids", 20, 2)):
        sets = [set(getattr(p, name)) for p in seen]
        # A rare visitor may be missed: visits are log-normal, so allow one or two.
        assert all(size - 2 <= len(s) <= size for s in sets)
        ever: set[str] = set()
        for before, after in pairwise(sets):
            ever |= before
            assert changed - 2 <= len(after - ever) <= changed
            assert changed - 2 <= len(before - after) <= changed + 2
        assert len(ever | sets[-1]) > size + 2 * changed


def test_without_turnover_the_ids_stay() -> None:
    config = DriftConfig(users=5, items=4, events=4000, user_turnover=0, item_turnover=0)
    first, *others = periods(config, 4)
    assert all(set(p.user_ids) == set(first.user_ids) == {f"u{n}" for n in range(5)} for p in others)
    assert all(p.new_items == {} for p in others)
    assert set(first.new_items) == {f"i{n}" for n in range(4)}


def test_labels_are_drawn_with_the_probabilities_told() -> None:
    """Sum of labels minus sum of probabilities has variance Σp(1-p), over all and among the likely and the unlikely."""
    for period in periods(DriftConfig(), 5, seed=2):
        p, y = period.probabilities, period.labels.astype(float)
        for part in (p >= 0, p < 0.2, (p >= 0.2) & (p < 0.6), p >= 0.6):
            z = (y[part] - p[part]).sum() / np.sqrt((p[part] * (1 - p[part])).sum())
            assert part.sum() > 500
            assert abs(z) < 4.5


def test_the_true_probability_beats_a_shuffled_one() -> None:
    rng = np.random.default_rng(0)
    for period in periods(DriftConfig(events=5000), 3):
        assert roc_auc_score(period.labels, period.probabilities) > 0.7
        assert abs(roc_auc_score(period.labels, rng.permutation(period.probabilities)) - 0.5) < 0.05


def pair_probabilities(period: DriftPeriod) -> dict[tuple[str, str], float]:
    return dict(zip(zip(period.user_ids, period.item_ids, strict=True), period.probabilities.tolist(), strict=True))


def test_a_pair_has_one_probability_within_a_period() -> None:
    period = periods(DriftConfig(users=5, items=5, events=2000), 1)[0]
    found: dict[tuple[str, str], set[float]] = {}
    for user, item, p in zip(period.user_ids, period.item_ids, period.probabilities.tolist(), strict=True):
        found.setdefault((user, item), set()).add(p)
    assert all(len(values) == 1 for values in found.values())
    assert len({v for values in found.values() for v in values}) > 10


def test_preferences_drift_unless_everything_persists() -> None:
    still = DriftConfig(
        users=5,
        items=5,
        events=2000,
        user_turnover=0,
        item_turnover=0,
        interest_persistence=1,
        popularity_persistence=1,
    )
    for config, least, most in ((still, 0, 1e-12), (replace(still, interest_persistence=0.5), 0.05, 1)):
        first, later = (pair_probabilities(p) for p in (lambda s: (s[0], s[2]))(periods(config, 3)))
        common = first.keys() & later.keys()
        assert len(common) > 10
        change = np.mean([abs(first[pair] - later[pair]) for pair in common])
        assert least <= change <= most


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"users": 0}, "^users: expected at least 1; received 0"),
        ({"events": -1}, "^events: expected at least 1; received -1"),
        ({"dim": 0}, "^dim: expected at least 1; received 0"),
        ({"item_turnover": 1.5}, r"^item_turnover: expected a number in \[0, 1\]; received 1.5"),
        ({"interest_share": -0.1}, r"^interest_share: expected a number in \[0, 1\]; received -0.1"),
        ({"popularity_persistence": float("nan")}, r"^popularity_persistence: expected a number in \[0, 1\]"),
    ],
)
def test_a_stream_of_no_size_is_refused_by_the_name_of_the_field(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftConfig(**values)  # type: ignore[arg-type]
