"""The id index is a dictionary: in NumPy, in machine code, and whatever the hashes are."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.serving import id_index as module
from service.serving.forward import SEPARATOR, _find_rows, hash_json, hash_text
from service.serving.id_hashes import NOBODY, hash_ids
from service.serving.id_index import IdIndex

ID = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


def index(ids: Sequence[str]) -> IdIndex:
    return IdIndex.build(ids, np.arange(1, len(ids) + 1))[0]


def compiled(made: IdIndex, wanted: NDArray[np.uint64]) -> list[int]:
    """The rows that the machine code finds."""
    rows = np.full(len(wanted), -1, dtype=np.int64)
    _find_rows(wanted, made.hashes, made.starts, rows)
    return rows.tolist()


def of_hashes(hashes: Sequence[int]) -> IdIndex:
    """The index of ids with these hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hash_ids", lambda _: np.array(hashes, dtype=np.uint64))
        return index([str(n) for n in range(len(hashes))])


class TestIsADictionary:
    @settings(deadline=None)
    @given(known=st.dictionaries(ID, st.integers(1, 2**31 - 1), max_size=50), asked=st.lists(ID, max_size=40))
    def test_of_ids(self, known: dict[str, int], asked: list[str]) -> None:
        made, rows = IdIndex.build(list(known), np.array(list(known.values()), dtype=np.int64))
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
        made, rows = IdIndex.build(["a", "b", "a"], np.array([7, 8, 9]))
        assert rows[made.lookup(hash_ids(["a", "b"])) - 1].tolist() == [7, 8]


class TestHashes:
    def test_are_those_that_everybody_else_has(self) -> None:
        # XXH64 of the empty input and of "abc" with seed 0, as xxhsum -H1 prints them.
        assert [int(value) for value in hash_ids(["", "abc"])] == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]

    @pytest.mark.parametrize("letter", ["a", "\x7f", "é", "日", "😀"])
    def test_of_every_length(self, letter: str) -> None:
        for length in range(301):
            id_ = (letter + "xyz0123456789") * 30
            id_ = id_[:length]
            found = np.zeros(1, dtype=np.uint64)
            assert hash_text(id_.encode(), found) == 1
            assert int(found[0]) == xxhash.xxh64_intdigest(id_.encode())
            assert hash_ids([id_]).tolist() == hash_ids([id_]).tolist() == found.tolist()

    @settings(deadline=None)
    @given(ids=st.lists(ID, min_size=1, max_size=40))
    def test_of_a_text_with_several_ids(self, ids: list[str]) -> None:
        found = np.zeros(len(ids), dtype=np.uint64)
        assert hash_text(SEPARATOR.join(ids).encode(), found) == len(ids)
        assert found.tolist() == hash_ids(ids).tolist()
        assert hash_ids(ids).tolist() == hash_ids([name.encode() for name in ids]).tolist() == found.tolist()

    def test_more_ids_than_there_is_room_for_are_counted_only(self) -> None:
        room = np.zeros(3, dtype=np.uint64)
        assert hash_text(b"a\0b\0c\0d", room[:2]) == 4
        assert room.tolist() == [*hash_ids(["a", "b"]).tolist(), 0]

    def test_of_no_ids(self) -> None:
        assert hash_ids([]).tolist() == []
        assert hash_text(b"", np.zeros(0, dtype=np.uint64)) == 1  # the empty id

    @pytest.mark.parametrize("ids", [["a\0b"], ["a", "\0"], [b"a\0b"], ["\0"]])
    def test_ids_with_nul_are_refused(self, ids: list[str]) -> None:
        with pytest.raises(ValueError, match="expected none with a NUL character"):
            hash_ids(ids)


PLAIN = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7F, exclude_characters='"\\'), min_size=1, max_size=12
)
BLANKS = st.text(" \t\n\r", max_size=2)


def of_json(text: bytes, *, longest: int = 256, room: int = 100) -> list[int] | None:
    """The hashes of a JSON array; None where it needs a second look. Writes nothing beside them."""
    found = np.full(room + 1, 7, dtype=np.uint64)
    count = hash_json(text, longest, found[:room])
    assert count == -1 or 0 < count <= room
    assert found[room] == 7
    return None if count < 0 else found[:count].tolist()


SECOND_LOOKS = rb"""
[ [] [" ["a ["a" ["a", ["a",] ["a"]] ["a"]x "a" 7 null {"a":1} ["a""b"] ["a",,"b"] [,"a"] [["a"]] ['a'] [""] ["a",7.0]
[null] ["a",-] ["\n"] ["\u0061"] ["\"] ["\\"]
""".split()
SECOND_LOOKS += [b"", b" ", b"[ ]", b'["a\n"]', b'["\0"]', b'["\xc3\xa9"]', b'["\xff"]']
SECOND_LOOKS += [b'["a"]\0', b'["a"\x0c]', b'\x0b["a"]']


class TestHashesOfJson:
    @settings(deadline=None)
    @given(ids=st.lists(PLAIN, min_size=1, max_size=100), data=st.data())
    def test_of_plain_strings_are_those_of_the_ids(self, ids: list[str], data: st.DataObject) -> None:
        blank = data.draw(BLANKS)
        text = blank + "[" + f"{blank},{blank}".join(f'{blank}"{name}"' for name in ids) + blank + "]" + blank
        assert json.loads(text) == ids
        assert of_json(text.encode()) == hash_ids(ids).tolist()
        assert of_json(text.encode(), longest=max(map(len, ids))) == hash_ids(ids).tolist()
        assert of_json(text.encode(), room=len(ids)) == hash_ids(ids).tolist()
        assert of_json(text.encode(), longest=max(map(len, ids)) - 1) is None
        assert of_json(text.encode(), room=len(ids) - 1) is None

    @settings(deadline=None, max_examples=1000)
    @given(st.data())
    def test_nothing_else_is_taken_for_it(self, data: st.DataObject) -> None:
        """Whatever is made of a good text, JSON's own reader agrees where the machine code has an answer."""
        text = b'["a", "bc" ,"d e"]'
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text)))
            piece = data.draw(st.sampled_from([*b'[]",\\\t\0{}1'])) if data.draw(st.booleans()) else None
            inserted = data.draw(st.binary(max_size=2)) if piece is None else bytes([piece])
            text = text[:start] + inserted + text[start + data.draw(st.integers(0, 2)) :]
        found = of_json(text)
        if found is not None:
            # An integer is the id of its decimal text; nothing else may be there but text, which `str` leaves alone.
            ids = json.loads(text)
            assert all(type(id_) in (str, int) for id_ in ids)
            assert found == hash_ids([str(id_) for id_ in ids]).tolist()

    @pytest.mark.parametrize("text", SECOND_LOOKS)
    def test_what_needs_a_second_look(self, text: bytes) -> None:
        assert of_json(text) is None
