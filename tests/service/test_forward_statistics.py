"""Statistics in the forward pass equal those that training computes for the same interaction."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.serving.forward.reference import reference_forward
from service.serving.snapshot import Snapshot
from tests.service.serving_support import ITEMS, USERS, Made, random_model, random_statistics

TOLERANCE = 1e-6
"""By how much a score may differ from the one of training: what is logged with it is trained on later."""

NEW = [f"new{n}" for n in range(6)]
"""Items that were never in a closed period."""


def reference(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, forward=reference_forward(snapshot.meta, snapshot.files))


def assert_equal(
    made: Made, snapshot: Snapshot, user: str, items: list[str], past: list[str], recent: list[int]
) -> None:
    """Compiled = reference = the library on the tables that were encoded."""
    expected = made.scores(user, items, past, recent).numpy()
    for one in (snapshot, reference(snapshot)):
        found = one.predict(user, items, past, np.array(recent, np.int32))
        assert np.abs(found.scores - expected).max() <= TOLERANCE
        assert found.cold_user is (user not in made.users)
        assert found.cold_items.tolist() == [n for n, item in enumerate(items) if item not in made.items]


@pytest.mark.parametrize("dot", [False, True], ids=["", "dot"])
@pytest.mark.parametrize("categories", [False, True], ids=["", "categories"])
@pytest.mark.parametrize("dim, hidden", [(8, (12, 6)), (16, (32, 16)), (3, (5,))])
def test_all_ways_to_a_score_are_one(
    tmp_path: Path, dim: int, hidden: tuple[int, ...], categories: bool, dot: bool
) -> None:
    """For 1 to 1000 candidates, known, new and repeated, some of which the user has clicked."""
    statistics = random_statistics(dim, len(ITEMS) + 4)  # some items have lost their ids
    made = random_model(1, dim=dim, hidden=hidden, categories=categories, dot=dot, statistics=statistics)
    snapshot = made.snapshot(tmp_path)
    snapshot.check()
    reference(snapshot).check()
    rng = np.random.default_rng(dim)
    pool, seen = [*ITEMS, *NEW], []
    for count in (1, 2, 63, 64, 65, 1000):
        for length in (0, 1, 9, 10, 11, 30):
            user = str(rng.choice([*USERS, "stranger"]))
            items, past = ([str(item) for item in rng.choice(pool, size)] for size in (count, length))
            recent = [30, int(rng.integers(11)), int(rng.integers(31))] if length else [0, 0, 0]
            assert_equal(made, snapshot, user, items, past, recent)
            seen.append(made.numeric(items, past, recent))
    # Every statistic told something: else this would have compared nothing.
    assert bool((torch.cat([numbers for numbers in seen if numbers is not None]).std(0) > 0).all())


RECENT = st.tuples(st.integers(0, 30), st.integers(0, 10), st.integers(0, 30)).map(list)
SOME = st.sampled_from([*ITEMS[:12], *NEW])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    periods=st.integers(1, 3),
    size=st.sampled_from([1, 5, 300]),
    neighbours=st.sampled_from([1, 3, 32]),
    items=st.lists(SOME, min_size=1, max_size=40),
    past=st.lists(SOME, max_size=30),
    recent=RECENT,
)
def test_of_any_state(
    seed: int, periods: int, size: int, neighbours: int, items: list[str], past: list[str], recent: list[int]
) -> None:
    statistics = random_statistics(seed, 15, periods=periods, neighbours=neighbours, size=size)
    gone = torch.arange(1, 16)[torch.rand(15, generator=torch.Generator().manual_seed(seed)) < 0.1]
    made = random_model(seed, dim=4, dot=True, statistics=statistics.forgotten({"item": gone}))
    with TemporaryDirectory() as folder:
        snapshot = made.snapshot(Path(folder))
        snapshot.check()
        assert_equal(made, snapshot, "u1", items, past, recent)
