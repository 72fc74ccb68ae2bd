"""Small contents packed without loss: what a chunk of an artifact holds in place of its bytes where that is shorter.

Most contents are numbers of four bytes. Their first bytes are much alike (sign and exponent), and their last ones are
not, so the bytes are put into four planes, and each plane that is not noise is compressed. A difference of two models,
or moments rounded to 16 bits, have planes of zeros. The digest of an artifact is that of its content, never of this.
"""

import struct
import zlib

import numpy as np

__all__ = ["CONTENT_LENGTH", "MARK", "pack", "unpack"]

MARK = b"\xffASMGpk1"
"""Begins a packed chunk. Contents are safetensors files; read as the length of a header, which they begin with, this
would be more than any file has."""

WIDTH = 4
"""Bytes of a number."""

BLOCK_BYTES = 64 * 1024
"""Bytes that are put into planes together. Tensors differ, and a block seldom has parts of many."""

STRATEGY = zlib.Z_RLE
"""Of zlib: it looks for runs of equal bytes and for frequent ones. Other repetitions are rare in numbers."""

NOISE_BITS = 7.5
"""Entropy of a plane, in bits a byte, from which on it stays as it is: compressing would save a few per cent."""

SAMPLED = 8
"""Every eighth byte of a plane is counted for its entropy."""

LENGTH = struct.Struct(">I")
"""Of the content, after `MARK`."""

PLANE = struct.Struct(">?I")
"""Before each plane: whether it is compressed, and its bytes."""

CONTENT_LENGTH = f"""
    CASE WHEN substring(data, 1, {len(MARK)}) = '\\x{MARK.hex()}'
         THEN ('x' || encode(substring(data, {len(MARK) + 1}, {LENGTH.size}), 'hex'))::bit({8 * LENGTH.size})::int
         ELSE length(data) END
"""
"""SQL: the bytes of the content of the chunk `data`."""


def pack(content: bytes) -> bytes:
    """The content, packed if that is shorter."""
    parts = [MARK, LENGTH.pack(len(content))]
    for start in range(0, len(content), BLOCK_BYTES):
        block = np.frombuffer(content[start : start + BLOCK_BYTES], np.uint8)
        rest = block.size % WIDTH
        planes = [*block[: block.size - rest].reshape(-1, WIDTH).T, block[block.size - rest :]]
        for plane in planes if rest else planes[:WIDTH]:
            data = plane.tobytes()
            is_noise = _entropy(plane[::SAMPLED]) > NOISE_BITS
            stored = data if is_noise else _compressed(data)
            parts += [PLANE.pack(not is_noise, len(stored)), stored]
    packed = b"".join(parts)
    return packed if len(packed) < len(content) or content.startswith(MARK) else content


def unpack(chunk: bytes) -> bytes:
    """The content of a chunk.

    Raises:
        ValueError: it begins like a packed one, and is damaged.
    """
    if not chunk.startswith(MARK):
        return chunk
    try:
        return _unpacked(chunk)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"chunk: expected a packed one; received a damaged one ({error})") from error


def _unpacked(chunk: bytes) -> bytes:
    (size,), at = LENGTH.unpack_from(chunk, len(MARK)), len(MARK) + LENGTH.size
    blocks = []
    for start in range(0, size, BLOCK_BYTES):
        length = min(BLOCK_BYTES, size - start)
        planes = []
        for expected in [length // WIDTH] * WIDTH + [length % WIDTH] * (length % WIDTH > 0):
            is_compressed, stored = PLANE.unpack_from(chunk, at)
            at += PLANE.size + stored
            plane = chunk[at - stored : at]
            planes.append(np.frombuffer(zlib.decompress(plane) if is_compressed else plane, np.uint8))
            if len(planes[-1]) != expected:
                raise ValueError(f"chunk: expected a plane of {expected} bytes; received {len(planes[-1])}")
        blocks += [np.stack(planes[:WIDTH], axis=1).tobytes(), *(plane.tobytes() for plane in planes[WIDTH:])]
    return b"".join(blocks)


def _compressed(data: bytes) -> bytes:
    work = zlib.compressobj(1, strategy=STRATEGY)
    return work.compress(data) + work.flush()


def _entropy(sample: np.ndarray) -> float:
    """Bits a byte that a code for single bytes needs."""
    counts = np.bincount(sample, minlength=1)
    shares = counts[counts > 0] / max(len(sample), 1)
    return float(-(shares * np.log2(shares)).sum())
