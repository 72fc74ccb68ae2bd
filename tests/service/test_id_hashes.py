"""The hashes of ids are XXH64 in every implementation."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asmg.kernels.common import bounds_checked
from service.serving.id_hashes import hash_id, hash_ids

ID = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


class TestHashes:
    def test_are_those_that_everybody_else_has(self) -> None:
        # XXH64 of the empty input and of "abc" with seed 0, as xxhsum -H1 prints them.
        assert hash_ids(["", "abc"]).tolist() == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]
        assert [hash_id(""), hash_id("abc")] == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]

    @pytest.mark.parametrize("letter", ["a", "\x7f", "é", "日", "😀"])
    def test_of_every_length(self, letter: str) -> None:
        ids = [((letter + "xyz0123456789") * 30)[:length] for length in range(301)]
        expected = [xxhash.xxh64_intdigest(name.encode()) for name in ids]
        assert hash_ids(ids).tolist() == expected
        assert [hash_ids([name]).tolist() for name in ids] == [[value] for value in expected]
        assert [hash_id(name) for name in ids] == expected

    @settings(deadline=None)
    @given(ids=st.lists(ID, min_size=1, max_size=40))
    def test_of_several_ids(self, ids: list[str]) -> None:
        expected = [xxhash.xxh64_intdigest(name.encode()) for name in ids]
        assert hash_ids(ids).tolist() == hash_ids([name.encode() for name in ids]).tolist() == expected

    @given(ids=st.lists(ID | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=10))
    def test_an_integer_is_its_decimal_text(self, ids: list[str | int]) -> None:
        assert hash_ids(ids).tolist() == hash_ids([str(one) for one in ids]).tolist()

    def test_of_no_ids(self) -> None:
        assert hash_ids([]).tolist() == []

    @pytest.mark.parametrize("ids", [["a\0b"], ["a", "\0"], [b"a\0b"], ["\0"], [1, "\0"]])
    def test_ids_with_nul_are_refused(self, ids: list[str]) -> None:
        with pytest.raises(ValueError, match="expected none with a NUL character"):
            hash_ids(ids)


@bounds_checked
def read_at(text: NDArray[np.uint8], at: int) -> int:
    return int(text[at])


def test_machine_code_that_reads_ids_cannot_read_past_their_end() -> None:
    """This is what `bounds_checked` is for; an unchecked kernel would return whatever lies there."""
    text = np.frombuffer(b"abc", np.uint8)
    assert read_at(text, 2) == ord("c")
    for at in (3, 10**6, -4):
        with pytest.raises(IndexError):
            read_at(text, at)
