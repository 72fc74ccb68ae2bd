"""From a trained model to its serving snapshot: the part of serving that the worker alone needs, and torch with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW, HISTORY_LENGTH, InteractionBatch, ItemFeatures
from asmg.models import BaseModel, EmbeddingMLP
from service.serving.forward import EPSILON
from service.serving.id_index import IdIndex
from service.serving.snapshot import hashes_of, write_snapshot
from service.serving.tensor_file import Blocks, Writable

__all__ = ["Known", "encode_model", "encode_snapshot"]

BLOCK_ROWS = 262_144
"""Rows that are put in order and written at a time."""

SHARE_ROWS = 1_000_000
"""Items up to which their share of the first layer is in the snapshot. It saves a third of the forward pass of 500
candidates while tables are small; in large ones the pass waits for memory, whatever it reads.
"""

CANARY_ITEMS = 8
STRANGER = "\x7fnobody"
"""An id that no client is likely to have."""


@dataclass(frozen=True)
class Known:
    """The ids of a table that have a row of their own."""

    ids: Sequence[str]
    rows: NDArray[Any]
    """int [N], each ≥ 1 and within the table."""


def encode_model(
    file: Writable,
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
) -> None:
    """Write the snapshot of a model; equal models give equal bytes.

    Args:
        file: takes bytes.
        model, params: the model to serve.
        users, items: the ids it knows.
        item_categories: int [I, C] for a model with categories.

    Raises:
        ValueError: a parameter is not finite.
    """
    user_index, user_rows = IdIndex.build(users.ids, users.rows)
    item_index, item_rows = IdIndex.build(items.ids, items.rows)
    user_order, item_order = _behind_cold(user_rows), _behind_cold(item_rows)
    width = _vectors(model, params, item_order[:1], item_categories).shape[1]
    tables: dict[str, NDArray[Any] | Blocks] = {
        name: _finite(name, params[name]).float().numpy() for name in model.dense_shapes
    }
    tables["users.vectors"] = Blocks(
        np.float32,
        (len(user_order), params["user"].shape[1]),
        (_finite("user", params["user"][rows]).numpy() for rows in user_order.split(BLOCK_ROWS)),
    )
    tables["items.vectors"] = Blocks(
        np.float32,
        (len(item_order), width),
        (_vectors(model, params, rows, item_categories).numpy() for rows in item_order.split(BLOCK_ROWS)),
    )
    if isinstance(model, EmbeddingMLP):
        first = params["mlp.0.weight"][:, -width:]
        worth_it = len(first) < width and len(item_order) <= SHARE_ROWS
        shared = item_order if worth_it else item_order[:0]
        tables["items.share"] = Blocks(
            np.float32,
            (len(shared), len(first)),
            ((_vectors(model, params, rows, item_categories) @ first.T).numpy() for rows in shared.split(BLOCK_ROWS)),
        )
    write_snapshot(
        file,
        model=model.config.to_json(),
        canary=list(_canary(model, params, users, items, item_categories)),
        users=user_index,
        items=item_index,
        tables=tables,
    )


def encode_snapshot(
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
) -> bytes:
    """What `encode_model` writes, in memory."""
    with BytesIO() as file:
        encode_model(file, model, params, users, items, item_categories)
        return file.getvalue()


def _behind_cold(rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[COLD_ROW], rows]))


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
    return tensor.detach()


def _vectors(model: BaseModel, params: Mapping[str, Tensor], rows: Tensor, item_categories: Tensor | None) -> Tensor:
    """What the items of these rows are to the model, [len(rows), width]."""
    if item_categories is None:
        return _finite("item", model.item_vectors({**params, "item": params["item"][rows]}, None))
    features = ItemFeatures(row=rows, categories=item_categories[rows].long())
    return _finite("item", model.item_vectors(params, features))


def _canary(
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None,
) -> Iterator[dict[str, Any]]:
    """Questions about ids from everywhere in the tables, and their scores by the library's forward pass."""
    user_of, item_of = ({STRANGER: COLD_ROW, **_some(known)} for known in (users, items))
    names = list(item_of)
    for n, (user_id, user) in enumerate(user_of.items()):
        asked = [names[(n + k) % len(names)] for k in range(min(CANARY_ITEMS, len(names)))]
        past = [names[(2 * n + k) % len(names)] for k in range(n % (HISTORY_LENGTH + 1))]
        rows = torch.tensor([item_of[name] for name in (*asked, *past)])
        batch = InteractionBatch(
            user=torch.zeros(len(asked), dtype=torch.int64),
            item=torch.arange(len(asked)),
            history=torch.arange(len(asked), len(rows)).repeat(len(asked)),
            offsets=torch.arange(len(asked) + 1) * len(past),
            label=torch.zeros(len(asked)),
        )
        excerpt = {**params, "user": params["user"][user : user + 1]}
        features = None
        if item_categories is None:
            excerpt["item"] = params["item"][rows]
        else:
            features = ItemFeatures(row=rows, categories=item_categories[rows].long())
        with torch.inference_mode():
            scores = torch.sigmoid(model.logits(excerpt, batch, features)).nan_to_num(0).clamp(EPSILON, 1 - EPSILON)
        asked_hashes, past_hashes = hashes_of([user_id, *asked]).tolist(), hashes_of(past).tolist()
        yield {"asked": asked_hashes, "history": past_hashes, "scores": scores.tolist()}


def _some(known: Known) -> dict[str, int]:
    """Ids and rows, evenly from the first to the last."""
    count = min(2 * CANARY_ITEMS, len(known.ids))
    places = np.unique(np.linspace(0, len(known.ids) - 1, count).astype(np.int64))
    return {known.ids[place]: int(known.rows[place]) for place in places}
