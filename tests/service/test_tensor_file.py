"""Our reader and writer of safetensors files against the safetensors library."""

import hashlib
import json
import math
import tracemalloc
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from asmg.header import CheckpointError
from asmg.tensor_writer import ALIGNMENT, Blocks, write_tensors
from service.files import DigestedFile
from service.serving.tensor_file import TensorFile

Arrays = Mapping[str, NDArray[Any]]

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
NAMES = TEXT.filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    """Tensors in an order in which each is aligned to its numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made: dict[str, NDArray[Any]] = {}
    for dtype in (np.uint64, np.float32, np.uint32):
        for name in draw(st.lists(NAMES, max_size=2)):
            if name not in made:
                shape = draw(SHAPES)
                count = math.prod(shape) * np.dtype(dtype).itemsize
                made[name] = np.frombuffer(rng.bytes(count), dtype).reshape(shape)
    return made


def written(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any] | Blocks]) -> bytes:
    with BytesIO() as file:
        write_tensors(file, metadata, tensors)
        return file.getvalue()


def opened(folder: Path, data: bytes) -> TensorFile:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    return TensorFile(path)


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()  # NaN has many faces


@settings(deadline=None)
@given(tensors=arrays(), metadata=st.dictionaries(TEXT, TEXT, max_size=3))
def test_the_library_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]
) -> None:
    data = written(metadata, tensors)
    assert_equal(load(data), tensors)
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, "numpy") as file:  # type: ignore[no-untyped-call]
        assert (file.metadata() or {}) == metadata
    ours = TensorFile(path)
    assert ours.metadata == metadata
    assert_equal(ours.tensors, tensors)


@settings(deadline=None)
@given(
    tensors=arrays(),
    # Not without any entry, of which the library (0.8) makes no JSON.
    metadata=st.none() | st.dictionaries(st.sampled_from(["a", "ü"]), st.text("xé\0", max_size=3), min_size=1),
)
def test_we_read_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, NDArray[Any]], metadata: dict[str, str] | None
) -> None:
    ours = opened(tmp_path_factory.mktemp("file"), save(tensors, metadata))
    assert ours.metadata == metadata
    assert_equal(ours.tensors, tensors)


def test_a_tensor_made_while_it_is_written_is_the_same(tmp_path: Path) -> None:
    whole = np.arange(40, dtype=np.float64).reshape(10, 4)
    blocks = Blocks(np.float32, whole.shape, (whole[start : start + 3] for start in range(0, 10, 3)))
    assert written({}, {"a": blocks}) == written({}, {"a": whole.astype(np.float32)})
    turned = np.asfortranarray(whole.astype(np.float32))
    assert written({}, {"a": turned}) == written({}, {"a": whole.astype(np.float32)})


def test_a_large_tensor_is_never_whole_in_memory(tmp_path: Path) -> None:
    rows, block = 64_000, 1_000
    parts = (np.full((block, 64), n, dtype=np.float32) for n in range(rows // block))
    path = tmp_path / "large.safetensors"
    tracemalloc.start()
    try:
        with path.open("wb") as file:
            write_tensors(DigestedFile(file), {}, {"a": Blocks(np.float32, (rows, 64), parts)})
        written_at_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        opened_file = TensorFile(path)
        read_at_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = path.stat().st_size
    assert size > 16_000_000
    assert max(written_at_peak, read_at_peak) < size / 10
    assert opened_file.tensors["a"][::block, 5].tolist() == list(range(rows // block))


def test_rows_of_sixteen_floats_are_cache_lines(tmp_path: Path) -> None:
    """Behind hashes that fill whole lines, for every length of the header."""
    for extra in range(70):
        tensors = {
            "hashes": np.zeros(8, dtype=np.uint64),
            "rows": np.zeros((3, 16), dtype=np.float32),
            "more": np.zeros((2, 16), dtype=np.float32),
        }
        file = opened(tmp_path, written({"a": "x" * extra}, tensors))
        addresses = [array.ctypes.data for array in file.tensors.values()]
        assert [address % ALIGNMENT for address in addresses] == [0, 0, 0]
        assert [address - addresses[0] for address in addresses] == [0, 64, 64 + 3 * 64]


def test_views_cannot_be_written_to(tmp_path: Path) -> None:
    file = opened(tmp_path, written({}, {"a": np.zeros(4, np.float32), "none": np.zeros((0, 4), np.float32)}))
    for array in file.tensors.values():
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    assert not file.tensors["a"].flags.owndata  # nothing was copied


def with_header(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


REST = np.arange(4, dtype=np.float32).tobytes()
GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def bad(**changes: Any) -> bytes:
    return with_header({"a": {**GOOD["a"], **changes}}, REST)


BAD_FILES = {
    "empty": b"",
    "shorter than a length": b"\x02",
    "only a length": (2).to_bytes(8, "little"),
    "no header": (0).to_bytes(8, "little") + REST,
    "header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "header over the limit": (100_000_001).to_bytes(8, "little") + b"{}",
    "no JSON": with_header(b"{nothing", REST),
    "no UTF-8": with_header(b'{"\xff": 1}', REST),
    "deep JSON": with_header(b"[" * 100_000, REST),
    "no object": with_header([1, 2], REST),
    "a number": with_header(7, REST),
    "entry that is none": with_header({"a": 7}, REST),
    "unknown type": bad(dtype="I8"),
    "type of no snapshot": bad(dtype="I16", shape=[2, 4]),
    "type that is none": bad(dtype=["F32"]),
    "no shape": with_header({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, REST),
    "further member": bad(colour="red"),
    "shape below zero": bad(shape=[-2, -2]),
    "shape of fractions": bad(shape=[2.0, 2]),
    "shape of text": bad(shape="22"),
    "shape too large": bad(shape=[2, 3]),
    "shape of 2^70": bad(shape=[2**70], data_offsets=[0, 2**72]),
    "offsets turned": bad(data_offsets=[16, 0]),
    "offsets below zero": bad(data_offsets=[-16, 0]),
    "offsets too few": bad(data_offsets=[16]),
    "offsets of text": bad(data_offsets=["0", "16"]),
    "offsets past the end": bad(data_offsets=[4, 20]),
    "nothing at all": bad(data_offsets=None),
    "bytes behind": with_header(GOOD, REST + b"\0"),
    "bytes missing": with_header(GOOD, REST[:-1]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    assert opened(tmp_path, with_header(GOOD, REST)).tensors["a"].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(CheckpointError, match="expected"):
        opened(tmp_path, BAD_FILES[name])


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_headers_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = written({"asmg": "x"}, {"a": np.arange(8, dtype=np.uint64), "b": np.ones((3, 4), np.float32)})
    end = 8 + int.from_bytes(good[:8], "little")
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)) | st.just(len(good)))
    try:
        file = opened(tmp_path_factory.mktemp("file"), bytes(mutated[:cut]))
    except CheckpointError:
        return
    for array in file.tensors.values():  # what was accepted can be read
        array.tobytes()


def test_a_digest_of_what_was_written() -> None:
    with BytesIO() as file:
        digested = DigestedFile(file)
        write_tensors(digested, {}, {"a": np.arange(4, dtype=np.uint32)})
        assert digested.digest == hashlib.sha256(file.getvalue()).hexdigest()
        assert digested.size == len(file.getvalue())


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "none.safetensors")
