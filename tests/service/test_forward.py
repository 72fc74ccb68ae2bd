"""The compiled forward pass equals the reference in torch, and the reference equals the library's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.serving.fields import NO_VALUES
from service.serving.forward.interface import Forward
from service.serving.forward.reference import reference_forward
from service.serving.id_hashes import NOBODY, hash_ids
from service.serving.snapshot import NOTHING_RECENT, Prediction, Snapshot
from tests.service.serving_support import ITEMS, TOLERANCE, USERS, random_model, random_statistics

# Of one character each up to 256 of four bytes, the longest that a client may send.
ODD_IDS = ["é", "日本語", "😀" * 256, "a" * 255 + "😀", "ß", "i", "\x7f", "\r\n", "0", " "]
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")


def reference(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, forward=reference_forward(snapshot.meta, snapshot.files))


def assert_agree(one: Prediction, other: Prediction) -> None:
    assert one.scores.dtype == other.scores.dtype == np.float32
    assert np.abs(one.scores - other.scores).max() <= TOLERANCE
    assert one.cold_user == other.cold_user
    assert one.cold_items.tolist() == other.cold_items.tolist()


SHAPES = [
    pytest.param(dim, hidden, categories, id=f"{dim}-{'x'.join(map(str, hidden)) or 'mf'}-{categories}")
    for dim, hidden in ((1, (1,)), (8, (12, 6)), (3, (7, 5, 3)), (16, (65,)), (5, (33, 1)), (8, ()), (1, ()), (7, ()))
    for categories in (False, True)
]


@pytest.mark.parametrize("dim, hidden, categories", SHAPES)
def test_compiled_and_reference_agree(tmp_path: Path, dim: int, hidden: tuple[int, ...], categories: bool) -> None:
    """For every shape of a model, for 1 to 1000 candidates including unknown ones, and for any history length."""
    items = [*ITEMS, *ODD_IDS]
    made = random_model(2, dim=dim, hidden=hidden, categories=categories, users=[*USERS, *ODD_IDS], items=items)
    snapshot = made.snapshot(tmp_path)
    snapshot.check()
    oracle = reference(snapshot)
    oracle.check()
    rng = np.random.default_rng(dim)
    pool = [*items, "never seen", "nobody"]
    seen = []
    for count in (1, 2, 63, 64, 65, 128, 129, 1000):
        for length in (0, 1, 2, 30):
            user = str(rng.choice([*USERS, *ODD_IDS, "stranger"]))
            asked = [str(item) for item in rng.choice(pool, count)]
            history = [str(item) for item in rng.choice(pool, length)]
            prediction = snapshot.predict(user, asked, history)
            assert_agree(prediction, oracle.predict(user, asked, history))
            expected = made.scores(user, asked, history).numpy()
            assert np.abs(prediction.scores - expected).max() <= TOLERANCE
            seen += prediction.scores.tolist()
    assert max(seen) - min(seen) > 0.05  # scores that could not be mistaken for one another


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "statistics"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """A snapshot, and the same with the reference forward pass."""
    items = [*ITEMS, *ODD_IDS]
    statistics = random_statistics(11, len(items)) if request.param else None
    ids = {"users": [*USERS, *ODD_IDS], "items": items}
    made = random_model(11, dim=8, hidden=(7, 5), dot=request.param, statistics=statistics, **ids)
    snapshot = made.snapshot(tmp_path_factory.mktemp("snapshot"))
    return snapshot, reference(snapshot)


IDS = st.one_of(st.sampled_from([*ITEMS, *USERS, *ODD_IDS]), st.text(LETTERS, max_size=300))


@settings(deadline=None)
@given(user=IDS, items=st.lists(IDS, min_size=1, max_size=200), history=st.lists(IDS, max_size=40))
def test_they_agree_on_any_ids(
    pair: tuple[Snapshot, Snapshot], user: str, items: list[str], history: list[str]
) -> None:
    compiled, oracle = pair
    assert_agree(compiled.predict(user, items, history), oracle.predict(user, items, history))


@settings(deadline=None)
@given(items=st.lists(IDS, min_size=1, max_size=200), history=st.lists(IDS, max_size=5), data=st.data())
def test_candidates_do_not_know_of_each_other(
    pair: tuple[Snapshot, Snapshot], items: list[str], history: list[str], data: st.DataObject
) -> None:
    """A candidate has the same score, bit for bit: alone, in a list, and in any order."""
    snapshot, _ = pair
    whole = snapshot.predict("u1", items, history)
    order = data.draw(st.permutations(range(len(items))))
    shuffled = snapshot.predict("u1", [items[n] for n in order], history)
    assert shuffled.scores.tolist() == whole.scores[order].tolist()
    assert shuffled.cold_items.tolist() == [place for place, n in enumerate(order) if n in whole.cold_items]
    place = data.draw(st.integers(0, len(items) - 1))
    alone = snapshot.predict("u1", [items[place]], history)
    assert alone.scores.tolist() == [whole.scores[place]]
    assert bool(len(alone.cold_items)) is (place in whole.cold_items)


FORWARDS = ["compiled", "reference"]


@pytest.mark.parametrize("which", FORWARDS)
def test_the_hash_of_nobody_is_the_cold_row(tmp_path: Path, which: str) -> None:
    """The hash 2⁶⁴ − 1 belongs to no known id; a request could contain an id with it."""
    snapshot = random_model(13).snapshot(tmp_path)
    if which == "reference":
        snapshot = reference(snapshot)
    asked, nobody = hash_ids(["u1", "i1"]), np.array([NOBODY], np.uint64)
    past = snapshot.score(asked, nobody)
    assert past.scores == snapshot.score(asked, hash_ids(["unknown"])).scores
    assert past.scores != snapshot.score(asked, hash_ids(["i1"])).scores
    prediction = snapshot.score(np.concatenate([nobody, asked[1:], nobody]), nobody)
    assert (prediction.cold_user, prediction.cold_items.tolist()) == (True, [1])


@pytest.mark.parametrize("which", FORWARDS)
@pytest.mark.parametrize("hidden", [(7, 5), ()])
def test_a_snapshot_without_any_id(tmp_path: Path, which: str, hidden: tuple[int, ...]) -> None:
    made = random_model(14, hidden=hidden, users=[], items=[])
    snapshot = made.snapshot(tmp_path)
    if which == "reference":
        snapshot = reference(snapshot)
    prediction = snapshot.predict("u1", ["i1", "i2"], ["i1"])
    assert np.abs(prediction.scores - made.scores("u1", ["i1", "i2"], ["i1"]).numpy()).max() <= TOLERANCE
    assert (prediction.cold_user, prediction.cold_items.tolist()) == (True, [0, 1])


def test_only_what_belongs_to_a_request_is_written(pair: tuple[Snapshot, Snapshot]) -> None:
    """The arrays around those that the machine code gets do not change."""
    for snapshot in pair:
        scores, cold = np.full(300, 7, np.float32), np.full(300, 7, np.int32)
        items = ["unknown"] * 100

        def ask(forward: Forward, some: NDArray[np.float32], few: NDArray[np.int32], items: list[str] = items) -> None:
            asked, past = hash_ids(["u1", *items]), hash_ids(["i1"])
            assert forward(asked, past, NOTHING_RECENT, NO_VALUES, some, few) == (100, False)

        ask(snapshot.forward, scores[100:200], cold[100:200])
        assert {*scores[:100].tolist(), *scores[200:].tolist(), *cold[:100].tolist(), *cold[200:].tolist()} == {7}
        assert cold[100:200].tolist() == list(range(100))
