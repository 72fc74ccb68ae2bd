"""Writes the files of a trained model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW
from asmg.statistics import NAMES, Statistics
from asmg.tensor_writer import Blocks, Writable
from service.serving.encode.check_questions import check_questions
from service.serving.encode.inputs import Known, Table, TrainedModel
from service.serving.encode.lists import BLOCK_ROWS, counted_ones, item_lists, list_tensors, scales_of
from service.serving.id_hashes import Hashes
from service.serving.id_index import IdIndex
from service.serving.snapshot_file import COUNTS, QUESTIONS, item_row_width, write_snapshot

__all__ = ["encode_base", "encode_delta"]

VALUE_TABLES = {"categories": "category", "fields": "field"}
"""Tables of the format, and what they are called in a model."""


def encode_base(file: Writable, trained: TrainedModel) -> None:
    """Write a base: all rows of a model. Equal models give equal bytes.

    Args:
        file: receives the bytes.
        trained: the model, with whole tables.

    Raises:
        ValueError: a parameter is not finite, or there are no statistics or fields for a model that reads them.
    """
    trained = _checked(trained)
    tensors = _tensors(trained, {})
    for name, table in VALUE_TABLES.items():
        if table in trained.model.tables:
            tensors[f"{name}.vectors"] = _rows(table, trained, torch.arange(len(trained.params[table])))
    write_snapshot(file, "base", _meta(trained), tensors)


def encode_delta(file: Writable, trained: TrainedModel, gone: Mapping[str, Hashes] | None = None) -> None:
    """Write a delta: the rows of a model that are other than in the version before it, and all else that changes.

    Args:
        file: receives the bytes.
        trained: a small model with the changed rows (`TrainedModel.global_rows`).
        gone: name of a table, "user", "item" or "field" → hashes of the ids that the model does not know any more.

    Raises:
        ValueError: as `encode_base`; or an id that is gone has a row.
    """
    trained = _checked(trained)
    tensors = _tensors(trained, gone or {}, delta=True)
    for name, table in VALUE_TABLES.items():
        if table in trained.model.tables:
            identities = trained.identities(table, np.arange(len(trained.params[table])))
            order = np.argsort(identities)
            tensors[f"{name}.changed"] = identities[order]
            tensors[f"{name}.vectors"] = _rows(table, trained, torch.from_numpy(order))
    write_snapshot(file, "delta", _meta(trained), tensors)


def _checked(trained: TrainedModel) -> TrainedModel:
    """The model in the order in which it is written, with what it reads and nothing else."""
    model, statistics = trained.model, trained.statistics if trained.model.numeric else None
    if model.numeric and (model.numeric != len(NAMES) or statistics is None or not statistics.periods):
        received = "none" if statistics is None else f"those of {statistics.periods} periods, {len(NAMES)} of each"
        raise ValueError(
            f"statistics: expected those of at least one period for {model.numeric} numeric inputs; received {received}"
        )
    if ("field" in model.tables) != (trained.fields is not None):
        raise ValueError(f"fields: expected exactly for a model with fields; received {trained.fields is not None}")
    if "category" in model.tables and trained.categories is None:
        raise ValueError("categories: expected for a model with categories; received none")
    fields = trained.fields
    return replace(
        trained,
        users=trained.users.sorted(),
        items=trained.items.sorted(),
        categories=trained.categories if "category" in model.tables else None,
        statistics=statistics,
        fields=None if fields is None else replace(fields, values=fields.values.sorted()),
    )


def _meta(trained: TrainedModel) -> dict[str, Any]:
    meta: dict[str, Any] = {"model": trained.model.config.to_json(), QUESTIONS: list(check_questions(trained))}
    if trained.fields is not None:
        meta["fields"] = trained.fields.reader.to_json()
    if (statistics := trained.statistics) is not None:
        decays = {name: getattr(statistics.config, name) for name in ("decay", "pair_decay")}
        meta["statistics"] = {"periods": statistics.periods, **decays}
    return meta


def _tensors(
    trained: TrainedModel, gone: Mapping[str, Hashes], *, delta: bool = False
) -> dict[str, NDArray[Any] | Blocks]:
    """All tensors but those of categories and values."""
    model, statistics = trained.model, trained.statistics
    tensors: dict[str, NDArray[Any] | Blocks] = {}
    for name in model.dense_shapes:
        tensors[name] = _finite(name, trained.dense(name)).float().numpy()
    orders: dict[str, Tensor] = {}
    for kind, table, known in (("users", "user", trained.users), ("items", "item", trained.items)):
        index, rows = _index(table, known, gone)
        orders[kind] = torch.from_numpy(rows)
        tensors |= {f"{kind}.hashes": index.hashes, f"{kind}.starts": index.starts}
        if delta:
            is_gone = rows == COLD_ROW
            is_gone[0] = False
            tensors[f"{kind}.gone"] = is_gone.astype(np.uint32) if is_gone.any() else np.empty(0, np.uint32)
    tensors["users.vectors"] = _rows("user", trained, orders["users"])
    order = orders["items"]
    blocks = (_item_rows(trained, rows) for rows in order.split(BLOCK_ROWS))
    tensors["items.vectors"] = Blocks(np.float32, (len(order), item_row_width(model.config.to_json())), blocks)
    for name, read in item_lists(trained).items():
        tensors |= list_tensors(name, read, order)
    if statistics is not None:
        scaled = replace(Statistics.initial(statistics.config), moments=statistics.moments)
        tensors["statistics.scale"] = torch.stack(scaled.scale).numpy()
        tensors["statistics.average"] = np.array([scaled.average], np.float32)
    if trained.fields is not None:
        index, rows = _index("field", trained.fields.values, gone)
        scales = sorted(scales_of(trained.fields.of_items.at(torch.zeros(1, dtype=torch.int64))).items())
        tensors |= {"fields.hashes": index.hashes, "fields.starts": index.starts}
        tensors["fields.rows"] = trained.identities("field", rows)
        tensors["numbers.rows"] = np.array([row for row, _ in scales], np.uint32)
        tensors["numbers.scale"] = np.array([scale for _, scale in scales], np.float32).reshape(-1, 2)
    return tensors


def _index(table: str, known: Known, gone: Mapping[str, Hashes]) -> tuple[IdIndex, NDArray[np.int64]]:
    """The index of a table, and for each of its rows that of the model; the cold row for an id that is gone."""
    no_more = gone.get(table, np.empty(0, np.uint64))
    if len(no_more) and len(both := np.intersect1d(known.hashes, no_more)):
        raise ValueError(f"{table}: expected ids that are gone to have no row; received {len(both)} that have one")
    rows = np.concatenate([known.rows, np.full(len(no_more), COLD_ROW)])
    index, ordered = IdIndex.of_hashes(np.concatenate([known.hashes, no_more]), rows)
    return index, np.concatenate([[COLD_ROW], ordered])


def _rows(name: str, trained: TrainedModel, order: Tensor) -> Blocks:
    """Rows of a table in this order."""
    width, table = trained.model.table_widths[name], trained.params[name]
    blocks = (_block(name, table, rows, width) for rows in order.split(BLOCK_ROWS))
    return Blocks(np.float32, (len(order), width), blocks)


def _block(name: str, table: Table, rows: Tensor, width: int) -> NDArray[np.float32]:
    found = _finite(name, table[rows])
    if found.shape != (len(rows), width):
        raise ValueError(f"{name}: expected rows of {width} numbers; received shape {list(found.shape)}")
    return found.numpy()


def _item_rows(trained: TrainedModel, rows: Tensor) -> NDArray[np.float32]:
    """Rows of `items.vectors`."""
    width = trained.model.table_widths["item"]
    own, statistics = _block("item", trained.params["item"], rows, width), trained.statistics
    if statistics is None:
        return own
    whole = np.zeros((len(rows), item_row_width(trained.model.config.to_json())), np.float32)
    whole[:, :width] = own
    counts = whole[:, width : width + COUNTS]
    at = counted_ones(statistics, rows)
    counted, place = rows[at], at.numpy()
    counts[place, :4], counts[place, 4] = statistics.counts[counted].numpy(), statistics.degrees[counted].numpy()
    integers = counts.view(np.uint32)
    integers[place, 5], integers[place, 6] = statistics.counted[counted].numpy(), statistics.paired[counted].numpy()
    integers[:, 7] = trained.identities("item", rows.numpy())
    return whole


def _finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, detached. Raises ValueError where a number of it is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
    return tensor.detach()
