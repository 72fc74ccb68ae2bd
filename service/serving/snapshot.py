"""The serving snapshot: one immutable file with a model and the index of the ids it knows, of which every process maps
a copy that nothing can change (`service.serving.sealed`).

    items.hashes  u64  users.hashes  u64     IdIndex
    items.vectors f32 [I, W]                 what an item is to the model, categories mixed in; row 0 is the cold row,
                                             row n + 1 that of items.hashes[n]
    users.vectors f32 [U, D]
    mlp.…  dot.…  f32                        the dense parameters
    items.starts  u32  users.starts  u32     IdIndex

and, of a model that reads fields (`asmg.field_columns`):

    items.vectors f32 [I, W + D + …]         behind W: the sum of what the item's fields are
    fields.hashes u64  fields.starts u32     IdIndex of the values (`asmg.features.name_of_value`)
    fields.vectors f32 [V, D]                row 0 is that of every unknown value

and, of one that reads statistics (`asmg.statistics`), as of the period that it learned last:

    items.vectors f32 [I, … + ITEM + 1 + …]  behind these: the item's own statistics, standardised; how often anything
                                             was clicked beside it; zeros to a multiple of 32 bytes
    pairs.firsts  u32 [I + 1]                where the neighbours of each item begin among
    pairs.items   u32 [M]                    rows of items that were clicked beside it, none of them 0
    pairs.counts  f32 [M, 2]                 how often, and how often they were shown and not clicked
    statistics.average f32 [1]               the average click rate
    statistics.scale   f32 [2, S]            what is taken off each statistic, and what it is multiplied by then

(Older files have items.share beside them, which nothing reads any more.)

The header has the model's configuration, the schema of its fields with the scale of their numbers, and a *canary*:
some questions, by the hashes of ids, with the scores that the model gave before it was written. A process serves a file
only if it comes to the same scores (`service.serving.encode` writes them). No id is anywhere in the file.
"""

import math
import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from asmg.header import CheckpointError, make_header, parse_header
from asmg.kernels.statistics import ITEM, STATISTICS
from asmg.layout import HISTORY_LENGTH
from service.serving.fields import FieldReader
from service.serving.forward import (
    EPSILON,
    NO_VALUES,
    SEPARATOR,
    FieldValues,
    Forward,
    compiled_forward,
    hash_text,
    item_width,
)
from service.serving.id_index import IdIndex
from service.serving.tensor_file import Blocks, TensorFile, Writable, write_tensors

__all__ = [
    "KIND",
    "NOTHING_RECENT",
    "PAUSE_SECONDS",
    "CanaryFailed",
    "Prediction",
    "Snapshot",
    "hashes_of",
    "prior_snapshot",
    "read_through",
    "write_snapshot",
]

KIND = "snapshot"

FORMER = "items.share"
"""A tensor of older files: the items' part of the first layer, which is computed as fast as it was looked up."""

CANARY_TOLERANCE = 1e-5
"""By how much a score of the canary may differ: float32 sums in another order."""

PAUSE_SECONDS = 0.001
"""Between two pieces while requests are served: a gigabyte is spread over a quarter of a second."""

PIECE_BYTES = 4 * 1024 * 1024
"""What is read or let go of at a time: the GIL is not held for longer than that takes."""


class CanaryFailed(ValueError):
    """A snapshot gives other scores here than where it was written."""


class Prediction(NamedTuple):
    """What a snapshot says about one user and N items."""

    scores: NDArray[np.float32]
    """Click probabilities in the order of the items, [N], each in (0, 1)."""
    cold_user: bool
    """Whether the user is unknown to the model."""
    cold_items: NDArray[np.int32]
    """Positions of the items that are unknown to the model, ascending."""


def hashes_of(ids: Sequence[str] | Sequence[bytes]) -> NDArray[np.uint64]:
    """The hashes by which a snapshot knows these ids (as text or as UTF-8), none of which holds NUL; [N]."""
    hashes = np.empty(len(ids), dtype=np.uint64)
    if not len(ids):
        return hashes
    if isinstance(ids[0], bytes):
        text = SEPARATOR.encode().join(cast(Sequence[bytes], ids))
    else:
        text = SEPARATOR.join(cast(Sequence[str], ids)).encode()
    if hash_text(text, hashes) != len(ids):
        raise ValueError("ids: expected none with a NUL character; received one")
    return hashes


def read_through(mapping: mmap.mmap, *, pause_seconds: float = 0.0) -> str:
    """Read every page once, so that no request waits for one later; the XXH3-128 of all, in hex.

    Args:
        mapping: of a file.
        pause_seconds: between any two pieces, for those who want the processor and the memory meanwhile.
    """
    digest = xxhash.xxh3_128()
    with memoryview(mapping) as view:
        for start in range(0, len(view), PIECE_BYTES):
            digest.update(view[start : start + PIECE_BYTES])
            time.sleep(pause_seconds)
    return digest.hexdigest()


NOTHING_RECENT = np.zeros(3, np.int32)
"""What somebody did last of whom nothing is known. Nobody writes to it; were it read-only, it would have another type
than all others, and the kernel would be compiled for it once more."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One model version, ready to predict. Nothing in it ever changes."""

    version: int
    """The model version."""
    period: int
    """The last period it learned from; 0 for the prior."""
    meta: Mapping[str, Any]
    """Of the header: `model`, the configuration, `canary`, and where the model has any, `fields`."""
    tensors: Mapping[str, NDArray[Any]]
    """Read-only views of the file; see the module's docstring."""
    mapping: mmap.mmap = field(repr=False)
    """The file's pages."""
    forward: Forward = field(repr=False)
    fields: FieldReader | None = field(repr=False)
    """By which it reads the fields of a request; None where the model has none."""
    source: Path | None = None
    """The file that the pages were copied from (`service.serving.sealed`); None where they are the file's own."""

    @classmethod
    def open(cls, pages: Path | mmap.mmap, version: int, period: int) -> "Snapshot":
        """The snapshot in a file, or in the pages of one; reads its header only.

        Raises:
            CheckpointError: the file is no snapshot.
        """
        file = TensorFile(pages)
        _, meta = parse_header(file.metadata, KIND)
        config, tensors = meta["model"], file.tensors
        expected = _expected(config)
        if set(tensors) - {FORMER} != expected:
            raise CheckpointError(f"snapshot: expected tensors {sorted(expected)}; received {sorted(tensors)}")
        for kind in ("items", "users", *(["fields"] if config.get("fields") else [])):
            known, rows = int(tensors[f"{kind}.starts"][-1]), len(tensors[f"{kind}.vectors"])
            if rows != known + 1 or len(tensors[f"{kind}.hashes"]) <= known:
                raise CheckpointError(f"{kind}: expected {known + 1} rows for {known} ids; received {rows}")
        if config.get("numeric"):
            _check_statistics(config, tensors)
        if config.get("fields"):
            _check_fields(config, tensors)
        fields = FieldReader.from_json(meta["fields"]) if config.get("fields") else None
        return cls(version, period, meta, tensors, file.mapping, compiled_forward(config, tensors), fields)

    def let_go(self) -> None:
        """Unmap its pages in pieces. It can still be used, and is freed quickly by whoever uses it last: unmapping
        gigabytes at once would hold up the event loop, if that one were the last.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for start in range(0, len(self.mapping), PIECE_BYTES):
                self.mapping.madvise(mmap.MADV_DONTNEED, start, min(PIECE_BYTES, len(self.mapping) - start))
                time.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """Return where the canary's questions get the scores that were written with them.

        Raises:
            CanaryFailed: one gets another.
        """
        for question in self.meta["canary"]:
            scores = self.score(*_question(question)).scores
            worst = float(np.abs(scores - np.array(question["scores"], dtype=np.float32)).max())
            if not worst <= CANARY_TOLERANCE:
                raise CanaryFailed(
                    f"model version {self.version}: expected the scores of the canary to {CANARY_TOLERANCE}; "
                    f"received some that are {worst:.1g} off"
                )

    def predict(
        self,
        user_id: str,
        items: Sequence[str],
        history: Sequence[str],
        recent: NDArray[np.int32] = NOTHING_RECENT,
        values: FieldValues = NO_VALUES,
    ) -> Prediction:
        """Score candidates for one user.

        Args:
            user_id: may be unknown.
            items: candidate ids; may be unknown.
            history: ids of the user's clicked items, most recent first; the first 30 count.
            recent, values: see `score`.
        """
        return self.score(hashes_of([user_id, *items]), hashes_of(history[:HISTORY_LENGTH]), recent, values)

    def score(
        self,
        asked: NDArray[np.uint64],
        history: NDArray[np.uint64],
        recent: NDArray[np.int32] = NOTHING_RECENT,
        values: FieldValues = NO_VALUES,
    ) -> Prediction:
        """The same with hashes (`hashes_of`).

        Args:
            asked: of the user and of the N candidates, [1 + N].
            history: of at most 30 items.
            recent: int32 [3], what the user did of late as `PeriodData.recent` has it: interactions of either label,
                clicks among the newest ten, clicks among all of them. Only models with statistics read it.
            values: of the request's fields, by `fields`. Only models with fields read them.
        """
        n = len(asked) - 1
        scores, cold = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.int32)
        found, cold_user = self.forward(asked, history, recent, values, scores, cold)
        return Prediction(scores, cold_user, cold[:found])


def _expected(config: Mapping[str, Any]) -> set[str]:
    """Names of the tensors of a snapshot whose model has this configuration."""
    expected = {f"{kind}.{part}" for kind in ("items", "users") for part in ("hashes", "starts", "vectors")}
    if "hidden" in config:
        expected |= {f"mlp.{i}.{part}" for i in range(len(config["hidden"]) + 1) for part in ("weight", "bias")}
    if config.get("dot"):
        expected |= {"dot.user", "dot.history"}
    if config.get("fields"):
        expected |= {"fields.hashes", "fields.starts", "fields.vectors"}
    if config.get("numeric"):
        expected |= {"pairs.firsts", "pairs.items", "pairs.counts", "statistics.average", "statistics.scale"}
    return expected


def _check_statistics(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise CheckpointError where compiled code would read past the end of a tensor, or numbers of another meaning."""
    if config["numeric"] != STATISTICS:
        raise CheckpointError(f"snapshot: expected {STATISTICS} statistics; received {config['numeric']}")
    items, firsts = tensors["items.vectors"], tensors["pairs.firsts"]
    found = int(firsts[-1]) if len(firsts) else -1
    width = item_width(config) + (int(config["dim"]) if config.get("fields") else 0) + ITEM + 1
    shapes = {"pairs.firsts": (len(items) + 1,), "pairs.items": (found,), "pairs.counts": (found, 2)}
    shapes |= {"statistics.average": (1,), "statistics.scale": (2, STATISTICS)}
    wrong = [name for name, shape in shapes.items() if tensors[name].shape != shape]
    if wrong or items.shape[1] < width:
        shape = {name: tensors[name].shape for name in (*shapes, "items.vectors")}
        raise CheckpointError(f"snapshot: expected statistics of {len(items)} items; received shapes {shape}")


def _check_fields(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise CheckpointError where compiled code would read past the end of a row."""
    dim, width = int(config["dim"]), item_width(config)
    found = {name: tensors[name].shape[1] for name in ("items.vectors", "fields.vectors")}
    if found["items.vectors"] < width + dim or found["fields.vectors"] != dim:
        raise CheckpointError(f"snapshot: expected fields of {dim} numbers behind items of {width}; received {found}")


def _question(
    question: Mapping[str, Any],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32], FieldValues]:
    """What a question of the canary asks, as `Snapshot.score` takes it."""
    recent = np.array(question.get("recent", NOTHING_RECENT), np.int32)
    values = NO_VALUES
    if "values" in question:
        kinds = (np.uint64, np.float32, np.int32)
        values = FieldValues(*(np.array(column, kind) for column, kind in zip(question["values"], kinds, strict=True)))
    if "user_id" in question:  # stored before headers were without ids
        return hashes_of([question["user_id"], *question["items"]]), hashes_of(question["history"]), recent, values
    return np.array(question["asked"], np.uint64), np.array(question["history"], np.uint64), recent, values


def write_snapshot(
    file: Writable,
    *,
    model: Mapping[str, Any],
    canary: Sequence[Mapping[str, Any]],
    users: IdIndex,
    items: IdIndex,
    tables: Mapping[str, NDArray[Any] | Blocks],
    fields: IdIndex | None = None,
    reader: FieldReader | None = None,
) -> None:
    """Write a snapshot; equal arguments give equal bytes.

    Args:
        file: takes bytes.
        model: the configuration.
        canary: questions with their `scores`: the hashes (`hashes_of`) of a user and of the candidates, `asked`, and of
            the clicked items, `history`, and `recent` and `values`, where there are any. No id is in it, for a
            snapshot stays as it is when somebody is deleted.
        users, items: what ids it knows.
        tables: what else the module's docstring lists.
        fields, reader: what values it knows and how they are read; both of a model with fields, or neither.
    """
    first = ("items.vectors", "users.vectors")
    tensors: dict[str, NDArray[Any] | Blocks] = {"items.hashes": items.hashes, "users.hashes": users.hashes}
    meta: dict[str, Any] = {"model": dict(model), "canary": list(canary)}
    if fields is not None and reader is not None:
        tensors["fields.hashes"] = fields.hashes
        meta["fields"] = reader.to_json()
    # Hashes come in whole cache lines and tables next, so that rows of a power of two do not straddle lines either.
    tensors |= {name: tables[name] for name in (*first, *sorted(set(tables) - {*first})) if name in tables}
    tensors |= {"items.starts": items.starts, "users.starts": users.starts}
    if fields is not None:
        tensors["fields.starts"] = fields.starts
    write_tensors(file, make_header(KIND, meta), tensors)


def prior_snapshot(ctr: float) -> bytes:
    """Version 0: the model that answers `ctr`, in (0, 1), to everything."""
    widths = (24, 12, 6, 1)
    tables: dict[str, NDArray[Any] | Blocks] = {
        "items.vectors": np.zeros((1, 8), dtype=np.float32),
        "users.vectors": np.zeros((1, 8), dtype=np.float32),
    }
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        tables[f"mlp.{layer}.weight"] = np.zeros((fan_out, fan_in), dtype=np.float32)
        tables[f"mlp.{layer}.bias"] = np.zeros(fan_out, dtype=np.float32)
    tables[f"mlp.{len(widths) - 2}.bias"] = np.array([math.log(ctr / (1 - ctr))], dtype=np.float32)
    nobody, _ = IdIndex.build([], np.zeros(0))
    score = min(max(ctr, EPSILON), 1 - EPSILON)
    # With a history, so that whoever checks the canary has compiled, or loaded, all that a request needs.
    asked, history = (hashes_of(ids).tolist() for ids in (["anyone", "anything"], ["something"]))
    canary = {"asked": asked, "history": history, "scores": [score]}
    model = {"dim": 8, "hidden": widths[1:-1], "categories": False}
    with BytesIO() as file:
        write_snapshot(file, model=model, canary=[canary], users=nobody, items=nobody, tables=tables)
        return file.getvalue()
