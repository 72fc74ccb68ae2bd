"""The format of a serving snapshot: a base file, and delta files with what changed after it.

A version names its files, the base first and the newest delta last. A row that a period does not touch stays as it is,
byte for byte: rows hold what was counted, and what time or other rows make of it is computed for each prediction. Every
file has, of the rows that are in it:

    users.hashes  u64  items.hashes  u64     IdIndex
    users.starts  u32  items.starts  u32     IdIndex
    users.vectors f32 [U, D]                 row 0 is the cold row, row n + 1 belongs to users.hashes[n]
    items.vectors f32 [I, R]                 likewise: an item's own vector [D]
    mlp.…  dot.…  f32                        the dense parameters

A model with categories or item fields adds lists, which name their members by the rows of the training tables
(*identities*). That of item i begins at firsts[i] and ends before firsts[i + 1]:

    items.categories.firsts u32 [I + 1]      items.fields.firsts u32 [I + 1]
    items.categories.rows   u32 [M]          items.fields.rows   u32 [M]       those of numbers with the bit `NUMBER`
    items.categories.weights f32 [M]         items.fields.weights f32 [M]      1, or a number as it was given
    categories.vectors f32 [C, D]            fields.vectors f32 [V, D]
                                             fields.hashes u64  fields.starts u32   IdIndex of the values of all fields
                                             fields.rows   u32 [N + 1]         identities of these values
                                             numbers.rows  u32 [K]             identities of the numeric fields
                                             numbers.scale f32 [K, 2]          mean of each, factor of the difference

A model with statistics (`asmg.statistics`) adds:

    items.vectors f32 [I, D + COUNTS]        behind the own vector: the item's counts, see `COUNTS`
    items.pairs.firsts u32 [I + 1]           lists of the items that were clicked beside each item
    items.pairs.rows   u32 [M]               their identities, ascending
    items.pairs.weights f32 [M, 2]           how often they were clicked beside it, and shown there and not clicked
    statistics.average f32 [1]               the average click rate
    statistics.scale   f32 [2, S]            the mean of each statistic, and the factor of the difference to it

The tables of categories and of values are small. In a base they are whole, and row n has the identity n. A delta has
some rows of them:

    categories.changed u32 [C]  fields.changed u32 [V]   identities of these rows, ascending; the first is 0

and says which ids the model does not know any more:

    users.gone u32 [U] or [0]  items.gone u32 [I] or [0]   1 where the row stands for an id that is cold again

(a value that is gone has the identity 0). The deltas of a version are merged into one *overlay*
(`service.serving.overlay`), which has the tensors of a delta, but whole tables of categories and values, and

    users.filter u32 [2ᵏ]  items.filter u32 [2ᵏ]         whose bit h mod 32 of the word with the number of the upper k
                                                         bits of h is 1 for each hash h of the overlay

The header holds the configuration of the model, the number of closed periods and the decays of the counts, the schema
of the fields with the scales of their numbers, and *check questions*: some requests as hashes, with the scores that the
library's model gave them, about rows of this file alone. A process serves a version only where it gets the scores of
its newest file. No id is in a file, so it can stay as it is when a user is deleted.

`service.serving.encode` writes bases and deltas; `service.serving.snapshot` opens them.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from asmg.header import CheckpointError, make_header, parse_header
from asmg.kernels.statistics import STATISTICS
from asmg.tensor_writer import Blocks, Writable, write_tensors
from service.serving.tensor_file import TensorFile

__all__ = [
    "COUNTS",
    "NUMBER",
    "QUESTIONS",
    "Part",
    "SnapshotFiles",
    "item_row_width",
    "lists_of",
    "read_header",
    "value_tables",
    "vector_width",
    "write_snapshot",
]

KIND = "snapshot"

QUESTIONS = "canary"
"""Name of the check questions in the header of a file; changing it would make stored files unreadable."""

FORMAT = 2
"""Version of the format. In the first, a snapshot was one file with everything in it computed for its period."""

COUNTS = 8
"""Numbers of an item's row for its statistics: its four counts (`asmg.statistics.Statistics.counts`), its degree, and,
as integers of 32 bits, its period `counted`, its period `paired`, and its identity. The row is padded to a multiple of
this."""

NUMBER = 1 << 31
"""Bit of an identity in `items.fields.rows` that says: the weight is a number that still has to be standardised."""

Part = Literal["base", "delta", "overlay"]

FIRST = ("users.hashes", "items.hashes", "fields.hashes", "users.vectors", "items.vectors")
"""Hashes come in whole cache lines and tables next, so that rows of a power of two do not straddle lines either."""


class SnapshotFiles(NamedTuple):
    """The files of a version."""

    base: TensorFile
    overlay: TensorFile | None
    """All deltas, merged; None where there is none."""

    @property
    def newest(self) -> TensorFile:
        """The file whose dense parameters, scales and small tables count."""
        return self.base if self.overlay is None else self.overlay


def lists_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the lists that the items of a model of this configuration have."""
    has = {"categories": "categories", "fields": "fields", "pairs": "numeric"}
    return [f"items.{name}" for name, setting in has.items() if config.get(setting)]


def value_tables(config: Mapping[str, Any]) -> list[str]:
    """Names of the tables to whose rows these lists refer, other than items."""
    return [name for name in ("categories", "fields") if config.get(name)]


def vector_width(config: Mapping[str, Any]) -> int:
    """Length of the vector of a user, an item, a category or a value."""
    return int(config["dim"]) + ("hidden" not in config)  # matrix factorization has a bias in it


def item_row_width(config: Mapping[str, Any]) -> int:
    """Length of an item's row."""
    own = vector_width(config)
    return own + COUNTS + -own % COUNTS if config.get("numeric") else own


def write_snapshot(
    file: Writable,
    part: Part,
    meta: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any] | Blocks],
) -> None:
    """Write a file; equal arguments give equal bytes.

    Args:
        file: receives the bytes.
        part: what it is.
        meta: `model`, the configuration; `QUESTIONS`, the check questions with their `scores`, each with `asked`, the
            hashes of a user and of the candidates, `history`, the hashes of the clicked items, and, where the model
            reads them, `recent` and `values`; with statistics `statistics`, their `periods`, `decay` and `pair_decay`;
            with fields `fields`, a `FieldReader` as JSON.
        tensors: as the format has them.
    """
    ordered = sorted(tensors, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    header = make_header(KIND, {"format": FORMAT, "part": part, **meta})
    write_tensors(file, header, {name: tensors[name] for name in ordered})


def read_header(file: TensorFile, *parts: Part) -> dict[str, Any]:
    """The header of a file, whose tensors are checked against it; `write_snapshot` says what it holds.

    Compiled code reads the tensors without bounds checks, so their shapes have to be right.

    Args:
        file: the file.
        parts: what it may be.

    Raises:
        CheckpointError: it is something else.
    """
    _, meta = parse_header(file.metadata, KIND)
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"snapshot: expected format {FORMAT}; received {meta.get('format', 1)}, of another release. "
            "Close a period: the worker of this release writes its version in this format"
        )
    if meta["part"] not in parts:
        raise CheckpointError(f"snapshot: expected a file of kind {' or '.join(parts)}; received {meta['part']}")
    config = meta["model"]
    if int(config.get("numeric", 0)) not in (0, STATISTICS):
        raise CheckpointError(f"snapshot: expected {STATISTICS} statistics; received {config['numeric']}")
    expected = _expected(config, meta["part"], file.tensors)
    if set(file.tensors) != set(expected):
        raise CheckpointError(f"snapshot: expected tensors {sorted(expected)}; received {sorted(file.tensors)}")
    for name, (dtype, shape) in expected.items():
        found = file.tensors[name]
        if (start := file.starts[name]) % found.itemsize:
            raise CheckpointError(f"snapshot: {name}: expected at a multiple of {found.itemsize}; received {start}")
        agree = (size in (None, got) for size, got in zip(shape, found.shape, strict=False))
        if found.dtype != dtype or found.ndim != len(shape) or not all(agree):
            received = f"{found.dtype} {list(found.shape)}"
            raise CheckpointError(f"snapshot: {name}: expected {np.dtype(dtype)} {list(shape)}; received {received}")
    return meta


def _expected(
    config: Mapping[str, Any], part: Part, tensors: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[DTypeLike, tuple[int | None, ...]]]:
    """Name → type and shape of each tensor that a file with these tensors has to have; None for any size."""

    def size(name: str) -> int:
        return len(tensors[name]) if name in tensors and tensors[name].ndim else -1

    def last(name: str) -> int:
        return int(tensors[name].flat[-1]) if size(name) > 0 else -1

    f32, u32, width = np.float32, np.uint32, vector_width(config)
    found: dict[str, tuple[DTypeLike, tuple[int | None, ...]]] = {}
    rows = {kind: last(f"{kind}.starts") + 1 for kind in ("users", "items", "fields")}
    for kind in ("users", "items", *(["fields"] if config.get("fields") else [])):
        # A look-up ends at a hash that is none of an id, so there is one more than ids.
        hashes = max(size(f"{kind}.hashes"), rows[kind])
        found |= {f"{kind}.hashes": (np.uint64, (hashes,)), f"{kind}.starts": (u32, (None,))}
    found |= {
        "users.vectors": (f32, (rows["users"], width)),
        "items.vectors": (f32, (rows["items"], item_row_width(config))),
    }
    for name in lists_of(config):
        members = last(f"{name}.firsts")
        found |= {f"{name}.firsts": (u32, (rows["items"] + 1,)), f"{name}.rows": (u32, (members,))}
        found[f"{name}.weights"] = (f32, (members, 2) if name == "items.pairs" else (members,))
    for name in value_tables(config):
        if part == "delta":
            found[f"{name}.changed"] = (u32, (None,))
        found[f"{name}.vectors"] = (f32, (size(f"{name}.changed") if part == "delta" else None, width))
    if config.get("fields"):
        numbers = size("numbers.rows")
        found |= {"fields.rows": (u32, (rows["fields"],)), "numbers.rows": (u32, (numbers,))}
        found["numbers.scale"] = (f32, (numbers, 2))
    if config.get("numeric"):
        found |= {"statistics.average": (f32, (1,)), "statistics.scale": (f32, (2, STATISTICS))}
    if part != "base":
        found |= {f"{kind}.gone": (u32, (rows[kind] if size(f"{kind}.gone") else 0,)) for kind in ("users", "items")}
    if part == "overlay":
        found |= {f"{kind}.filter": (u32, (size(f"{kind}.filter"),)) for kind in ("users", "items")}
    if "hidden" in config:
        item = width * (2 if config["categories"] else 1)
        inputs = width + 2 * item + (3 * width if config.get("fields") else 0) + int(config.get("numeric", 0))
        for layer, (fan_in, fan_out) in enumerate(pairwise([inputs, *config["hidden"], 1])):
            found |= {f"mlp.{layer}.weight": (f32, (fan_out, fan_in)), f"mlp.{layer}.bias": (f32, (fan_out,))}
        if config.get("dot"):
            found |= dict.fromkeys(("dot.user", "dot.history"), (f32, (item,)))
    return found
