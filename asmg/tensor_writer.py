"""Safetensors files, written in one pass. Needs no torch: serving imports it.

The format is that of the safetensors library: eight bytes with the length of a JSON header, the header, the tensors one
after the other. The library itself copies all tensors first; here they are written as they are, or in blocks.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ALIGNMENT", "BFLOAT16", "DTYPES", "Blocks", "Writable", "write_tensors"]

ALIGNMENT = 64
"""Bytes of a cache line. The tensors begin at a multiple of it, so that a row of 16 floats is one line."""

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""The upper half of a float32, for which NumPy has no type of its own."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"),
    "BF16": BFLOAT16,
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Name in a header → type."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        header[name] = {"dtype": _NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        for part in tensor.parts if isinstance(tensor, Blocks) else (tensor,):
            if part.size:
                file.write(np.ascontiguousarray(part, dtype=tensor.dtype).reshape(-1).view(np.uint8).data)
