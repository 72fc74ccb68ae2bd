"""Safetensors files, read through a memory map as NumPy arrays, so that processes that read one share its pages.

`asmg.tensor_writer` writes them. The safetensors library itself copies the tensors when it reads.
"""

import json
import math
import mmap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from asmg.header import CheckpointError
from asmg.tensor_writer import DTYPES

__all__ = ["PAUSE_SECONDS", "PIECE_BYTES", "TensorFile", "map_file", "read_through"]

MAX_HEADER_BYTES = 100_000_000
"""The longest header; the limit of the safetensors library."""

_DTYPES = {name: DTYPES[name] for name in ("F64", "I64", "U64", "F32", "I32", "U32")}
"""The types that snapshots have; a file with any other is refused."""

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of a mapping that are read or released at a time; the GIL is held meanwhile."""

PAUSE_SECONDS = 0.001
"""Pause between two pieces while requests are served: reading a gigabyte then takes a quarter of a second longer."""


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
        kind, (start, end), count = _DTYPES[dtype], data_offsets, math.prod(shape)
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
