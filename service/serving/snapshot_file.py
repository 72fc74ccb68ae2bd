"""The format of a serving snapshot: one immutable file with a model and the index of the ids that it knows.

    items.hashes  u64  users.hashes  u64     IdIndex
    items.vectors f32 [I, W]                 an item's vector, categories mixed in; row 0 is the cold row, row n + 1
                                             belongs to items.hashes[n]
    users.vectors f32 [U, D]
    mlp.…  dot.…  f32                        the dense parameters
    items.starts  u32  users.starts  u32     IdIndex

A model that reads fields (`asmg.field_columns`) adds:

    items.vectors f32 [I, W + D + …]         behind W: the sum of the vectors of the item's fields
    fields.hashes u64  fields.starts u32     IdIndex of the values (`asmg.features.name_of_value`)
    fields.vectors f32 [V, D]                row 0 is that of every unknown value

A model that reads statistics (`asmg.statistics`) adds, as of the period that it learned last:

    items.vectors f32 [I, … + ITEM + 1 + …]  behind these: the item's own statistics, standardised; how often anything
                                             was clicked beside it; zeros up to a multiple of 32 bytes
    pairs.firsts  u32 [I + 1]                where the neighbours of each item begin in pairs.items
    pairs.items   u32 [M]                    rows of the items that were clicked beside it; never 0
    pairs.counts  f32 [M, 2]                 how often they were, and how often they were shown and not clicked
    statistics.average f32 [1]               the average click rate
    statistics.scale   f32 [2, S]            the mean of each statistic, and the factor of the difference to it

(Older files also have items.share, which nothing reads any more.)

The header holds the configuration of the model, the schema of its fields with the scales of their numbers, and a
*canary*: some requests as hashes, with the scores that the library's model gave them. A process serves a file only
where it gets the same scores. No id is in the file, so it can stay as it is when a user is deleted.

`service.serving.encode` writes snapshots; `service.serving.snapshot` opens them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from asmg.header import CheckpointError, make_header, parse_header
from asmg.kernels.statistics import ITEM, STATISTICS
from service.serving.fields import FieldReader
from service.serving.forward.interface import item_width
from service.serving.id_index import IdIndex
from service.serving.tensor_file import Blocks, TensorFile, Writable, write_tensors

__all__ = ["read_header", "write_snapshot"]

KIND = "snapshot"

FORMER = "items.share"
"""A tensor of older files: the items' share of the first layer, which is computed as fast as it was looked up."""


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
        file: receives the bytes.
        model: the configuration.
        canary: requests with their `scores`. Each has `asked`, the hashes of a user and of the candidates, `history`,
            the hashes of the clicked items, and, where the model reads them, `recent` and `values`.
        users, items: indexes of the known ids.
        tables: the other tensors of the format.
        fields, reader: index of the known values, and how they are read; both for a model with fields, else neither.
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


def read_header(file: TensorFile) -> Mapping[str, Any]:
    """The header of a snapshot, whose tensors are checked against it: `model`, `canary`, and `fields` for a model with
    fields.

    Compiled code reads the tensors without bounds checks, so their shapes have to be right.

    Raises:
        CheckpointError: the file is no snapshot.
    """
    _, meta = parse_header(file.metadata, KIND)
    config, tensors = meta["model"], file.tensors
    expected = _tensor_names(config)
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
    return meta


def _tensor_names(config: Mapping[str, Any]) -> set[str]:
    """Names of the tensors in the snapshot of a model of this configuration."""
    names = {f"{kind}.{part}" for kind in ("items", "users") for part in ("hashes", "starts", "vectors")}
    if "hidden" in config:
        names |= {f"mlp.{i}.{part}" for i in range(len(config["hidden"]) + 1) for part in ("weight", "bias")}
    if config.get("dot"):
        names |= {"dot.user", "dot.history"}
    if config.get("fields"):
        names |= {"fields.hashes", "fields.starts", "fields.vectors"}
    if config.get("numeric"):
        names |= {"pairs.firsts", "pairs.items", "pairs.counts", "statistics.average", "statistics.scale"}
    return names


def _check_statistics(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
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
    dim, width = int(config["dim"]), item_width(config)
    found = {name: tensors[name].shape[1] for name in ("items.vectors", "fields.vectors")}
    if found["items.vectors"] < width + dim or found["fields.vectors"] != dim:
        raise CheckpointError(f"snapshot: expected fields of {dim} numbers behind items of {width}; received {found}")
