"""Writes the snapshot of a trained model."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW
from asmg.models import BaseModel
from asmg.statistics import NAMES, Statistics
from service.serving.encode.canary import canary_requests
from service.serving.encode.inputs import Known, KnownFields, TrainedModel, finite
from service.serving.encode.neighbours import neighbour_tables
from service.serving.id_index import IdIndex
from service.serving.snapshot_file import write_snapshot
from service.serving.tensor_file import Blocks, Writable

__all__ = ["encode_model", "encode_snapshot"]

BLOCK_ROWS = 262_144
"""Rows that are put in order and written at a time."""


def encode_model(
    file: Writable,
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
    statistics: Statistics | None = None,
    fields: KnownFields | None = None,
) -> None:
    """Write the snapshot of a model; equal models give equal bytes.

    Args:
        file: receives the bytes.
        model, params: the model to serve.
        users, items: the ids it knows.
        item_categories: int [I, C] for a model with categories.
        statistics: of all periods that the model has learned; only a model with numeric inputs reads them.
        fields: for a model that reads any.

    Raises:
        ValueError: a parameter is not finite, or there are no statistics or fields for a model that reads them.
    """
    user_index, user_rows = IdIndex.build(users.ids, users.rows)
    item_index, item_rows = IdIndex.build(items.ids, items.rows)
    user_order, item_order = _with_cold_row(user_rows), _with_cold_row(item_rows)
    if ("field" in model.tables) != (fields is not None):
        raise ValueError(f"fields: expected exactly for a model with fields; received {fields is not None}")
    read = _statistics_read(model, statistics)
    trained = TrainedModel(model, params, item_categories, read, fields)
    item_width = trained.item_table(item_order[:1]).shape[1]
    tables: dict[str, NDArray[Any] | Blocks] = {
        name: finite(name, params[name]).float().numpy() for name in model.dense_shapes
    }
    tables["users.vectors"] = Blocks(
        np.float32,
        (len(user_order), params["user"].shape[1]),
        (finite("user", params["user"][rows]).numpy() for rows in user_order.split(BLOCK_ROWS)),
    )
    tables["items.vectors"] = Blocks(
        np.float32,
        (len(item_order), item_width),
        (trained.item_table(rows).numpy() for rows in item_order.split(BLOCK_ROWS)),
    )
    if read is not None:
        tables |= neighbour_tables(read, item_order)
        tables["statistics.scale"] = torch.stack(read.scale).numpy()
        tables["statistics.average"] = np.array([read.average], np.float32)
    value_index = None
    if fields is not None:
        value_index, value_rows = IdIndex.build(fields.values.ids, fields.values.rows)
        tables["fields.vectors"] = finite("field", params["field"][_with_cold_row(value_rows)]).numpy()
    write_snapshot(
        file,
        model=model.config.to_json(),
        canary=list(canary_requests(trained, users, items)),
        users=user_index,
        items=item_index,
        tables=tables,
        fields=value_index,
        reader=None if fields is None else fields.reader,
    )


def encode_snapshot(
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
    statistics: Statistics | None = None,
    fields: KnownFields | None = None,
) -> bytes:
    """What `encode_model` writes, in memory."""
    with BytesIO() as file:
        encode_model(file, model, params, users, items, item_categories, statistics, fields)
        return file.getvalue()


def _statistics_read(model: BaseModel, statistics: Statistics | None) -> Statistics | None:
    """The statistics if the model reads them, else None."""
    if not model.numeric:
        return None
    if model.numeric != len(NAMES) or statistics is None or not statistics.periods:
        received = "none" if statistics is None else f"those of {statistics.periods} periods, {len(NAMES)} of each"
        raise ValueError(
            f"statistics: expected those of at least one period for {model.numeric} numeric inputs; received {received}"
        )
    return statistics


def _with_cold_row(rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[COLD_ROW], rows]))
