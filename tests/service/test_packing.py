"""Packed chunks: whatever goes in comes out, numbers take less, and damage is noticed."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage.postgres.packing import BLOCK_BYTES, MARK, pack, unpack


@given(st.binary(max_size=40), st.sampled_from([b"", MARK, bytes(200), bytes(BLOCK_BYTES + 3)]))
def test_whatever_goes_in_comes_out(content: bytes, before: bytes) -> None:
    packed = pack(before + content)
    assert unpack(packed) == before + content
    assert len(packed) <= len(before + content) or before == MARK


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    content = np.random.default_rng(0).bytes(100_001)
    assert pack(content) == content


def test_numbers_take_what_differs_between_them() -> None:
    """Of float32 with 7 bits of mantissa the lower two bytes are zeros; the two upper ones are at most two bytes."""
    numbers = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    content = (numbers.view(np.uint32) & 0xFFFF0000).tobytes()
    assert len(pack(content)) < 0.45 * len(content)


@pytest.mark.parametrize("at", [8, 20])
def test_damage_is_noticed(at: int) -> None:
    """In the length of the content, and in what is compressed; the digest notices the rest."""
    content = struct.pack("<20000f", *range(20000))
    packed = bytearray(pack(content))
    assert len(packed) > 5000
    packed[at] ^= 1
    with pytest.raises(ValueError, match=r"^chunk: expected"):
        unpack(bytes(packed))
    with pytest.raises(ValueError, match=r"^chunk: expected"):
        unpack(bytes(packed[:5000]))
