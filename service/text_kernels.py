"""Machine code for what clients send as text: XXH64 of a part of it, and the letters of JSON."""

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import compiled, inlined

__all__ = ["BACKSLASH", "CLOSING", "COMMA", "OPENING", "QUOTE", "SPACE", "behind_blanks", "xxh64"]

QUOTE, BACKSLASH, COMMA, OPENING, CLOSING = (ord(c) for c in '"\\,[]')
SPACE, TAB, LINE_FEED, RETURN = (ord(c) for c in " \t\n\r")

U = np.uint64

# XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), seed 0.
P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
P4, P5 = U(0x85EBCA77C2B2AE63), U(0x27D4EB2F165667C5)


@inlined
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << U(bits)) | (x >> U(64 - bits))


@inlined
def _word(text: bytes | NDArray[np.uint8], at: int, size: int) -> np.uint64:
    """`size` bytes as a little-endian number; the compiler makes one load of it."""
    word = U(text[at])
    for k in range(1, size):
        word |= U(text[at + k]) << U(8 * k)
    return word


@inlined
def _round(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(state + word * P2, 31) * P1


@compiled
def xxh64(text: bytes | NDArray[np.uint8], start: int, end: int) -> np.uint64:
    """Of the bytes `start` to `end` of `text`."""
    at = start
    if end - start >= 32:
        a, b, c, d = P1 + P2, P2, U(0), U(0) - P1
        while at + 32 <= end:
            a, b = _round(a, _word(text, at, 8)), _round(b, _word(text, at + 8, 8))
            c, d = _round(c, _word(text, at + 16, 8)), _round(d, _word(text, at + 24, 8))
            at += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        for state in (a, b, c, d):
            h = (h ^ _round(U(0), state)) * P1 + P4
    else:
        h = P5
    h += U(end - start)
    while at + 8 <= end:
        h = _rotate(h ^ _round(U(0), _word(text, at, 8)), 27) * P1 + P4
        at += 8
    if at + 4 <= end:
        h = _rotate(h ^ (_word(text, at, 4) * P1), 23) * P2 + P3
        at += 4
    while at < end:
        h = _rotate(h ^ (U(text[at]) * P5), 11) * P1
        at += 1
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return h ^ (h >> U(32))


@inlined
def behind_blanks(text: bytes, at: int) -> int:
    """The first place from `at` on that is no white space, or the end."""
    while at < len(text) and (text[at] == SPACE or text[at] == TAB or text[at] == LINE_FEED or text[at] == RETURN):
        at += 1
    return at
