"""The serving snapshot: the same numbers as the model, in one file that processes share."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from asmg.batch import NO_CATEGORY, InteractionBatch, ItemFeatures
from asmg.checkpoint import Checkpoint
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, grow
from service.serving.id_index import IdIndex, hash_ids
from service.serving.snapshot import Snapshot, encode_snapshot, prior_snapshot

USERS = [f"u{n}" for n in range(1, 8)]
ITEMS = [f"i{n}" for n in range(1, 50)]


def random_model(seed: int, *, categories: bool) -> tuple[EmbeddingMLP, Params, Tensor | None]:
    """A model with a row for each of USERS and ITEMS, row n for the n-th of them, and some categories."""
    rng = torch.Generator().manual_seed(seed)
    model = EmbeddingMLP(EmbeddingMLPConfig(dim=4, hidden=(6, 3), categories=categories))
    sizes = {"user": len(USERS) + 1, "item": len(ITEMS) + 1, "category": 6}
    params = {n: grow(p, sizes[n]) if n in sizes else p for n, p in model.initial(rng).items()}
    params = {n: p + 0.5 * torch.randn(p.shape, generator=rng) for n, p in params.items()}
    # With all hidden units at work no two items look alike.
    params |= {n: p.abs() + 2 for n, p in params.items() if n in ("mlp.0.bias", "mlp.1.bias")}
    if not categories:
        return model, params, None
    table = torch.randint(1, 6, (sizes["item"], 3), generator=rng)
    table[torch.rand(table.shape, generator=rng) < 0.4] = NO_CATEGORY
    table[0] = NO_CATEGORY
    return model, params, table


def index(ids: list[str]) -> IdIndex:
    return IdIndex.build(ids, np.arange(1, len(ids) + 1))


def write(folder: Path, model: EmbeddingMLP, params: Params, categories: Tensor | None) -> Path:
    path = folder / "snapshot.safetensors"
    path.write_bytes(encode_snapshot(model, params, index(USERS), index(ITEMS), categories))
    return path


@pytest.fixture(params=[False, True], ids=["plain", "categories"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Snapshot, EmbeddingMLP, Params, Tensor | None]:
    model, params, categories = random_model(3, categories=request.param)
    return Snapshot.load(write(tmp_path, model, params, categories), 5, 9), model, params, categories


def row(ids: list[str], name: str) -> int:
    return ids.index(name) + 1 if name in ids else 0


def expected_logits(
    model: EmbeddingMLP, params: Params, categories: Tensor | None, user: str, items: list[str], history: list[str]
) -> Tensor:
    """The library's forward pass over whole tables, one interaction for each candidate."""
    past = [row(ITEMS, i) for i in history]
    batch = InteractionBatch(
        user=torch.full((len(items),), row(USERS, user)),
        item=torch.tensor([row(ITEMS, i) for i in items]),
        history=torch.tensor(past * len(items), dtype=torch.int64),
        offsets=torch.arange(len(items) + 1) * len(past),
        label=torch.zeros(len(items)),
    )
    features = None
    if categories is not None:
        features = ItemFeatures(row=torch.arange(len(categories)), categories=categories)
    return model.logits(params, batch, features)


class TestPredict:
    @pytest.mark.parametrize("length", [0, 1, 2, 30])
    @pytest.mark.parametrize("user", ["u1", "u7", "stranger"])
    def test_equals_the_model(
        self, made: tuple[Snapshot, EmbeddingMLP, Params, Tensor | None], user: str, length: int
    ) -> None:
        snapshot, model, params, categories = made
        # Every third is unknown, one repeats.
        history = ["never seen" if n % 3 == 1 else ITEMS[(5 * n) % 40] for n in range(length)]
        items = ["i49", "i1", "new item", "i1", "i17", ""]
        prediction = snapshot.predict(user, items, history)
        logits = expected_logits(model, params, categories, user, items, history)
        assert prediction.scores == pytest.approx(torch.sigmoid(logits).tolist(), rel=1e-5)
        assert len({round(score, 6) for score in prediction.scores}) == 4  # the model tells the four items apart
        assert prediction.cold_items == [2, 5]
        assert prediction.cold_user is (user == "stranger")

    def test_only_the_first_thirty_of_a_history_count(
        self, made: tuple[Snapshot, EmbeddingMLP, Params, Tensor | None]
    ) -> None:
        snapshot = made[0]
        history = [f"i{n}" for n in range(1, 41)]
        forty = snapshot.predict("u1", ["i3"], history).scores
        assert forty == snapshot.predict("u1", ["i3"], history[:30]).scores
        assert forty != snapshot.predict("u1", ["i3"], history[:29]).scores

    def test_unknown_ids_of_a_history_count_as_the_cold_item(
        self, made: tuple[Snapshot, EmbeddingMLP, Params, Tensor | None]
    ) -> None:
        snapshot = made[0]
        alone = snapshot.predict("u1", ["i3"], ["i5"]).scores
        assert snapshot.predict("u1", ["i3"], ["i5", "unknown"]).scores != alone
        assert (
            snapshot.predict("u1", ["i3"], ["x", "i5"]).scores
            == pytest.approx(snapshot.predict("u1", ["i3"], ["i5", "y"]).scores, rel=1e-6)
        )  # fmt: skip

    def test_lengths_of_one_and_a_thousand(self, made: tuple[Snapshot, EmbeddingMLP, Params, Tensor | None]) -> None:
        snapshot = made[0]
        many = [f"i{n}" for n in range(1000)]
        prediction = snapshot.predict("u2", many, ["i4"])
        assert len(prediction.scores) == 1000
        assert prediction.cold_items == [0, *range(50, 1000)]
        for place in (0, 1, 49, 50, 999):
            assert snapshot.predict("u2", [many[place]], ["i4"]).scores == pytest.approx(
                [prediction.scores[place]], rel=1e-5
            )

    def test_nothing_in_it_changes(self, made: tuple[Snapshot, EmbeddingMLP, Params, Tensor | None]) -> None:
        snapshot = made[0]
        before = {name: tensor.clone() for name, tensor in snapshot.params.items()}
        first = snapshot.predict("u1", ["i1", "i2"], ["i3"])
        for user in ("u2", "stranger"):
            snapshot.predict(user, ["i9", "unknown"], [])
        assert snapshot.predict("u1", ["i1", "i2"], ["i3"]) == first
        assert all(torch.equal(snapshot.params[name], tensor) for name, tensor in before.items())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    model, params, categories = random_model(4, categories=True)
    return Snapshot.load(write(tmp_path_factory.mktemp("snapshot"), model, params, categories), 1, 1)


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
    assert shuffled.cold_items == [place for place, n in enumerate(order) if n in straight.cold_items]
    assert straight.cold_items == [n for n, item in enumerate(items) if item in "ab"]


@pytest.mark.parametrize("size", [1e-30, 1.0, 50.0, 1e4, 1e9])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_stay_inside(tmp_path: Path, size: float, sign: int) -> None:
    model, params, _ = random_model(5, categories=False)
    # Every hidden unit is positive, so the logit has the sign of the last layer.
    params = {n: size * p.abs() for n, p in params.items()}
    last = list(model.dense_shapes)[-2:]
    params |= {n: sign * params[n] for n in last}
    snapshot = Snapshot.load(write(tmp_path, model, params, None), 1, 1)
    scores = snapshot.predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores
    assert all(0 < score < 1 and math.isfinite(math.log(score) + math.log1p(-score)) for score in scores)
    if size > 1:
        assert all((score > 0.5) is (sign > 0) for score in scores)


@pytest.mark.parametrize("ctr", [1e-9, 0.02, 0.5, 0.999])
def test_the_prior_answers_one_number(tmp_path: Path, ctr: float) -> None:
    path = tmp_path / "prior.safetensors"
    path.write_bytes(prior_snapshot(ctr))
    snapshot = Snapshot.load(path, 0, 0)
    prediction = snapshot.predict("anyone", ["a", "b", "a"], ["c"])
    assert prediction.scores == pytest.approx([max(ctr, 1e-6)] * 3, rel=1e-5)
    assert (prediction.cold_user, prediction.cold_items) == (True, [0, 1, 2])
    assert (snapshot.version, snapshot.period) == (0, 0)


class TestIdIndex:
    @settings(deadline=None)
    @given(
        known=st.dictionaries(st.text(max_size=8), st.integers(1, 2**31 - 1), max_size=50),
        asked=st.lists(st.text(max_size=8), max_size=20),
    )
    def test_is_a_dictionary(self, known: dict[str, int], asked: list[str]) -> None:
        made = IdIndex.build(list(known), np.array(list(known.values()), dtype=np.int64))
        wanted = [*asked, *known]
        rows = made.lookup(wanted)
        assert rows.dtype == np.int64
        assert rows.tolist() == [known.get(name, 0) for name in wanted]

    def test_empty(self) -> None:
        nobody = IdIndex.build([], np.array([], dtype=np.int64))
        assert nobody.lookup(["a", "b"]).tolist() == [0, 0]
        assert index(["a"]).lookup([]).tolist() == []

    def test_is_sorted_and_stable(self) -> None:
        made = index([f"id{n}" for n in range(1000)])
        assert (made.hashes.dtype, made.rows.dtype) == (np.uint64, np.int32)
        assert bool((made.hashes[1:] > made.hashes[:-1]).all())
        # XXH3 of the empty input and of "abc" with seed 0, as xxhsum -H3 prints them.
        assert [int(value) for value in hash_ids(["", "abc"])] == [0x2D06800538D394C2, 0x78AF5F94892F3950]

    def test_of_one_hash_the_first_id_is_kept(self) -> None:
        assert IdIndex.build(["a", "b", "a"], np.array([7, 8, 9])).lookup(["a", "b"]).tolist() == [7, 8]


def test_the_same_model_has_the_same_bytes() -> None:
    model, params, categories = random_model(6, categories=True)
    first = encode_snapshot(model, params, index(USERS), index(ITEMS), categories)
    # Neither the order of the parameters nor that of the ids is part of a model.
    shuffled = dict(reversed(params.items()))
    ids = list(zip(ITEMS, range(1, len(ITEMS) + 1), strict=True))[::-1]
    items = IdIndex.build([i for i, _ in ids], np.array([n for _, n in ids]))
    assert encode_snapshot(model, shuffled, index(USERS), items, categories) == first
    changed = params | {"user": params["user"] + 1e-3}
    assert encode_snapshot(model, changed, index(USERS), index(ITEMS), categories) != first


class TestBadFiles:
    @pytest.fixture
    def good(self) -> bytes:
        model, params, categories = random_model(7, categories=True)
        return encode_snapshot(model, params, index(USERS), index(ITEMS), categories)

    def load(self, folder: Path, data: bytes) -> Snapshot:
        path = folder / "bad.safetensors"
        path.write_bytes(data)
        return Snapshot.load(path, 1, 1)

    @pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -500])
    def test_truncated(self, tmp_path: Path, good: bytes, size: int) -> None:
        with pytest.raises(ValueError, match="expected"):
            self.load(tmp_path, good[:size])

    @pytest.mark.parametrize("data", [b"\x80\x04K\x01." * 40, b"{}" * 100, bytes(1000), b"\xff" * 1000])
    def test_other_files(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(ValueError, match="expected"):
            self.load(tmp_path, data)

    def test_foreign_safetensors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="another program's file"):
            self.load(tmp_path, save_tensors({"user": torch.zeros(2, 2)}))

    def test_another_kind_of_checkpoint(self, tmp_path: Path) -> None:
        model, params, _ = random_model(8, categories=False)
        data = Checkpoint("model", {"model": model.config.to_json()}, params).to_bytes()
        with pytest.raises(ValueError, match="expected kind 'serving'; received 'model'"):
            self.load(tmp_path, data)

    def test_another_format(self, tmp_path: Path, good: bytes) -> None:
        size = int.from_bytes(good[:8], "little")
        header = json.loads(json.loads(good[8 : 8 + size])["__metadata__"]["asmg"])
        data = save_tensors(load_tensors(good), {"asmg": json.dumps(header | {"version": 2})})
        with pytest.raises(ValueError, match="expected format version 1; received 2"):
            self.load(tmp_path, data)

    @pytest.mark.parametrize("missing", ["param.items", "param.mlp.0.bias", "users.hashes", "items.rows"])
    def test_a_tensor_is_missing(self, tmp_path: Path, good: bytes, missing: str) -> None:
        whole = Checkpoint.from_bytes(good)
        tensors = {name: t for name, t in whole.tensors.items() if name != missing}
        with pytest.raises(ValueError, match="snapshot: expected tensors"):
            self.load(tmp_path, Checkpoint(whole.kind, whole.meta, tensors).to_bytes())

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["param.user", "param.items", "param.mlp.1.weight"])
    def test_numbers_that_are_not_finite(self, tmp_path: Path, good: bytes, name: str, bad: float) -> None:
        whole = Checkpoint.from_bytes(good)
        tensors = {n: t.clone() for n, t in whole.tensors.items()}
        tensors[name][-1, -1] = bad
        with pytest.raises(ValueError, match=f"{name.removeprefix('param.')}: expected finite numbers"):
            self.load(tmp_path, Checkpoint(whole.kind, whole.meta, tensors).to_bytes())

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Snapshot.load(tmp_path / "none.safetensors", 1, 1)


LOOK = """
import sys
from pathlib import Path
from service.serving.snapshot import Snapshot

snapshot = Snapshot.load(Path(sys.argv[1]), 1, 1)
scores = snapshot.predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores
addresses = [t.data_ptr() for t in snapshot.params.values()]
addresses += [a.ctypes.data for i in (snapshot.users, snapshot.items) for a in (i.hashes, i.rows)]
inside, copied, mapped = 0, 0, False
for line in open("/proc/self/smaps"):
    name, _, rest = line.partition(" ")
    if not name.endswith(":"):
        mapped = line.rstrip().endswith(sys.argv[1])
        low, high = (int(part, 16) for part in name.split("-"))
        inside += mapped * sum(low <= address < high for address in addresses)
    elif mapped and name == "Anonymous:":
        copied += int(rest.split()[0])
print(len(addresses) - inside, copied, *scores)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what a process maps")
def test_processes_share_the_pages_of_one_file(tmp_path: Path) -> None:
    model, params, _ = random_model(9, categories=False)
    params["user"] = torch.cat([params["user"], torch.zeros(100_000, 4)])
    path = write(tmp_path, model, params, None)
    expected = Snapshot.load(path, 1, 1).predict("u1", ["i1", "i2", "unknown"], ["i3"]).scores
    processes = [
        subprocess.Popen([sys.executable, "-c", LOOK, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    for outside, copied, *scores in answers:
        assert [float(score) for score in scores] == pytest.approx(expected, rel=1e-6)
        # Every array lies in the mapping of the file, and no page of it became the process's own.
        assert (int(outside), int(copied)) == (0, 0)
