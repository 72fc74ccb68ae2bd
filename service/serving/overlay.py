"""Merges the deltas of a version into one overlay, in which a prediction looks before the base.

`service.serving.loading` does so for each version with deltas, once a host. The overlay of a version and one more delta
give that of the next; the bytes do not depend on the way. What is merged are rows of users and items with their lists;
the tables of categories and values, which are small, are made whole.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from asmg.header import CheckpointError
from asmg.kernels.common import Floats, Indices, compiled
from asmg.tensor_writer import Writable
from service.serving.id_hashes import Hashes
from service.serving.id_index import IdIndex, Starts
from service.serving.snapshot_file import NUMBER, lists_of, read_header, value_tables, write_snapshot
from service.serving.tensor_file import TensorFile

__all__ = ["Overlay", "merge", "overlay_name", "prepare_merging"]

Tensors = dict[str, NDArray[Any]]


IDS_PER_WORD = 2
"""Most ids for each word of 32 bits of a filter: then one in sixteen other ids has its bit set, too."""


class Overlay(NamedTuple):
    """An overlay that can be written."""

    write: Callable[[Writable], None]
    """Writes it as a file."""
    check: str
    """XXH3-128 of that file, in hex."""


def overlay_name(names: Sequence[str]) -> str:
    """What the overlay of a version is called; equal for equal lists.

    Args:
        names: of the version's files, the base first.
    """
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def merge(base: TensorFile, parts: Sequence[TensorFile]) -> Overlay:
    """Merge what came after a base.

    Args:
        base: the base.
        parts: deltas, oldest first; an overlay of the same base may stand for the oldest.

    Raises:
        CheckpointError: a file is something else, or they do not belong together.
    """
    metas = [read_header(part, *(("delta", "overlay") if n == 0 else ("delta",))) for n, part in enumerate(parts)]
    meta, newest, config = metas[-1], parts[-1].tensors, read_header(base, "base")["model"]
    if any(each["model"] != config for each in metas):
        raise CheckpointError(f"snapshot: expected deltas of {config}; received {[each['model'] for each in metas]}")
    tensors: Tensors = {}
    for kind in ("users", "items"):
        tensors |= _merge_rows(kind, [part.tensors for part in parts], lists_of(config) if kind == "items" else [])
    # An overlay has these tables whole already.
    small = ([] if metas[0]["part"] == "overlay" else [base.tensors]) + [part.tensors for part in parts]
    for name in value_tables(config):
        table = tensors[f"{name}.vectors"] = _merge_values(name, small)
        rows = tensors[f"items.{name}.rows"]
        if len(rows) and int((rows & np.uint32(NUMBER - 1)).max()) >= len(table):
            raise CheckpointError(f"snapshot: expected items of {len(table)} {name}; received one of another")
    if config.get("fields"):
        tensors |= _merge_index(small)
    meta = {name: value for name, value in meta.items() if name not in ("part", "format")}
    tensors |= {name: tensor for name, tensor in newest.items() if _is_dense(name)}

    def write(file: Writable) -> None:
        write_snapshot(file, "overlay", meta, tensors)

    digest = xxhash.xxh3_128()
    write(_Digesting(digest))
    return Overlay(write, digest.hexdigest())


def prepare_merging() -> None:
    """Compile what merging needs, or load it, so that no request waits for a compiler when the first delta comes."""
    integers, weights, out = np.empty(0, np.uint32), np.empty((0, 1), np.float32), np.empty((0, 1), np.float32)
    for array in (integers, weights):
        array.flags.writeable = False  # as those of a file
    nothing = np.empty(0, np.int64)
    _copy_lists(integers, integers, weights, nothing, nothing, np.empty(0, np.uint32), out)


class _Digesting(NamedTuple):
    digest: Any

    def write(self, data: bytes | memoryview, /) -> None:
        """Take the bytes in."""
        self.digest.update(data)


def _is_dense(name: str) -> bool:
    return name.partition(".")[0] in ("mlp", "dot", "statistics", "numbers")


def _known(tensors: Mapping[str, NDArray[Any]], kind: str) -> Hashes:
    """The hashes of a file's ids."""
    known: Hashes = tensors[f"{kind}.hashes"][: int(tensors[f"{kind}.starts"][-1])]
    return known


def _newest_of(hashes: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """All hashes of some files, oldest first: ascending, with the newest file that has each, and its place there."""
    turned = hashes[::-1]
    merged, first = np.unique(np.concatenate(turned), return_index=True)
    ends = np.cumsum([len(own) for own in turned])
    file = np.searchsorted(ends, first, side="right")
    return merged, len(hashes) - 1 - file, first - (ends - [len(own) for own in turned])[file]


def _merge_rows(kind: str, parts: Sequence[Mapping[str, NDArray[Any]]], lists: Sequence[str]) -> Tensors:
    """The rows of users or items, and their lists; of each id those of the newest file that has it."""
    hashes, file, place = _newest_of([_known(part, kind) for part in parts])
    index, _ = IdIndex.of_hashes(hashes, place)
    # The first row is the cold row, that of the newest file.
    file, row = np.concatenate([[len(parts) - 1], file]), np.concatenate([[0], place + 1])
    from_file = [np.nonzero(file == n)[0] for n in range(len(parts))]
    vectors = np.empty((len(row), parts[0][f"{kind}.vectors"].shape[1]), np.float32)
    gone = np.zeros(len(row), np.uint32)
    for part, at in zip(parts, from_file, strict=True):
        vectors[at] = part[f"{kind}.vectors"][row[at]]
        if len(part[f"{kind}.gone"]):
            gone[at] = part[f"{kind}.gone"][row[at]]
    tensors: Tensors = {f"{kind}.hashes": index.hashes, f"{kind}.starts": index.starts, f"{kind}.vectors": vectors}
    tensors |= {f"{kind}.gone": gone if gone.any() else gone[:0], f"{kind}.filter": _filter(hashes)}
    for name in lists:
        lengths = np.empty(len(row), np.int64)
        for part, at in zip(parts, from_file, strict=True):
            firsts = part[f"{name}.firsts"].astype(np.int64)
            lengths[at] = firsts[row[at] + 1] - firsts[row[at]]
        firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        rows = np.empty(firsts[-1], np.uint32)
        weights = np.empty((len(rows), *parts[0][f"{name}.weights"].shape[1:]), np.float32)
        for part, at in zip(parts, from_file, strict=True):
            _copy_lists(
                part[f"{name}.firsts"], part[f"{name}.rows"], _columns(part[f"{name}.weights"]), row[at],
                firsts[at], rows, _columns(weights),
            )  # fmt: skip
        tensors |= {f"{name}.firsts": firsts.astype(np.uint32), f"{name}.rows": rows, f"{name}.weights": weights}
    return tensors


def _filter(hashes: Hashes) -> NDArray[np.uint32]:
    """The bits by which a prediction sees of nearly every other id that the overlay does not have it."""
    bits = max(1, int(len(hashes) / IDS_PER_WORD).bit_length())
    words = np.zeros(2**bits, np.uint32)
    of_hash = np.uint32(1) << (hashes & np.uint64(31)).astype(np.uint32)
    np.bitwise_or.at(words, (hashes >> np.uint64(64 - bits)).astype(np.int64), of_hash)
    return words


def _columns(weights: Floats) -> Floats:
    return weights.reshape(len(weights), weights.shape[1] if weights.ndim > 1 else 1)


@compiled
def _copy_lists(
    firsts: Starts, rows: Starts, weights: Floats, of: Indices, to: Indices, out: Starts, out_weights: Floats
) -> None:
    """Copy the lists of the items `of` to the places `to`."""
    for i in range(len(of)):
        first, size = np.int64(firsts[of[i]]), np.int64(firsts[of[i] + 1]) - np.int64(firsts[of[i]])
        for m in range(size):
            out[to[i] + m] = rows[first + m]
        for m in range(size):
            for k in range(weights.shape[1]):
                out_weights[to[i] + m, k] = weights[first + m, k]


def _merge_values(name: str, parts: Sequence[Mapping[str, NDArray[Any]]]) -> Floats:
    """The whole table of categories or of values, from a whole one and changed rows."""
    whole, *changes = parts
    size = max([len(whole[f"{name}.vectors"]), *(int(part[f"{name}.changed"][-1]) + 1 for part in changes)])
    table: Floats = np.zeros((size, whole[f"{name}.vectors"].shape[1]), np.float32)
    table[: len(whole[f"{name}.vectors"])] = whole[f"{name}.vectors"]
    for part in changes:
        table[part[f"{name}.changed"]] = part[f"{name}.vectors"]
    return table


def _merge_index(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Tensors:
    """The index of all values that are not gone."""
    hashes, file, place = _newest_of([_known(part, "fields") for part in parts])
    identities = np.empty(len(hashes), np.uint32)
    for n, part in enumerate(parts):
        identities[file == n] = part["fields.rows"][place[file == n] + 1]
    index, rows = IdIndex.of_hashes(hashes[identities > 0], identities[identities > 0])
    rows = np.concatenate([[0], rows]).astype(np.uint32)
    return {"fields.hashes": index.hashes, "fields.starts": index.starts, "fields.rows": rows}
