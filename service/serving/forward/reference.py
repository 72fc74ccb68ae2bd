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

from asmg.kernels.statistics import FURTHEST, STATISTICS, interaction_statistics
from asmg.models import build_model, config_from_json
from service.serving.fields import OF_CONTEXT, OF_ITEM, OF_USER, FieldValues
from service.serving.forward.interface import EPSILON, Forward
from service.serving.id_hashes import Hashes
from service.serving.id_index import IdIndex
from service.serving.snapshot_file import NUMBER, SnapshotFiles, vector_width

__all__ = ["TableRows", "field_sums", "list_sums", "reference_forward", "request_statistics"]

Array = NDArray[Any]


def reference_forward(meta: Mapping[str, Any], files: SnapshotFiles) -> Forward:
    """The same function as `service.serving.forward.compiled.compiled_forward`."""
    config, newest = meta["model"], files.newest.tensors
    model, dim = build_model(config_from_json(config)), vector_width(config)
    users, items = TableRows(files, "users"), TableRows(files, "items")
    params = {name: torch.tensor(newest[name]) for name in model.dense_shapes}

    def item_vectors(rows: NDArray[np.int64]) -> torch.Tensor:
        own = items.vectors(rows)[:, :dim]
        if not config["categories"]:
            return torch.from_numpy(own)
        categories = list_sums(items, "categories", newest, rows)
        return torch.from_numpy(np.concatenate([own, categories], 1) if "hidden" in config else own + categories)

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
        n, user, rows = len(scores), users.find(hashes[:1]), items.find(hashes[1:])
        vectors, numeric, sums = item_vectors(rows), None, None
        if model.numeric:
            ids = np.concatenate([hashes[1:], history])
            numeric = torch.from_numpy(request_statistics(meta["statistics"], newest, items, dim, ids, n, recent))
        pooled = torch.zeros(1, vectors.shape[1])
        if len(history):
            pooled = item_vectors(items.find(history)).mean(0, keepdim=True)
        if "field" in model.tables:
            sums = field_sums(newest, values, torch.from_numpy(list_sums(items, "fields", newest, rows)))
        about = (torch.from_numpy(users.vectors(user)).expand(n, -1), pooled.expand(n, -1), vectors)
        logits = model.head(params, *about, numeric, sums)
        scores[:] = torch.sigmoid(logits).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).numpy()
        (unknown,) = np.nonzero(rows == items.cold)
        cold[: len(unknown)] = unknown
        return len(unknown), bool(user[0] == users.cold)

    return forward


class TableRows:
    """The rows of users or items, numbered as in `service.serving.forward.tables`."""

    def __init__(self, files: SnapshotFiles, kind: str) -> None:
        parts = [file.tensors for file in files if file is not None]
        self._kind, self._parts = kind, parts
        self._indexes = [IdIndex(part[f"{kind}.hashes"], part[f"{kind}.starts"]) for part in parts]
        self._size = len(parts[0][f"{kind}.vectors"])
        self.cold = 0 if len(parts) == 1 else self._size
        """The row of every unknown id."""

    def find(self, hashes: Hashes) -> NDArray[np.int64]:
        """The row of each hash."""
        rows = self._indexes[0].lookup(hashes)
        if len(self._parts) > 1:
            newer, gone = self._indexes[1].lookup(hashes), self._parts[1][f"{self._kind}.gone"]
            rows = np.where(newer > 0, self._size + newer, np.where(rows > 0, rows, self.cold))
            if len(gone):
                rows = np.where(gone[newer] > 0, self.cold, rows)
        return rows

    def vectors(self, rows: NDArray[np.int64]) -> Array:
        """The numbers of rows, [n, width]."""
        tables = [part[f"{self._kind}.vectors"] for part in self._parts]
        found = tables[0][np.minimum(rows, self._size - 1)]
        newer = rows >= self._size
        if newer.any():
            found[newer] = tables[1][rows[newer] - self._size]
        return found

    def list_of(self, name: str, row: int) -> tuple[Array, Array]:
        """Identities and weights of the list of an item."""
        part, at = (self._parts[0], row) if row < self._size else (self._parts[1], row - self._size)
        first, last = part[f"items.{name}.firsts"][at : at + 2].astype(np.int64)
        return part[f"items.{name}.rows"][first:last], part[f"items.{name}.weights"][first:last]


def list_sums(items: TableRows, name: str, newest: Mapping[str, Array], rows: NDArray[np.int64]) -> Array:
    """The weighted sums of the categories or the fields of items, float32 [n, D]."""
    table = newest[f"{name}.vectors"]
    scales = (
        dict(zip(newest["numbers.rows"].tolist(), newest["numbers.scale"], strict=True)) if name == "fields" else {}
    )
    sums = np.zeros((len(rows), table.shape[1]), np.float32)
    for total, row in zip(sums, rows.tolist(), strict=True):
        for identity, weight in zip(*items.list_of(name, row), strict=True):
            if identity & NUMBER:
                mean, by = scales[int(identity) ^ NUMBER]
                weight = np.clip((weight - mean) * by, -FURTHEST, FURTHEST)
            total += weight * table[int(identity) & (NUMBER - 1)]
    return sums


def field_sums(newest: Mapping[str, Array], values: FieldValues, of_items: torch.Tensor) -> torch.Tensor:
    """The sums of the vectors of context, user and item, [n, 3·D]."""
    found = IdIndex(newest["fields.hashes"], newest["fields.starts"]).lookup(values.hashes)
    read = torch.from_numpy(newest["fields.vectors"][newest["fields.rows"][found]] * values.weights[:, None])
    n, dim, owners = len(of_items), read.shape[1], torch.from_numpy(values.owners).long()
    sums = torch.zeros(OF_ITEM + n, dim).index_add(0, owners, read)
    return torch.cat([sums[OF_CONTEXT] + sums[OF_ITEM:], sums[OF_USER].expand(n, -1), of_items], 1)


def request_statistics(
    counted: Mapping[str, Any],
    newest: Mapping[str, Array],
    items: TableRows,
    dim: int,
    ids: Hashes,
    n: int,
    recent: NDArray[np.int32],
) -> NDArray[np.float32]:
    """The statistics of a request, [n, S], by the function that computes them of a log.

    The log has the items of this request alone. Those that the snapshot knows come first; the others lie past the end
    of what was counted.

    Args:
        counted: number of periods and decays.
        newest: tensors of the newest file.
        items: the rows of items.
        dim: where the counts begin in a row.
        ids: hashes of the n candidates, followed by those of the user's clicks.
        n: number of candidates.
        recent: what the user did of late, int32 [3].
    """
    rows = items.find(ids)
    known, others = np.unique(rows[rows != items.cold]), np.unique(ids[rows == items.cold])
    mine, theirs = 1 + np.searchsorted(known, rows), 1 + len(known) + np.searchsorted(others, ids)
    item = np.where(rows != items.cold, mine, theirs).astype(np.int32)
    numbers = np.concatenate([np.zeros((1, 8), np.float32), items.vectors(known)[:, dim : dim + 8]])
    integers = numbers.view(np.int32)
    place_of = {identity: place for place, identity in enumerate(integers[:, 7].tolist()) if place}
    pairs: list[tuple[int, float, float]] = []
    starts = [0, 0]
    for row in known.tolist():
        beside = zip(*items.list_of("pairs", row), strict=True)
        pairs += sorted((place_of[int(i)], *counts) for i, counts in beside if int(i) in place_of)
        starts.append(len(pairs))
    neighbours, together, passed = np.array(pairs, np.float32).reshape(-1, 3).T
    out, average, scale = (
        np.empty((n, STATISTICS), np.float32),
        newest["statistics.average"][0],
        newest["statistics.scale"],
    )
    interaction_statistics(
        item[:n], np.tile(item[n:], n), np.arange(n + 1) * (len(item) - n), np.tile(recent, (n, 1)),
        np.ascontiguousarray(numbers[:, :4]), np.ascontiguousarray(integers[:, 5]), np.array(starts),
        neighbours.astype(np.int32), np.ascontiguousarray(together), np.ascontiguousarray(passed),
        np.ascontiguousarray(numbers[:, 4]), np.ascontiguousarray(integers[:, 6]),
        counted["periods"], counted["decay"], counted["pair_decay"], average, out,
    )  # fmt: skip
    mean, by = scale
    np.clip((out - mean) * by, -FURTHEST, FURTHEST, out=out)
    return out
