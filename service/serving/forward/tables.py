"""The tables of a snapshot as machine code reads them: those of its base, and in front of them those of its overlay.

A row number below the number of rows of the base stands for a row of the base, a higher one for a row of the overlay.
Code picks the array once for each row; no number of it costs a branch.

The arrays of a file are passed as one, the words of the file, with the places of its tensors. numba needs 0.1 µs for
each array that it takes over, and there are fifty.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ONE, Floats, Indices, Rows, compiled, inlined
from asmg.kernels.statistics import standard
from service.serving.forward.interface import EPSILON
from service.serving.id_hashes import Hashes
from service.serving.id_index import Starts, find_rows
from service.serving.snapshot_file import NUMBER, SnapshotFiles
from service.serving.tensor_file import TensorFile

__all__ = [
    "CATEGORIES",
    "FIELDS",
    "ITEMS",
    "PAIRS",
    "USERS",
    "Lists",
    "PackedFiles",
    "ValueTable",
    "Vectors",
    "Words",
    "add_values",
    "cold_row",
    "find_values",
    "list_cold",
    "lists_of_items",
    "pack",
    "probability",
    "rows_of_request",
    "value_table",
    "vector_of",
    "vectors_of",
]

LOWEST, HIGHEST = np.float32(EPSILON), np.float32(1 - EPSILON)

Words = NDArray[np.uint32]

IS_NUMBER, IDENTITY = np.uint32(NUMBER), np.uint32(NUMBER - 1)
LAST_BITS, ONE_BIT = np.uint64(31), np.uint32(1)

PLACED = (
    "users.hashes", "users.starts", "users.vectors", "users.gone", "users.filter",
    "items.hashes", "items.starts", "items.vectors", "items.gone", "items.filter",
    "items.categories.firsts", "items.categories.rows", "items.categories.weights", "categories.vectors",
    "items.fields.firsts", "items.fields.rows", "items.fields.weights", "fields.vectors",
    "items.pairs.firsts", "items.pairs.rows", "items.pairs.weights",
    "numbers.rows", "numbers.scale", "fields.hashes", "fields.starts", "fields.rows",
)  # fmt: skip
"""The tensors that are found by their places."""

USERS, ITEMS, CATEGORIES, FIELDS, PAIRS, NUMBERS, FIELD_INDEX = 0, 5, 10, 14, 18, 21, 23
"""Where in `PLACED` the tensors begin that belong together."""


class PackedFiles(NamedTuple):
    """The tensors of a snapshot, in few arrays."""

    base: Words
    """The whole base file."""
    newer: Words
    """The whole overlay; empty without one."""
    places: Indices
    """[2, T, 2]: where in the base, and where in the overlay, each tensor of `PLACED` begins, and its length; zeros for
    one that is not there."""


class Vectors(NamedTuple):
    """The rows of users or items."""

    base: Floats
    """[N, width]; row n + 1 belongs to the n-th hash, row 0 is the cold row."""
    newer: Floats
    """The same of the overlay; [0, width] without one. Its cold row is the one that counts."""


class Lists(NamedTuple):
    """A list of weighted rows for each item."""

    firsts: Starts
    """[I + 1], where the lists of the base begin."""
    rows: Words
    weights: Floats
    """[M, 1], or [M, 2] for pairs."""
    newer_firsts: Starts
    """This and the next: the lists of the overlay."""
    newer_rows: Words
    newer_weights: Floats


class ValueTable(NamedTuple):
    """The rows of categories or of values, by their identities."""

    vectors: Floats
    numbers: Words
    """Identities of numeric fields, [K]."""
    scale: Floats
    """What is subtracted from their numbers, and the factor of the difference, [K, 2]."""


def pack(files: SnapshotFiles) -> PackedFiles:
    """The tensors of a snapshot for machine code."""
    places = np.zeros((2, len(PLACED), 2), np.int64)
    for file, own in zip(files, places, strict=True):
        for n, name in enumerate(PLACED):
            if file is not None and name in file.tensors:
                own[n] = file.starts[name] // 4, len(file.tensors[name])
    return PackedFiles(_words(files.base), _words(files.overlay), places)


def _words(file: TensorFile | None) -> Words:
    if file is not None:
        return np.frombuffer(file.mapping, np.uint32, len(file.mapping) // 4)
    nothing = np.empty(0, np.uint32)
    nothing.flags.writeable = False  # as those of a file: another type would have all code compiled once more
    return nothing


@inlined
def _integers(words: Words, place: Indices) -> Words:
    return words[place[0] : place[0] + place[1]]


@inlined
def _hashes(words: Words, place: Indices) -> Hashes:
    return words[place[0] : place[0] + 2 * place[1]].view(np.uint64)


@inlined
def _numbers(words: Words, place: Indices, width: int) -> Floats:
    return words[place[0] : place[0] + width * place[1]].view(np.float32).reshape(place[1], width)


@inlined
def vectors_of(files: PackedFiles, at: int, width: int) -> Vectors:
    """The table `USERS` or `ITEMS`, with rows of `width` numbers."""
    return Vectors(
        _numbers(files.base, files.places[0, at + 2], width), _numbers(files.newer, files.places[1, at + 2], width)
    )


@inlined
def lists_of_items(files: PackedFiles, at: int, width: int) -> Lists:
    """The lists `CATEGORIES`, `FIELDS` or `PAIRS`, with `width` weights for each member."""
    base, newer, old, new = files.base, files.newer, files.places[0], files.places[1]
    return Lists(
        _integers(base, old[at]), _integers(base, old[at + 1]), _numbers(base, old[at + 2], width),
        _integers(newer, new[at]), _integers(newer, new[at + 1]), _numbers(newer, new[at + 2], width),
    )  # fmt: skip


@inlined
def _newest(files: PackedFiles) -> tuple[Words, Indices]:
    """The file whose small tables count, and the places of its tensors."""
    return (files.newer, files.places[1]) if len(files.newer) else (files.base, files.places[0])


@inlined
def value_table(files: PackedFiles, at: int, width: int) -> ValueTable:
    """The table of `CATEGORIES` or `FIELDS`, with rows of `width` numbers."""
    words, places = _newest(files)
    return ValueTable(
        _numbers(words, places[at + 3], width),
        _integers(words, places[NUMBERS]),
        _numbers(words, places[NUMBERS + 1], 2),
    )


@compiled
def find_values(files: PackedFiles, wanted: Hashes, rows: Indices) -> None:
    """Write the identity of each value to `rows`, int64 [K]; that of the cold row for an unknown one."""
    words, places = _newest(files)
    find_rows(wanted, _hashes(words, places[FIELD_INDEX]), _integers(words, places[FIELD_INDEX + 1]), rows)
    identities = _integers(words, places[FIELD_INDEX + 2])
    for i in range(len(rows)):
        rows[i] = identities[rows[i]]


@inlined
def cold_row(files: PackedFiles, at: int) -> int:
    """The row of every unknown id in the table `USERS` or `ITEMS`."""
    return files.places[0, at + 2, 1] if len(files.newer) else 0


@compiled
def look_up(files: PackedFiles, at: int, wanted: Hashes, rows: Indices) -> None:
    """Write the row of each wanted hash to `rows`, int64 [N]; the cold row for an unknown one."""
    places = files.places[0]
    find_rows(wanted, _hashes(files.base, places[at]), _integers(files.base, places[at + 1]), rows)
    if len(files.newer):
        _look_up_newer(files, at, wanted, rows)


@compiled
def _look_up_newer(files: PackedFiles, at: int, wanted: Hashes, rows: Indices) -> None:
    """Put rows of the overlay in the place of those that `rows` has."""
    words, places, size = files.newer, files.places[1], files.places[0, at + 2, 1]
    filter_, gone, count = _integers(words, places[at + 4]), _integers(words, places[at + 3]), 0
    shift = np.uint64(64)
    while np.int64(1) << np.int64(np.uint64(64) - shift) < len(filter_):
        shift -= np.uint64(1)
    few, which = np.empty(len(wanted), np.uint64), np.empty(len(wanted), np.int64)
    for i in range(len(wanted)):
        few[count], which[count] = wanted[i], i
        count += int((filter_[np.int64(wanted[i] >> shift)] >> np.uint32(wanted[i] & LAST_BITS)) & ONE_BIT)
        if rows[i] == 0:
            rows[i] = size
    found = np.empty(count, np.int64)
    find_rows(few[:count], _hashes(words, places[at]), _integers(words, places[at + 1]), found)
    for i in range(count):
        if found[i] > 0:
            rows[which[i]] = size + found[i]
            if len(gone) and gone[found[i]]:
                rows[which[i]] = size


@compiled
def rows_of_request(files: PackedFiles, hashes: Hashes, history: Hashes) -> Indices:
    """The rows of the user, the candidates and the history, one after the other, int64 [1 + N + H]."""
    n = len(hashes)
    rows, items = np.empty(n + len(history), np.int64), np.empty(n - 1 + len(history), np.uint64)
    items[: n - 1], items[n - 1 :] = hashes[1:], history
    look_up(files, USERS, hashes[:1], rows[:1])
    look_up(files, ITEMS, items, rows[1:])
    return rows


@inlined
def vector_of(table: Vectors, row: int) -> Floats:
    """A row of a table."""
    vector: Floats = table.base[row] if row < len(table.base) else table.newer[row - len(table.base)]
    return vector


@inlined
def add_values(lists: Lists, row: int, values: ValueTable, out: Floats) -> None:
    """Add the weighted vectors of an item's list to `out` [D]."""
    size = len(lists.firsts) - 1
    if row < size:
        _add_values(lists.firsts, lists.rows, lists.weights, row, values, out)
    else:
        _add_values(lists.newer_firsts, lists.newer_rows, lists.newer_weights, row - size, values, out)


@compiled
def _add_values(firsts: Starts, rows: Words, weights: Floats, at: int, values: ValueTable, out: Floats) -> None:
    for m in range(np.int64(firsts[at]), np.int64(firsts[at + 1])):
        row, weight = rows[m] & IDENTITY, weights[m, 0]
        if rows[m] & IS_NUMBER:
            for k in range(len(values.numbers)):
                if values.numbers[k] == row:
                    weight = standard(weight, values.scale[k, 0], values.scale[k, 1])
        for k in range(len(out)):
            out[k] += weight * values.vectors[row, k]


@inlined
def list_cold(candidates: Indices, cold_one: int, cold: Rows) -> int:
    """Write the positions of the candidates in the cold row to `cold`; returns their number."""
    found = 0
    for i in range(len(candidates)):
        if candidates[i] == cold_one:
            cold[found] = i
            found += 1
    return found


@inlined
def probability(logit: np.float32) -> np.float32:
    """The sigmoid, in [ε, 1 − ε]. NaN, which parameters whose products overflow can give, becomes ε."""
    p = ONE / (ONE + np.float32(math.exp(-logit)))
    if p > HIGHEST:
        return HIGHEST
    return p if p > LOWEST else LOWEST
