"""Tables as a base and layers of changed rows, by hand. Whole updates: tests/service/test_update_layers.py."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.layers import Selection, Stack, changed_part, merger
from asmg.rounding import rounded
from asmg.tensor_writer import BFLOAT16


def layer(
    users: list[float], rows: list[int] | None = None, *, size: int, reset: list[int] | None = None
) -> Checkpoint:
    """A layer of a table with one number a row; a base without `rows`."""
    tensors = {"user": torch.tensor(users).unsqueeze(1), "bias": torch.tensor([float(size)])}
    if rows is not None:
        tensors["rows.user"] = torch.tensor(rows, dtype=torch.int64)
    if reset is not None:
        tensors["reset.user"] = torch.tensor(reset, dtype=torch.int64)
    return Checkpoint("model", {"sizes": {"user": size}}, tensors)


BASE = layer([0.0, 1, 2, 3], size=4)
FIRST = layer([0.5, 2.5, 4.5], [0, 2, 4], size=6)
SECOND = layer([0.7, 1.7], [0, 3], size=7, reset=[2, 3])


def read(*layers: Checkpoint) -> list[float]:
    stack = Stack(layers)
    return stack.read("user", np.arange(stack.sizes["user"]))["user"].flatten().tolist()


def test_a_row_is_read_from_the_newest_layer_that_has_it() -> None:
    """A row that no layer has, or that lost its owner since, is the newest cold row, as is one of an older model."""
    assert read(BASE) == [0, 1, 2, 3]
    assert read(BASE, FIRST) == pytest.approx([0.5, 1, 2.5, 3, 4.5, 0.5])
    assert read(BASE, FIRST, SECOND) == pytest.approx([0.7, 1, 0.7, 1.7, 4.5, 0.7, 0.7])
    assert read(BASE, SECOND, FIRST) == pytest.approx([0.5, 1, 2.5, 1.7, 4.5, 0.5])
    lost = layer([], [], size=6, reset=[2])
    assert read(BASE, FIRST, lost) == pytest.approx([0.5, 1, 0.5, 3, 4.5, 0.5])


def test_nothing_below_a_base_is_read() -> None:
    again = layer([9.0, 8, 7, 6, 5, 4], size=6)
    assert read(BASE, FIRST, again) == read(again)
    assert read(BASE, again, SECOND) == pytest.approx([0.7, 8, 0.7, 1.7, 5, 4, 0.7])
    merged = merger([BASE, FIRST, SECOND])
    found = {name: torch.from_numpy(np.concatenate(list(t.blocks()))) for name, t in merged.tensors.items()}
    base = Checkpoint("model", {"sizes": {"user": 7}}, found)
    # A row that no layer has stays one, so that it is read as the cold row of whatever version reads it.
    assert set(found) == {"user", "rows.user", "bias"} and found["bias"].tolist() == [7]
    assert read(base) == read(BASE, FIRST, SECOND)


def test_moments_of_few_bits_take_two_bytes_and_are_read_as_they_were() -> None:
    selection = Selection({"user": np.arange(50)}, torch.zeros(0, 1, dtype=torch.int32), {"user": 50})
    generator = torch.Generator().manual_seed(0)
    exact = rounded({n: torch.randn(50, 4, generator=generator) for n in ("first", "second")}, 7, generator)

    def optimizer(first: torch.Tensor) -> Checkpoint:
        tensors = {"first.user": first, "second.user": exact["second"], "moved.user": torch.arange(50)}
        return changed_part(None, Checkpoint("adam", {"step": 60}, tensors), selection, {})

    few, many = optimizer(exact["first"]), optimizer(exact["first"] + 2**-20)
    assert (few.tensors["first.user"].dtype, many.tensors["first.user"].dtype) == (torch.bfloat16, torch.float32)
    merged = merger([few]).tensors["first.user"], merger([many, few]).tensors["first.user"]
    assert [tensor.dtype for tensor in merged] == [BFLOAT16, np.float32]
    file = Checkpoint.from_bytes(few.to_bytes())
    for layers in ([few], [many, few], [file]):
        found = Stack(layers).read("user", np.arange(50))
        for name in ("first", "second"):
            assert found[f"{name}.user"].dtype == torch.float32
            assert torch.equal(found[f"{name}.user"], exact[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t | {"user": t["user"][:-1]}, r"user: expected 3 rows; received 2"),
        (lambda t: t | {"rows.user": t["rows.user"][:-1]}, r"user: expected 2 rows; received 3"),
        (lambda t: t | {"rows.user": torch.tensor([0, 2, 6])}, r"user: expected rows under 6; received 0\.\.6"),
        (lambda t: t | {"rows.user": torch.tensor([-1, 2, 4])}, r"user: expected rows under 6; received -1\.\.4"),
        (lambda t: {name: tensor for name, tensor in t.items() if name != "rows.user"}, r"user: expected 6 rows"),
    ],
    ids=["a row too few", "a number too few", "past the end", "below zero", "not listed"],
)
def test_damaged_layers_are_refused(
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Stack([BASE, replace(FIRST, tensors=damage(dict(FIRST.tensors)))])


def test_layers_of_different_parts_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected one of kind 'model'; received 'adam'"):
        Stack([replace(BASE, kind="adam"), FIRST])
    with pytest.raises(CheckpointError, match="user: expected a layer with the cold row; received none"):
        read(layer([2.5], [2], size=6))
