"""Machine code for what clients send as text: XXH64 of a part of it, the letters of JSON, and eight bytes at a time."""

import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from asmg.kernels.common import compiled, inlined

__all__ = [
    "BACKSLASH",
    "CLOSING",
    "COMMA",
    "LINE_FEED",
    "OPENING",
    "QUOTE",
    "RETURN",
    "SPACE",
    "TAB",
    "WORD_BYTES",
    "Bytes",
    "behind_blanks",
    "byte_at",
    "first_marked",
    "put_word",
    "swapped",
    "word_at",
    "xxh64",
]

Bytes = NDArray[np.uint8]

QUOTE, BACKSLASH, COMMA, OPENING, CLOSING = (ord(c) for c in '"\\,[]')
SPACE, TAB, LINE_FEED, RETURN = (ord(c) for c in " \t\n\r")

U = np.uint64

WORD_BYTES = 8
assert sys.byteorder == "little", "words are taken apart as little-endian numbers"


def _address(context: Any, builder: Any, type_: Any, text: Any, at: Any) -> Any:
    return builder.gep(context.make_array(type_)(context, builder, text).data, [at])


def _word_address(context: Any, builder: Any, type_: Any, text: Any, at: Any) -> Any:
    pointer = context.get_value_type(types.uint64).as_pointer()
    return builder.bitcast(_address(context, builder, type_, text, at), pointer)


def _byte_at(_: Any, text: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        return builder.zext(builder.load(address), context.get_value_type(types.int64))

    return types.int64(text, types.int64), generate


def _word_at(_: Any, text: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_word_address(context, builder, signature.args[0], *arguments), align=1)

    return types.uint64(text, types.int64), generate


def _put_word(_: Any, text: Any, at: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, word = arguments
        builder.store(word, _word_address(context, builder, signature.args[0], *place), align=1)
        return context.get_dummy_value()

    return types.void(text, types.int64, types.uint64), generate


def _swapped(_: Any, word: Any) -> Any:
    return types.uint64(types.uint64), lambda context, builder, signature, arguments: builder.bswap(arguments[0])


def _first_marked(_: Any, marks: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.lshr(builder.cttz(arguments[0], cgutils.false_bit), context.get_value_type(types.int64)(3))

    return types.int64(types.uint64), generate


# Numba tests each index for being negative and moves bytes one by one; these do neither. Nor do they know where an
# array ends: whoever uses them sees to that there is room.
byte_at = cast(Callable[[Bytes, int], int], intrinsic(_byte_at))
"""One byte."""
word_at = cast(Callable[[Bytes, int], np.uint64], intrinsic(_word_at))
"""The eight bytes from a place on, the first one the lowest."""
put_word = cast(Callable[[Bytes, int, np.uint64], None], intrinsic(_put_word))
"""Write eight bytes, the lowest one first."""
swapped = cast(Callable[[np.uint64], np.uint64], intrinsic(_swapped))
"""The same bytes in the other order."""
first_marked = cast(Callable[[np.uint64], int], intrinsic(_first_marked))
"""The lowest byte of a word that is not zero."""

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
