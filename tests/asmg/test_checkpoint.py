"""Checkpoints: bytes and back, the same bytes for the same content, nothing but a CheckpointError for anything else."""

import json
import struct
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from asmg.adam import AdamState
from asmg.batch import PeriodData
from asmg.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointError,
    dump_adam,
    dump_data,
    load_adam,
    load_data,
    tensors_of,
)
from tests.asmg.support import random_period, snapshot, torch_rng, unchanged

TENSORS = {
    "weights": torch.tensor([[1.5, -2.0], [float("inf"), 1e-45]]),
    "rows": torch.tensor([3, -1], dtype=torch.int32),
    "offsets": torch.tensor([2**40], dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}
META = {"name": "größe", "step": 12, "nested": {"list": [1, None, 0.1]}, "flag": True}


def example() -> Checkpoint:
    return Checkpoint("model", META, TENSORS)


def test_a_checkpoint_survives_the_way_through_bytes() -> None:
    got = Checkpoint.from_bytes(example().to_bytes(), "model")
    assert got.kind == "model"
    assert got.meta == META
    assert set(got.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)
    assert Checkpoint.from_bytes(example().to_bytes()).kind == "model"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_json_meta_data_survives(kind: str, meta: dict[str, object]) -> None:
    got = Checkpoint.from_bytes(Checkpoint(kind, meta, {"x": torch.ones(1)}).to_bytes(), kind)
    assert got.kind == kind
    assert got.meta == meta


def test_equal_checkpoints_have_equal_bytes_whatever_the_order() -> None:
    backwards = Checkpoint(
        "model", dict(reversed(META.items())), {name: TENSORS[name].clone() for name in reversed(TENSORS)}
    )
    assert backwards.to_bytes() == example().to_bytes()


def test_bytes_differ_with_the_kind_the_meta_data_and_a_single_bit() -> None:
    changed = dict(TENSORS, weights=torch.nextafter(TENSORS["weights"], torch.tensor(0.0)))
    others = [
        Checkpoint("hidden", META, TENSORS),
        Checkpoint("model", META | {"step": 13}, TENSORS),
        Checkpoint("model", META, changed),
    ]
    assert len({c.to_bytes() for c in (example(), *others)}) == 4


def test_views_and_tensors_with_gradients_are_stored_by_value() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"transposed": whole.t(), "slice": torch.arange(5.0)[1:3], "leaf": torch.ones(2, requires_grad=True)}
    got = Checkpoint.from_bytes(Checkpoint("model", {}, tensors).to_bytes()).tensors
    assert torch.equal(got["transposed"], whole.t())
    assert got["slice"].tolist() == [1, 2]
    assert got["leaf"].tolist() == [1, 1]
    assert not got["leaf"].requires_grad


def test_another_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^checkpoint: expected kind 'hidden'; received 'model'"):
        Checkpoint.from_bytes(example().to_bytes(), "hidden")


def test_another_format_version_is_refused() -> None:
    header = {"version": FORMAT_VERSION + 1}  # a later one may look otherwise
    data = save({"x": torch.ones(1)}, {"asmg": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"^checkpoint: expected format version 1; received 2"):
        Checkpoint.from_bytes(data)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "program"},
        {"asmg": "no JSON"},
        {"asmg": "[]"},
        {"asmg": "3"},
        {"asmg": "{}"},
        {"asmg": '{"version": 1}'},
        {"asmg": '{"version": 1, "kind": "model"}'},
        {"asmg": '{"version": 1, "kind": "model", "meta": []}'},
        {"asmg": '{"version": 1, "kind": 7, "meta": {}}'},
    ],
    ids=str,
)
def test_a_foreign_safetensors_file_is_refused(metadata: dict[str, str] | None) -> None:
    with pytest.raises(CheckpointError, match=r"^checkpoint: expected "):
        Checkpoint.from_bytes(save({"x": torch.ones(1)}, metadata))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"unreadable bytes|another program's file"):
        Checkpoint.from_bytes(data, "model")


def test_every_truncation_is_refused() -> None:
    data = example().to_bytes()
    for size in range(len(data)):
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(data[:size], "model")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_header_is_an_error_of_ours_or_still_a_checkpoint(draw: st.DataObject) -> None:
    data = bytearray(example().to_bytes())
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, end - 1))] = draw.draw(st.integers(0, 255))
    try:
        got = Checkpoint.from_bytes(bytes(data))
    except CheckpointError:
        return
    assert isinstance(got.kind, str)
    assert isinstance(got.meta, dict)


# --- what is stored


@pytest.mark.parametrize("categories", [0, 5])
def test_the_data_of_a_period_survive_storage(categories: int) -> None:
    data = random_period(3, 20, categories=categories)
    got = load_data(Checkpoint.from_bytes(dump_data(data).to_bytes(), "period-data"))
    for field in fields(PeriodData):
        before, after = getattr(data, field.name), getattr(got, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after


def test_stored_data_of_no_period_are_refused() -> None:
    stored = dump_data(random_period(3, 20))
    with pytest.raises(ValueError, match=r"^user: expected rows in \[0, 6\); received 9\.\.9"):
        load_data(Checkpoint(stored.kind, stored.meta, {**stored.tensors, "user": torch.full((20,), 9)}))


@pytest.mark.parametrize("tables", [(), ("user", "item")])
def test_an_optimizer_survives_storage(tables: tuple[str, ...]) -> None:
    rng = torch_rng(1)
    names = (*tables, "mlp.0.weight")
    moments = [{name: torch.randn(4, 3, generator=rng) for name in names} for _ in range(2)]
    moved = {name: torch.arange(4, dtype=torch.int32) for name in tables}
    restless = {name: torch.tensor([1, 3]) for name in tables}
    state = AdamState(step=7, first=moments[0], second=moments[1], moved=moved, restless=restless)
    stored = Checkpoint.from_bytes(dump_adam(state, periods=3).to_bytes(), "adam")
    assert stored.meta == {"step": 7, "periods": 3}
    got = load_adam(stored)
    assert got.step == 7
    assert unchanged(snapshot(state), got)
    for part in ("first", "second", "moved", "restless"):
        before, after = getattr(state, part), getattr(got, part)
        assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}


def test_the_tensors_of_a_part_are_those_whose_names_begin_so() -> None:
    stored = Checkpoint("any", {}, {"a.x": torch.ones(1), "a.b.x": torch.ones(2), "b.x": torch.ones(3)})
    assert {name: len(t) for name, t in tensors_of(stored, "a.").items()} == {"x": 1, "b.x": 2}
    assert tensors_of(stored, "c.") == {}


def test_the_same_checkpoint_is_one_of_the_very_same_tensors() -> None:
    one = example()
    assert one.same_as(Checkpoint("model", dict(META), dict(TENSORS)))
    assert not one.same_as(Checkpoint("hidden", META, TENSORS))
    assert not one.same_as(Checkpoint("model", META | {"step": 13}, TENSORS))
    assert not one.same_as(Checkpoint("model", META, {n: t for n, t in TENSORS.items() if n != "rows"}))
    assert not one.same_as(Checkpoint("model", META, TENSORS | {"rows": TENSORS["rows"].clone()}))
