"""The serving snapshot: the same numbers as the model, in one file that processes share."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from service.files import create
from service.serving.encode import Known, encode_base
from service.serving.encode.check_questions import STRANGER
from service.serving.forward.mlp import score_mlp
from service.serving.id_hashes import hash_ids
from service.serving.id_index import IdIndex
from service.serving.prior import prior_snapshot
from service.serving.snapshot import Prediction, Snapshot, WrongScores
from service.serving.snapshot_file import QUESTIONS
from service.serving.tensor_file import read_through
from tests.service.serving_support import (
    ITEMS,
    USERS,
    Made,
    base_of,
    known,
    metadata_of,
    random_model,
    random_statistics,
)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "categories"])
def made(request: pytest.FixtureRequest) -> Made:
    return random_model(3, categories=request.param)


@pytest.fixture
def snapshot(made: Made, tmp_path: Path) -> Snapshot:
    return made.snapshot(tmp_path)


def equal(one: Prediction, other: Prediction) -> bool:
    return bool(
        np.array_equal(one.scores, other.scores)
        and one.cold_user == other.cold_user
        and np.array_equal(one.cold_items, other.cold_items)
    )


class TestPredict:
    @pytest.mark.parametrize("length", [0, 1, 2, 30])
    @pytest.mark.parametrize("user", ["u1", "u7", "stranger"])
    def test_equals_the_model(self, snapshot: Snapshot, made: Made, user: str, length: int) -> None:
        # Every third is unknown, one repeats.
        history = ["never seen" if n % 3 == 1 else ITEMS[(5 * n) % 40] for n in range(length)]
        items = ["i49", "i1", "new item", "i1", "i17", ""]
        prediction = snapshot.predict(user, items, history)
        assert prediction.scores.dtype == np.float32
        assert prediction.scores == pytest.approx(made.scores(user, items, history).numpy(), rel=1e-5)
        assert len({round(float(score), 6) for score in prediction.scores}) == 4  # the model tells the four items apart
        assert prediction.cold_items.tolist() == [2, 5]
        assert prediction.cold_user is (user == "stranger")

    def test_only_the_first_thirty_of_a_history_count(self, snapshot: Snapshot) -> None:
        history = [f"i{n}" for n in range(1, 41)]
        forty = snapshot.predict("u1", ["i3"], history).scores
        assert forty == snapshot.predict("u1", ["i3"], history[:30]).scores
        assert forty != snapshot.predict("u1", ["i3"], history[:29]).scores

    def test_unknown_ids_of_a_history_count_as_the_cold_item(self, snapshot: Snapshot) -> None:
        alone = snapshot.predict("u1", ["i3"], ["i5"]).scores
        assert snapshot.predict("u1", ["i3"], ["i5", "unknown"]).scores != alone
        assert (
            snapshot.predict("u1", ["i3"], ["x", "i5"]).scores
            == pytest.approx(snapshot.predict("u1", ["i3"], ["i5", "y"]).scores, rel=1e-6)
        )  # fmt: skip

    def test_lengths_of_one_and_a_thousand(self, snapshot: Snapshot) -> None:
        many = [f"i{n}" for n in range(1000)]
        prediction = snapshot.predict("u2", many, ["i4"])
        assert len(prediction.scores) == 1000
        assert prediction.cold_items.tolist() == [0, *range(50, 1000)]
        for place in (0, 1, 49, 50, 999):
            assert snapshot.predict("u2", [many[place]], ["i4"]).scores == pytest.approx(
                [prediction.scores[place]], rel=1e-5
            )

    def test_nothing_in_it_changes(self, snapshot: Snapshot) -> None:
        before = {name: tensor.copy() for name, tensor in snapshot.files.base.tensors.items()}
        first = snapshot.predict("u1", ["i1", "i2"], ["i3"])
        for user in ("u2", "stranger"):
            snapshot.predict(user, ["i9", "unknown"], [])
        assert equal(snapshot.predict("u1", ["i1", "i2"], ["i3"]), first)
        assert all(np.array_equal(snapshot.files.base.tensors[name], tensor) for name, tensor in before.items())
        for tensor in snapshot.files.base.tensors.values():
            with pytest.raises(ValueError, match="read-only"):
                tensor[...] = 0

    @pytest.mark.parametrize("user, item, past", [("u\0", "a", "b"), ("u", "a\0b", "b"), ("u", "a", "\0")])
    def test_ids_with_nul_are_refused(self, snapshot: Snapshot, user: str, item: str, past: str) -> None:
        with pytest.raises(ValueError, match="expected none with a NUL character"):
            snapshot.predict(user, ["c", item], [past])

    def test_after_its_pages_were_release_pages_of(self, snapshot: Snapshot) -> None:
        asked = ("u1", [*ITEMS, "unknown"], ITEMS[:30])
        before = snapshot.predict(*asked)
        for _ in range(2):
            snapshot.release_pages()
            assert equal(snapshot.predict(*asked), before)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return random_model(4, categories=True).snapshot(tmp_path_factory.mktemp("snapshot"))


CANDIDATES = st.lists(st.sampled_from([*ITEMS, "a", "b"]), min_size=1, max_size=20)


@settings(deadline=None)
@given(items=CANDIDATES, history=st.lists(st.sampled_from([*ITEMS, "c"]), max_size=5), data=st.data())
def test_the_order_of_the_candidates_is_the_order_of_the_scores(
    shared: Snapshot, items: list[str], history: list[str], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(items))))
    straight = shared.predict("u1", items, history)
    shuffled = shared.predict("u1", [items[n] for n in order], history)
    assert shuffled.scores == pytest.approx([straight.scores[n] for n in order], rel=1e-5)
    assert shuffled.cold_items.tolist() == [place for place, n in enumerate(order) if n in straight.cold_items]
    assert straight.cold_items.tolist() == [n for n, item in enumerate(items) if item in "ab"]


@pytest.mark.parametrize("size", [1e-30, 1.0, 50.0, 1e4, 1e9, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_stay_inside(tmp_path: Path, size: float, sign: int) -> None:
    made = random_model(5)
    # Every hidden unit is positive, so the logit has the sign of the last layer.
    params = {n: size * p.abs() for n, p in made.params.items()}
    last = list(made.model.dense_shapes)[-2:]
    params |= {n: sign * params[n] for n in last}
    snapshot = replace(made, params=params).snapshot(tmp_path)
    scores = [float(score) for score in snapshot.predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores]
    assert all(0 < score < 1 and math.isfinite(math.log(score) + math.log1p(-score)) for score in scores)
    if 1 < size < 1e30:
        assert all((score > 0.5) is (sign > 0) for score in scores)


@pytest.mark.parametrize("ctr", [1e-9, 0.02, 0.5, 0.999])
def test_the_prior_answers_one_number(tmp_path: Path, ctr: float) -> None:
    path = tmp_path / "prior.safetensors"
    path.write_bytes(prior_snapshot(ctr))
    snapshot = Snapshot.open(path, 0, 0)
    snapshot.check()
    prediction = snapshot.predict("anyone", ["a", "b", "a"], ["c"])
    assert prediction.scores == pytest.approx([max(ctr, 1e-6)] * 3, rel=1e-5)
    assert (prediction.cold_user, prediction.cold_items.tolist()) == (True, [0, 1, 2])
    assert (snapshot.version, snapshot.period) == (0, 0)


class TestEncode:
    def test_the_same_model_has_the_same_bytes(self) -> None:
        made = random_model(6, categories=True)
        first = made.encoded()
        # The order of the parameters is no part of a model.
        assert replace(made, params=dict(reversed(made.params.items()))).encoded() == first
        changed = made.params | {"user": made.params["user"] + 1e-3}
        assert replace(made, params=changed).encoded() != first

    def test_the_order_of_the_ids_is_no_part_of_the_tables(self, tmp_path: Path) -> None:
        made = random_model(6, categories=True)
        pairs = [known(ids) for ids in (USERS, ITEMS)]
        turned = [Known(one.hashes[::-1], one.rows[::-1]) for one in pairs]
        one, other = (load_tensors(base_of(made.trained(users=users, items=items))) for users, items in (pairs, turned))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)

    def test_rows_are_in_the_order_of_the_hashes(self, made: Made, snapshot: Snapshot) -> None:
        for kind, ids, table in (("users", USERS, "user"), ("items", ITEMS, "item")):
            hashes, starts, vectors = (
                snapshot.files.base.tensors[f"{kind}.{part}"] for part in ("hashes", "starts", "vectors")
            )
            index = IdIndex(hashes, starts)
            assert bool((index.hashes[1 : len(ids)] > index.hashes[: len(ids) - 1]).all())
            dim = made.model.table_widths[table]
            own = made.params[table].numpy()
            assert np.array_equal(vectors[0, :dim], own[0])
            for number, name in enumerate(ids, start=1):
                [row] = index.lookup(hash_ids([name]))
                assert np.array_equal(vectors[row, :dim], own[number])

    def test_rows_without_an_id_are_left_out(self, tmp_path: Path) -> None:
        """Rows of a table that has already grown for the next period, or that lost an id."""
        made = random_model(6)
        data = base_of(made.trained(users=known(USERS[:3]), items=known(ITEMS[:5])))
        tensors = load_tensors(data)
        assert (len(tensors["users.vectors"]), len(tensors["items.vectors"])) == (4, 6)
        path = tmp_path / "few.safetensors"
        path.write_bytes(data)
        prediction = Snapshot.open(path, 1, 1).predict("u4", ["i5", "i6"], [])
        assert (prediction.cold_user, prediction.cold_items.tolist()) == (True, [1])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["user", "item", "mlp.1.weight"])
    @pytest.mark.parametrize("categories", [False, True])
    def test_numbers_that_are_not_finite_are_refused(
        self, tmp_path: Path, name: str, bad: float, categories: bool
    ) -> None:
        made = random_model(7, categories=categories)
        made.params[name][-1, -1] = bad
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers; received NaN or infinity"):
            made.encoded()
        with (
            pytest.raises(ValueError, match="expected finite"),
            create(tmp_path, ".safetensors") as file,
        ):
            encode_base(file, made.trained())
        assert list(tmp_path.iterdir()) == []

    def test_categories_that_are_not_finite_are_refused(self) -> None:
        made = random_model(7, categories=True)
        made.params["category"][1:, 0] = math.nan
        with pytest.raises(ValueError, match="category: expected finite numbers"):
            made.encoded()


class TestCheckQuestions:
    def test_has_questions_about_known_and_unknown(self, made: Made, snapshot: Snapshot) -> None:
        names = {int(hash_ids([name])[0]): name for name in (*USERS, *ITEMS, STRANGER)}
        questions = []
        for question in snapshot.meta[QUESTIONS]:
            user, *items = (names[each] for each in question["asked"])
            questions.append((user, items, [names[each] for each in question["history"]], question["scores"]))
        assert {user for user, *_ in questions} == {*USERS, STRANGER}
        assert len({len(history) for _, _, history, _ in questions}) > 3
        asked = {item for _, items, *_ in questions for item in items}
        assert asked & set(ITEMS)
        assert STRANGER in asked
        for user, items, history, scores in questions:
            assert scores == pytest.approx(made.scores(user, items, history).tolist(), rel=1e-6)
        snapshot.check()

    def test_names_nobody(self, snapshot: Snapshot) -> None:
        """A snapshot outlives the ids that it knows: they may be deleted."""
        header = json.dumps(dict(snapshot.meta))
        assert not any(f'"{id_}"' in header for id_ in (*USERS, *ITEMS))

    @pytest.mark.parametrize("off", [3e-5, math.nan])
    def test_fails_where_the_scores_are_others(self, made: Made, snapshot: Snapshot, off: float) -> None:
        def wrong(*arguments: object) -> tuple[int, bool]:
            found = snapshot.forward(*arguments)  # type: ignore[arg-type]
            scores = arguments[4]
            assert isinstance(scores, np.ndarray)
            scores[-1] += off
            return found

        with pytest.raises(WrongScores, match="model version 1: expected the scores of the check questions"):
            replace(snapshot, forward=wrong).check()

    @pytest.mark.parametrize("name", ["users.vectors", "items.vectors", "mlp.0.weight", "mlp.2.bias"])
    def test_fails_for_other_numbers_in_any_table(self, made: Made, tmp_path: Path, name: str) -> None:
        good = made.encoded()
        tensors = load_tensors(good)
        tensors[name] = tensors[name] + np.float32(0.01)
        path = tmp_path / "other.safetensors"
        path.write_bytes(save_tensors(tensors, metadata_of(good)))
        with pytest.raises(WrongScores):
            Snapshot.open(path, 1, 1).check()

    @pytest.mark.parametrize("known", [ITEMS, ITEMS[:3], []], ids=["many", "few", "none"])
    def test_asks_about_neighbours_and_repeats(self, tmp_path: Path, known: list[str]) -> None:
        snapshot = with_statistics(known).snapshot(tmp_path)
        snapshot.check()
        questions = snapshot.meta[QUESTIONS]
        assert any(sum(question["recent"]) for question in questions)
        if known:
            assert all(set(question["asked"][1:]) & set(question["history"]) for question in questions)

    @pytest.mark.parametrize(
        "name, column",
        [
            *((f"items.pairs, {column}", ("items.pairs.weights", np.s_[:, column])) for column in range(2)),
            *((f"count {k}", ("items.vectors", np.s_[:, 4 + k])) for k in range(5)),
            *((f"{part} of {name}", ("statistics.scale", np.s_[n, k]))
              for n, part in enumerate(("mean", "factor")) for k, name in enumerate(NAMES)),
            ("average", ("statistics.average", np.s_[:])),
            *((dot, (dot, np.s_[0])) for dot in ("dot.user", "dot.history")),
        ],
    )  # fmt: skip
    def test_fails_for_another_statistic(self, busy: bytes, tmp_path: Path, name: str, column: tuple[str, Any]) -> None:
        tensors = load_tensors(busy)
        tensor, place = column
        changed = tensors[tensor].copy()
        changed[place] = 1.5 * changed[place] + np.float32(0.1)
        path = tmp_path / "other.safetensors"
        path.write_bytes(save_tensors(tensors | {tensor: changed}, metadata_of(busy)))
        with pytest.raises(WrongScores):
            Snapshot.open(path, 1, 1).check()

    @pytest.mark.parametrize("column", [9, 10, 11], ids=["counted", "paired", "identity"])
    def test_fails_for_another_integer(self, busy: bytes, tmp_path: Path, column: int) -> None:
        tensors = load_tensors(busy)
        changed = tensors["items.vectors"].copy()
        changed.view(np.uint32)[:, column] = 0
        path = tmp_path / "other.safetensors"
        path.write_bytes(save_tensors(tensors | {"items.vectors": changed}, metadata_of(busy)))
        with pytest.raises(WrongScores):
            Snapshot.open(path, 1, 1).check()

    def test_fails_for_other_neighbours(self, busy: bytes, tmp_path: Path) -> None:
        tensors = load_tensors(busy)
        tensors["items.pairs.rows"] = np.roll(tensors["items.pairs.rows"], 1)
        path = tmp_path / "other.safetensors"
        path.write_bytes(save_tensors(tensors, metadata_of(busy)))
        with pytest.raises(WrongScores):
            Snapshot.open(path, 1, 1).check()


def with_statistics(items: list[str] = ITEMS, **shape: Any) -> Made:
    statistics = random_statistics(3, len(items) or 1)
    return random_model(10, dot=True, items=items, statistics=statistics, **shape)


@pytest.fixture(scope="module")
def busy() -> bytes:
    return with_statistics().encoded()


class TestStatistics:
    def test_a_model_that_reads_them_is_not_written_without(self) -> None:
        made = with_statistics()
        for statistics in (None, Statistics.initial(StatisticsConfig())):
            with pytest.raises(ValueError, match="statistics: expected those of at least one period for 18 numeric"):
                replace(made, statistics=statistics).encoded()

    def test_a_model_that_reads_none_is_the_same_with_them(self) -> None:
        made = random_model(10)
        assert replace(made, statistics=random_statistics(3, len(ITEMS))).encoded() == made.encoded()

    def test_the_same_state_has_the_same_bytes(self, busy: bytes) -> None:
        assert with_statistics().encoded() == busy

    def test_pairs_are_those_of_the_state(self, tmp_path: Path) -> None:
        """Unfaded and by identity: also those with items that have no row here, which no candidate can have."""
        made = with_statistics()
        statistics, few = made.statistics, ITEMS[::2]
        assert statistics is not None
        rows = known(ITEMS).rows[::2]
        tensors = load_tensors(base_of(made.trained(items=Known.of(few, rows))))
        index = IdIndex(tensors["items.hashes"], tensors["items.starts"])
        found, expected = {}, {}
        for place, row in zip(index.lookup(hash_ids(few)).tolist(), rows.tolist(), strict=True):
            assert tensors["items.vectors"].view(np.uint32)[place, 11] == row
            for at in range(*tensors["items.pairs.firsts"][place : place + 2].tolist()):
                found[row, int(tensors["items.pairs.rows"][at])] = tensors["items.pairs.weights"][at].tolist()
            for at in range(*statistics.starts[row : row + 2].tolist()):
                counts = [float(statistics.together[at]), float(statistics.passed[at])]
                expected[row, int(statistics.neighbours[at])] = counts
        assert len(found) > 20
        assert found == expected

    @pytest.mark.parametrize(
        "missing",
        ["items.pairs.firsts", "items.pairs.rows", "items.pairs.weights", "statistics.scale", "dot.user"],
    )
    def test_a_tensor_is_missing(self, busy: bytes, tmp_path: Path, missing: str) -> None:
        tensors = {name: tensor for name, tensor in load_tensors(busy).items() if name != missing}
        path = tmp_path / "bad.safetensors"
        path.write_bytes(save_tensors(tensors, metadata_of(busy)))
        with pytest.raises(CheckpointError, match="snapshot: expected tensors"):
            Snapshot.open(path, 1, 1)

    @pytest.mark.parametrize(
        "name",
        ["items.pairs.firsts", "items.pairs.rows", "items.pairs.weights", "statistics.average", "statistics.scale"],
    )
    def test_a_tensor_is_short(self, busy: bytes, tmp_path: Path, name: str) -> None:
        tensors = load_tensors(busy)
        tensors[name] = tensors[name][:-1].copy()
        path = tmp_path / "bad.safetensors"
        path.write_bytes(save_tensors(tensors, metadata_of(busy)))
        with pytest.raises(CheckpointError, match=r"snapshot: \S+: expected \w+ \[.*\]; received"):
            Snapshot.open(path, 1, 1)

    def test_other_statistics_than_this_release_computes(self, busy: bytes, tmp_path: Path) -> None:
        header = json.loads(metadata_of(busy)["asmg"])
        header["meta"]["model"]["numeric"] = 17
        path = tmp_path / "bad.safetensors"
        path.write_bytes(save_tensors(load_tensors(busy), {"asmg": json.dumps(header)}))
        with pytest.raises(CheckpointError, match="snapshot: expected 18 statistics; received 17"):
            Snapshot.open(path, 1, 1)

    def test_a_file_of_an_earlier_release_is_refused_with_what_to_do(self, busy: bytes, tmp_path: Path) -> None:
        header = json.loads(metadata_of(busy)["asmg"])
        del header["meta"]["format"], header["meta"]["part"]  # as the first format was
        path = tmp_path / "old.safetensors"
        path.write_bytes(save_tensors(load_tensors(busy), {"asmg": json.dumps(header)}))
        with pytest.raises(CheckpointError, match=r"expected format 2; received 1, of another release. Close a period"):
            Snapshot.open(path, 1, 1)

    def test_the_kernel_is_compiled_once(self, busy: bytes, tmp_path: Path) -> None:
        """For every model and every caller, so that no request waits for a compiler."""
        path = tmp_path / "snapshot.safetensors"
        path.write_bytes(busy)
        Snapshot.open(path, 1, 1).check()
        before = len(score_mlp.signatures)  # type: ignore[attr-defined] # of numba's
        path.write_bytes(prior_snapshot(0.5))
        Snapshot.open(path, 1, 1).check()
        plain = random_model(3).snapshot(tmp_path)
        plain.predict("u1", ["i1"], [])
        plain.predict("u1", ["i1"], ["i2"], np.array([1, 0, 1], np.int32))
        assert len(score_mlp.signatures) == before == 1  # type: ignore[attr-defined]


class TestBadFiles:
    @pytest.fixture
    def good(self) -> bytes:
        return random_model(7, categories=True).encoded()

    def open(self, folder: Path, data: bytes) -> Snapshot:
        path = folder / "bad.safetensors"
        path.write_bytes(data)
        return Snapshot.open(path, 1, 1)

    @pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -500])
    def test_truncated(self, tmp_path: Path, good: bytes, size: int) -> None:
        with pytest.raises(CheckpointError, match="expected"):
            self.open(tmp_path, good[:size])

    @pytest.mark.parametrize("data", [b"\x80\x04K\x01." * 40, b"{}" * 100, bytes(1000), b"\xff" * 1000])
    def test_other_files(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(CheckpointError, match="expected"):
            self.open(tmp_path, data)

    def test_foreign_safetensors(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="another program's file"):
            self.open(tmp_path, save_tensors({"user": np.zeros((2, 2), dtype=np.float32)}))

    def test_another_kind_of_checkpoint(self, tmp_path: Path) -> None:
        made = random_model(8)
        data = Checkpoint("model", {"model": made.model.config.to_json()}, made.params).to_bytes()
        with pytest.raises(CheckpointError, match="expected kind 'snapshot'; received 'model'"):
            self.open(tmp_path, data)

    def test_another_format(self, tmp_path: Path, good: bytes) -> None:
        header = json.loads(metadata_of(good)["asmg"])
        data = save_tensors(load_tensors(good), {"asmg": json.dumps(header | {"version": 2})})
        with pytest.raises(CheckpointError, match="expected format version 1; received 2"):
            self.open(tmp_path, data)

    @pytest.mark.parametrize("missing", ["items.vectors", "mlp.0.bias", "users.hashes", "items.starts"])
    def test_a_tensor_is_missing(self, tmp_path: Path, good: bytes, missing: str) -> None:
        tensors = {name: tensor for name, tensor in load_tensors(good).items() if name != missing}
        with pytest.raises(CheckpointError, match="snapshot: expected tensors"):
            self.open(tmp_path, save_tensors(tensors, metadata_of(good)))

    @pytest.mark.parametrize("kind, count", [("users", len(USERS)), ("items", len(ITEMS))])
    def test_rows_and_ids_do_not_agree(self, tmp_path: Path, good: bytes, kind: str, count: int) -> None:
        for part, rest in (("vectors", slice(None, -1)), ("hashes", slice(None, count))):
            tensors = load_tensors(good)
            tensors[f"{kind}.{part}"] = tensors[f"{kind}.{part}"][rest].copy()
            with pytest.raises(CheckpointError, match=f"{kind}.{part}: expected .*{count + 1}.*; received"):
                self.open(tmp_path, save_tensors(tensors, metadata_of(good)))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Snapshot.open(tmp_path / "none.safetensors", 1, 1)


LOOK = """
import sys
from pathlib import Path
from service.serving.snapshot import Snapshot
from service.serving.tensor_file import read_through

snapshot = Snapshot.open(Path(sys.argv[1]), 1, 1)
digest = read_through(snapshot.files.base.mapping)
scores = snapshot.predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores
addresses = [array.ctypes.data for array in snapshot.files.base.tensors.values() if array.size]
inside, copied, mapped, resident = 0, 0, False, 0
for line in open("/proc/self/smaps"):
    name, _, rest = line.partition(" ")
    if not name.endswith(":"):
        mapped = line.rstrip().endswith(sys.argv[1])
        low, high = (int(part, 16) for part in name.split("-"))
        inside += mapped * sum(low <= address < high for address in addresses)
    elif mapped and name == "Anonymous:":
        copied += int(rest.split()[0])
    elif mapped and name == "Rss:":
        resident += int(rest.split()[0])
print(len(addresses) - inside, copied, resident, "torch" in sys.modules, digest, *scores)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what a process maps")
def test_processes_share_the_pages_of_one_file(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(1, 100_001)]
    made = random_model(9, users=users)
    snapshot = made.snapshot(tmp_path)
    path = tmp_path / "snapshot.safetensors"
    expected = snapshot.predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores
    processes = [
        subprocess.Popen([sys.executable, "-c", LOOK, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    for outside, copied, resident, torch_is_there, digest, *scores in answers:
        assert [float(score) for score in scores] == pytest.approx(expected, rel=1e-6)
        # Every array lies in the mapping of the file, and no page of it became the process's own.
        assert (int(outside), int(copied)) == (0, 0)
        assert int(resident) * 1024 >= path.stat().st_size  # all of it was read
        assert torch_is_there == "False"
        assert digest == read_through(snapshot.files.base.mapping)
