"""Safetensors files, written in one pass and read through a memory map, as NumPy arrays.

The format is that of the safetensors library: eight bytes with the length of a JSON header, the header, the tensors one
after the other. The library itself writes tensors that are in memory as a whole, and copies them when it reads. Here a
table of gigabytes is written in blocks, and processes that read it share its pages.
"""

import json
import math
import mmap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from asmg.header import CheckpointError

__all__ = [
    "ALIGNMENT",
    "PAUSE_SECONDS",
    "PIECE_BYTES",
    "Blocks",
    "TensorFile",
    "Writable",
    "map_file",
    "read_through",
    "write_tensors",
]

ALIGNMENT = 64
"""Bytes of a cache line. The tensors begin at a multiple of it, so that a row of 16 floats is one line."""

MAX_HEADER_BYTES = 100_000_000
"""The longest header; the limit of the safetensors library."""

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of a mapping that are read or released at a time; the GIL is held meanwhile."""

PAUSE_SECONDS = 0.001
"""Pause between two pieces while requests are served: reading a gigabyte then takes a quarter of a second longer."""

_NAMES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
}
_DTYPES = {dtype: name for name, dtype in _NAMES.items()}


class Blocks(NamedTuple):
    """A tensor that is computed while it is written, so that it is never in memory as a whole."""

    dtype: DTypeLike
    shape: tuple[int, ...]
    parts: Iterable[NDArray[Any]]
    """Its rows, in blocks."""


class Writable(Protocol):
    """Anything that bytes can be written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append the bytes."""


def write_tensors(file: Writable, metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any] | Blocks]) -> None:
    """Write a safetensors file; equal arguments give equal bytes.

    Args:
        file: receives the bytes.
        metadata: of the header.
        tensors: by name, in the order of the file, in which each has to be aligned to the size of its numbers.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        size = dtype.itemsize * math.prod(tensor.shape)
        assert at % dtype.itemsize == 0, name
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        for part in tensor.parts if isinstance(tensor, Blocks) else (tensor,):
            if part.size:  # an empty array has no bytes to cast to
                file.write(np.ascontiguousarray(part, dtype=tensor.dtype).reshape(-1).data.cast("B"))


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory; the operating system shares its pages between all processes that do.

    Raises:
        CheckpointError: it is empty.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # the file is empty
            raise _unreadable() from error


def read_through(mapping: mmap.mmap, *, pause_seconds: float = 0.0) -> str:
    """Read every page once, so that no request waits for one later.

    Args:
        mapping: of a file.
        pause_seconds: pause between two pieces, in which requests get the processor.

    Returns:
        the XXH3-128 of all bytes, in hex.
    """
    digest = xxhash.xxh3_128()
    with memoryview(mapping) as view:
        for start in range(0, len(view), PIECE_BYTES):
            digest.update(view[start : start + PIECE_BYTES])
            time.sleep(pause_seconds)
    return digest.hexdigest()


class TensorFile:
    """A memory-mapped safetensors file. Opening it reads the header only, whatever its size.

    Args:
        file: its path, or its pages.

    Raises:
        CheckpointError: the file is no safetensors file, or is not as long as its header says.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path | mmap.mmap) -> None:
        self.mapping = map_file(file) if isinstance(file, Path) else file
        try:
            size = int.from_bytes(self.mapping[:8], "little")
            if not 2 <= size <= min(MAX_HEADER_BYTES, len(self.mapping) - 8):
                raise ValueError
            header = json.loads(self.mapping[8 : 8 + size])
            self.metadata: Mapping[str, str] | None = header.pop("__metadata__", None)
            self.tensors = {name: self._array(8 + size, **entry) for name, entry in header.items()}
            self.starts = {name: 8 + size + int(entry["data_offsets"][0]) for name, entry in header.items()}
            """Where each tensor begins, in bytes from the start of the file."""
            ends = [8 + size, *(8 + size + entry["data_offsets"][1] for entry in header.values())]
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise _unreadable() from error
        if max(ends) != len(self.mapping):
            raise CheckpointError(f"snapshot: expected a file of {max(ends)} bytes; received {len(self.mapping)}")

    def _array(self, base: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[Any]:
        """A read-only view of the file."""
        kind, (start, end), count = _NAMES[dtype], data_offsets, math.prod(shape)
        if min(shape, default=0) < 0 or not 0 <= start <= end or end - start != count * kind.itemsize:
            raise ValueError
        if count:
            found = np.frombuffer(self.mapping, kind, count, base + start).reshape(shape)
        else:
            found = np.empty(shape, dtype=kind)
        found.flags.writeable = False  # all are of the same type, for compiled code
        return found


def _unreadable() -> CheckpointError:
    return CheckpointError("snapshot: expected a safetensors file; received an unreadable one")
