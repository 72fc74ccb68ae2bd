"""The id index equals a dictionary: in NumPy, in machine code, and for any hashes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.serving.id_hashes import NOBODY, hash_ids
from service.serving.id_index import IdIndex, find_rows

ID = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


def index(ids: Sequence[str]) -> IdIndex:
    return IdIndex.of_hashes(hash_ids(ids), np.arange(1, len(ids) + 1))[0]


def compiled(made: IdIndex, wanted: NDArray[np.uint64]) -> list[int]:
    """The rows that the machine code finds."""
    rows = np.full(len(wanted), -1, dtype=np.int64)
    find_rows(wanted, made.hashes, made.starts, rows)
    return rows.tolist()


def of_hashes(hashes: Sequence[int]) -> IdIndex:
    """The index of ids with these hashes."""
    return IdIndex.of_hashes(np.array(hashes, dtype=np.uint64), np.arange(1, len(hashes) + 1))[0]


class TestIsADictionary:
    @settings(deadline=None)
    @given(known=st.dictionaries(ID, st.integers(1, 2**31 - 1), max_size=50), asked=st.lists(ID, max_size=40))
    def test_of_ids(self, known: dict[str, int], asked: list[str]) -> None:
        made, rows = IdIndex.of_hashes(hash_ids([*known]), np.array(list(known.values()), dtype=np.int64))
        wanted = hash_ids([*asked, *known])
        places = made.lookup(wanted)
        assert (places.dtype, rows.dtype) == (np.int64, np.int64)
        given_rows = np.concatenate([[0], rows])  # what a table in the order of the hashes holds
        assert given_rows[places].tolist() == [known.get(name, 0) for name in (*asked, *known)]
        assert compiled(made, wanted) == places.tolist()
        self.check(made, len(known))

    # Hashes as no real ids have them: crowded in one corner, at both ends, and where the ranges of `starts` meet.
    CROWDED = st.one_of(
        st.integers(0, 2**64 - 1),
        st.integers(0, 40),
        st.integers(2**64 - 40, 2**64 - 1),
        st.builds(lambda high, low: (high << 60) + low, st.integers(0, 15), st.integers(0, 2)),
    )

    @settings(deadline=None)
    @given(known=st.lists(CROWDED, max_size=60), asked=st.lists(CROWDED, max_size=40))
    def test_of_any_hashes(self, known: list[int], asked: list[int]) -> None:
        made = of_hashes(known)
        expected = {value: place for place, value in enumerate(sorted({*known} - {NOBODY}), start=1)}
        wanted = np.array([*asked, *known, NOBODY, 0], dtype=np.uint64)
        assert made.lookup(wanted).tolist() == [expected.get(int(value), 0) for value in wanted]
        assert compiled(made, wanted) == made.lookup(wanted).tolist()
        self.check(made, len(expected))

    def check(self, made: IdIndex, count: int) -> None:
        """That it is built as its docstring says."""
        assert (made.hashes.dtype, made.starts.dtype) == (np.uint64, np.uint32)
        assert len(made.hashes) % 8 == 0
        assert bool((made.hashes[1:count] > made.hashes[: max(count - 1, 0)]).all())
        assert bool((made.hashes[:count] != NOBODY).all())
        assert bool((made.hashes[count:] == NOBODY).all())
        assert count < len(made.hashes) <= count + 8
        ranges = len(made.starts) - 1
        assert ranges & (ranges - 1) == 0
        for value in range(ranges):
            mine = [place for place in range(count) if int(made.hashes[place]) >> made.shift == value]
            assert list(range(made.starts[value], made.starts[value + 1])) == mine
        assert made.starts[-1] == count

    @pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 8, 9, 15, 16, 17, 1000])
    def test_of_so_many_ids(self, count: int) -> None:
        ids = [f"id{n}" for n in range(count)]
        made = index(ids)
        self.check(made, count)
        wanted = hash_ids([*ids, *(f"other{n}" for n in range(100))])
        rows = compiled(made, wanted)
        assert rows == made.lookup(wanted).tolist()
        assert sorted(rows[:count]) == list(range(1, count + 1))
        assert rows[count:] == [0] * 100
        assert compiled(made, wanted[:0]) == made.lookup(wanted[:0]).tolist() == []

    def test_the_hash_of_nobody_is_never_found(self) -> None:
        for hashes in ([NOBODY], [5, NOBODY], [NOBODY - 1, NOBODY], [NOBODY] * 3):
            made = of_hashes(hashes)
            wanted = np.array([NOBODY, NOBODY - 1], dtype=np.uint64)
            expected = [0, len(made.hashes[made.hashes != NOBODY]) if NOBODY - 1 in hashes else 0]
            assert made.lookup(wanted).tolist() == compiled(made, wanted) == expected

    def test_of_one_hash_the_first_id_is_kept(self) -> None:
        made, rows = IdIndex.of_hashes(hash_ids(["a", "b", "a"]), np.array([7, 8, 9]))
        assert rows[made.lookup(hash_ids(["a", "b"])) - 1].tolist() == [7, 8]
