"""The reference implementation of the forward pass, in plain torch.

Tests compare the compiled one with it, and `service.serving.loading` serves it where the compiled one does not give the
scores that were stored with a snapshot. It is slower by an order of magnitude, and imports torch, which an api process
does without otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.kernels.statistics import FURTHEST, ITEM, STATISTICS, USER, interaction_statistics
from asmg.layout import COLD_ROW
from asmg.models import build_model, config_from_json
from service.serving.fields import OF_CONTEXT, OF_ITEM, OF_USER, FieldValues
from service.serving.forward.interface import EPSILON, Forward, item_width
from service.serving.id_hashes import Hashes
from service.serving.id_index import IdIndex

__all__ = ["reference_forward"]


def reference_forward(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Forward:
    """The same function as `service.serving.forward.compiled.compiled_forward`."""
    model = build_model(config_from_json(config))
    users = IdIndex(tensors["users.hashes"], tensors["users.starts"])
    items = IdIndex(tensors["items.hashes"], tensors["items.starts"])
    params = {name: torch.tensor(tensors[name]) for name in model.dense_shapes}
    fields = None
    if "field" in model.tables:
        fields = IdIndex(tensors["fields.hashes"], tensors["fields.starts"])
    width = item_width(config) if "hidden" in config else tensors["items.vectors"].shape[1]
    before_statistics = width + (0 if fields is None else tensors["fields.vectors"].shape[1])

    def rows_of(table: str, rows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(tensors[table][rows])  # a copy, so that torch does not mind that a file is read-only

    @torch.inference_mode()
    def forward(
        hashes: Hashes,
        history: Hashes,
        recent: NDArray[np.int32],
        values: FieldValues,
        scores: NDArray[np.float32],
        cold: NDArray[np.int32],
        /,
    ) -> tuple[int, bool]:
        n, user, rows = len(scores), users.lookup(hashes[:1]), items.lookup(hashes[1:])
        vectors_of_items = rows_of("items.vectors", rows)
        vectors = vectors_of_items[:, :width]
        numeric = None
        if model.numeric:
            ids = np.concatenate([hashes[1:], history])
            numeric = torch.from_numpy(_numeric(tensors, ids, items.lookup(ids), before_statistics, n, recent))
        pooled = torch.zeros(1, vectors.shape[1])
        if len(history):
            pooled = rows_of("items.vectors", items.lookup(history))[:, :width].mean(0, keepdim=True)
        about = (rows_of("users.vectors", user).expand(n, -1), pooled.expand(n, -1), vectors)
        sums = None if fields is None else _field_sums(fields, tensors, values, vectors_of_items[:, width:])
        logits = model.head(params, *about, numeric, sums)
        scores[:] = torch.sigmoid(logits).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).numpy()
        (unknown,) = np.nonzero(rows == COLD_ROW)
        cold[: len(unknown)] = unknown
        return len(unknown), bool(user[0] == COLD_ROW)

    return forward


def _field_sums(
    index: IdIndex, tensors: Mapping[str, NDArray[Any]], values: FieldValues, of_items: torch.Tensor
) -> torch.Tensor:
    """The sums of the vectors of context, user and item, [n, 3·D]; `of_items` begins with those of the item."""
    read = torch.from_numpy(tensors["fields.vectors"][index.lookup(values.hashes)] * values.weights[:, None])
    n, dim, owners = len(of_items), read.shape[1], torch.from_numpy(values.owners).long()
    sums = torch.zeros(OF_ITEM + n, dim).index_add(0, owners, read)
    return torch.cat([sums[OF_CONTEXT] + sums[OF_ITEM:], sums[OF_USER].expand(n, -1), of_items[:, :dim]], 1)


def _numeric(
    tensors: Mapping[str, NDArray[Any]],
    ids: Hashes,
    rows: NDArray[np.int64],
    before_statistics: int,
    n: int,
    recent: NDArray[np.int32],
) -> NDArray[np.float32]:
    """The statistics of a request, [n, S], by the function that computes them of a log.

    The log has the items of this request alone. Those that the snapshot knows come first; the others lie past the end
    of what was counted.

    Args:
        tensors: of the snapshot.
        ids: hashes of the n candidates, followed by those of the user's clicks.
        rows: their rows.
        before_statistics: how many numbers of an item's row come before its statistics.
        n: number of candidates.
        recent: what the user did of late, int32 [3].
    """
    known, others = np.unique(rows[rows != COLD_ROW]), np.unique(ids[rows == COLD_ROW])
    mine, theirs = 1 + np.searchsorted(known, rows), 1 + len(known) + np.searchsorted(others, ids)
    item = np.where(rows != COLD_ROW, mine, theirs).astype(np.int32)
    # Of the neighbours of each item those that are among the known, ascending.
    size, firsts = 1 + len(known), tensors["pairs.firsts"].astype(np.int64)
    lengths = firsts[known + 1] - firsts[known]
    owners = np.repeat(np.arange(1, size), lengths)
    source = np.arange(len(owners)) + np.repeat(firsts[known] - np.cumsum(lengths) + lengths, lengths)
    near = tensors["pairs.items"][source].astype(np.int64)
    owners, source, near = (values[np.isin(near, known)] for values in (owners, source, near))
    order = np.lexsort((near, owners))
    neighbours = (1 + np.searchsorted(known, near[order])).astype(np.int32)
    together, passed = np.ascontiguousarray(tensors["pairs.counts"][source[order]].T)
    starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=size))])
    own = tensors["items.vectors"][:, before_statistics : before_statistics + ITEM + 1]
    degrees = np.concatenate([np.zeros(1, np.float32), own[known, ITEM]])
    out, nobody = np.empty((n, STATISTICS), np.float32), np.zeros(size, np.int32)
    interaction_statistics(
        item[:n], np.tile(item[n:], n), np.arange(n + 1) * (len(item) - n), np.tile(recent, (n, 1)),
        np.zeros((size, 4), np.float32), nobody, starts, neighbours, together, passed, degrees, nobody,
        0, 1.0, 1.0, tensors["statistics.average"][0], out,
    )  # fmt: skip
    mean, by = tensors["statistics.scale"]
    np.clip((out - mean) * by, -FURTHEST, FURTHEST, out=out)
    out[:, USER : USER + ITEM] = own[rows[:n], :ITEM]  # which the snapshot holds standardised
    return out
