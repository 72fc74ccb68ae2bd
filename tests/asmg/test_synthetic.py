"""The drifting stream: repeatable, drawn from the probabilities that it tells, and really drifting."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from asmg.datasets.synthetic import FIELDS, DriftConfig, DriftPeriod, drift_stream

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


def test_the_log_is_drawn_from_all_pairs() -> None:
    for period in periods(SMALL, 3):
        pairs = period.pairs
        assert pairs is not None
        user, item = (
            np.array([ids.index(id_) for id_ in of_log])
            for ids, of_log in ((pairs.user_ids, period.user_ids), (pairs.item_ids, period.item_ids))
        )
        assert np.array_equal(pairs.probabilities(user, item), period.probabilities)


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


class TestFields:
    """A stream whose clicks depend on fields too."""

    def test_they_change_neither_who_is_there_nor_what_is_shown(self) -> None:
        for plain_one, period in zip(periods(SMALL, 4, 2), periods(replace(SMALL, fields=True), 4, 2), strict=True):
            assert (plain_one.user_ids, plain_one.item_ids) == (period.user_ids, period.item_ids)
            assert plain_one.new_items == period.new_items
            assert plain_one.contexts == () and plain_one.new_users == plain_one.item_features == {}
            assert plain_one.predictable is plain_one.of_pairs is None
            assert plain_one.probabilities.tolist() != period.probabilities.tolist()

    def test_every_value_is_one_of_the_schema_and_told_before_it_counts(self) -> None:
        known_users: dict[str, object] = {}
        known_items: dict[str, object] = {}
        for period in periods(replace(SMALL, fields=True, user_turnover=0.2), 3):
            assert not known_users.keys() & period.new_users.keys()
            assert period.item_features.keys() == period.new_items.keys()
            known_users |= period.new_users
            known_items |= period.item_features
            assert set(period.user_ids) <= known_users.keys() and set(period.item_ids) <= known_items.keys()
            assert len(period.contexts) == SMALL.events
            for context in period.contexts:
                FIELDS.check_context(context)
                assert context.keys() == {"device", "position"}
        for features in known_users.values():
            FIELDS.check_user(features)  # type: ignore[arg-type] # a mapping
        for features in known_items.values():
            FIELDS.check_item(features)  # type: ignore[arg-type]

    def test_a_period_is_a_day(self) -> None:
        first, second = periods(replace(SMALL, fields=True), 2)
        day, hour = 86_400_000, 3_600_000
        assert {int(t) // day for t in first.timestamps_ms} == {int(second.timestamps_ms[0]) // day - 1}
        assert len({int(t) // hour for t in first.timestamps_ms}) == 24

    def test_each_probability_is_that_of_who_knows_so_much(self) -> None:
        """Among the likely and the unlikely by any of the three, and on each device and position by the first."""
        for period in periods(DriftConfig(events=40_000, fields=True), 2, seed=2):
            y = period.labels.astype(float)
            assert period.predictable is not None and period.of_pairs is not None
            device = np.array([context["device"] for context in period.contexts])
            position = np.array([context["position"] for context in period.contexts])
            everyone = np.ones(len(y), bool)
            groups = [(period.probabilities, position == n) for n in range(5)]
            groups += [(p, device == d) for p in (period.probabilities, period.predictable) for d in set(device)]
            groups += [(p, everyone) for p in (period.probabilities, period.predictable, period.of_pairs)]
            for p, which in groups:
                for part in (which, which & (p < 0.2), which & (p >= 0.2) & (p < 0.6), which & (p >= 0.6)):
                    # The mean over what is unknown has the variance of a label drawn with it.
                    z = (y[part] - p[part]).sum() / np.sqrt((p[part] * (1 - p[part])).sum())
                    assert part.sum() > 100 and abs(z) < 4.5
            # Who knows less is wrong about those whom the rest tells apart.
            part = position == 0
            z = (y - period.predictable)[part].sum() / np.sqrt(
                (period.predictable * (1 - period.predictable))[part].sum()
            )
            assert z > 10

    def test_who_knows_more_ranks_better(self) -> None:
        for period in periods(DriftConfig(fields=True), 3):
            told = (period.of_pairs, period.predictable, period.probabilities)
            least, more, most = (roc_auc_score(period.labels, p) for p in told)
            assert least + 0.01 < more and more + 0.01 < most

    def test_a_prediction_does_not_know_the_position_and_a_pair_not_the_context(self) -> None:
        period = periods(DriftConfig(users=4, items=4, events=4_000, fields=True), 1)[0]
        assert period.predictable is not None and period.of_pairs is not None
        hours = (period.timestamps_ms // 3_600_000).tolist()
        keys = zip(period.user_ids, period.item_ids, period.contexts, hours, strict=True)
        in_context: dict[object, set[float]] = {}
        with_position: dict[object, set[float]] = {}
        of_pair: dict[object, set[float]] = {}
        for n, (user, item, context, hour) in enumerate(keys):
            in_context.setdefault((user, item, context["device"], hour), set()).add(round(period.predictable[n], 12))
            place = (user, item, context["device"], hour, context["position"])
            with_position.setdefault(place, set()).add(round(period.probabilities[n], 12))
            of_pair.setdefault((user, item), set()).add(round(period.of_pairs[n], 12))
        for found in (in_context, with_position, of_pair):
            assert all(len(values) == 1 for values in found.values())
        assert len(of_pair) == 16 < len(in_context) < len(with_position)


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
