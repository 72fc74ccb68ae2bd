"""Parts stored as a whole and differences are found again to the bit."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.checkpoint import Checkpoint
from asmg.layers import difference, summed

BITS = st.binary(min_size=16, max_size=16).map(lambda data: np.frombuffer(data, np.int32))
"""Any four float32, also NaN, infinities and zeros of either sign."""


def part(bits: np.ndarray, step: int, moved: list[int]) -> Checkpoint:
    weights = torch.from_numpy(bits.copy()).view(torch.float32)
    return Checkpoint("adam", {"step": step}, {"first.w": weights, "moved.w": torch.tensor(moved, dtype=torch.int32)})


@settings(deadline=None)
@given(st.lists(BITS, min_size=1, max_size=4))
def test_the_sum_is_the_part_to_the_bit(found: list[np.ndarray]) -> None:
    parts = [part(bits, n, [n] * n) for n, bits in enumerate(found)]
    layers = [parts[0], *(difference(*pair) for pair in pairwise(parts))]
    stored = [Checkpoint.from_bytes(layer.to_bytes()) for layer in layers]
    for n, expected in enumerate(parts, start=1):
        assert summed(stored[:n]).to_bytes() == expected.to_bytes()


def test_a_small_move_leaves_the_upper_bytes_zero() -> None:
    """One is 0x3f800000; the next number is one more, and the one before it one less: 0x3f7fffff."""
    before = part(np.full(4, 0x3F800000, np.int32), 1, [])
    after = part(np.array([0x3F800000, 0x3F800001, 0x3F7FFFFF, 0x3F800010], np.int32), 2, [])
    assert difference(before, after).tensors["difference.first.w"].tolist() == [0, 2, 1, 32]
    assert difference(before, after).meta == {"step": 2}


def test_a_tensor_of_another_shape_is_stored_as_it_is() -> None:
    before = Checkpoint("generator", {}, {"w": torch.ones(2), "gone": torch.ones(1)})
    after = Checkpoint("generator", {}, {"w": torch.ones(3), "new": torch.ones(1)})
    layer = difference(before, after)
    assert set(layer.tensors) == {"w", "new"}
    assert summed([before, layer]).to_bytes() == after.to_bytes()
