"""The compiled forward pass over the tensors of a snapshot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from asmg.kernels.common import Floats, Indices, Rows
from asmg.kernels.statistics import USER
from service.serving.fields import FieldValues
from service.serving.forward.interface import Forward, item_width
from service.serving.forward.mf import MFTables, score_mf
from service.serving.forward.mlp import MLPTables, score_mlp
from service.serving.forward.neighbours import NeighbourTable
from service.serving.forward.tables import EmbeddingTable
from service.serving.id_hashes import Hashes

__all__ = ["compiled_forward"]

Tensors = Mapping[str, NDArray[Any]]


def compiled_forward(config: Mapping[str, Any], tensors: Tensors) -> Forward:
    """The forward pass of a snapshot as machine code.

    Args:
        config: of the model, as the header of the snapshot has it.
        tensors: of the snapshot (`service.serving.snapshot_file`).
    """
    users, items = (
        EmbeddingTable(*(tensors[f"{kind}.{part}"] for part in EmbeddingTable._fields)) for kind in ("users", "items")
    )
    if "hidden" not in config:
        factors = MFTables(*users, *items)
        return lambda hashes, history, recent, values, scores, cold: score_mf(hashes, history, factors, scores, cold)
    fields = EmbeddingTable(
        _tensor(tensors, "fields.hashes", (0,), np.uint64),
        _tensor(tensors, "fields.starts", (0,), np.uint32),
        _tensor(tensors, "fields.vectors", (0, users.vectors.shape[1]), np.float32),
    )
    neighbours = NeighbourTable(
        _tensor(tensors, "pairs.firsts", (0,), np.uint32),
        _tensor(tensors, "pairs.items", (0,), np.uint32),
        _tensor(tensors, "pairs.counts", (0, 2), np.float32),
    )
    tables = MLPTables(*users, *items, *fields, *neighbours, *_shape_and_dense(config, tensors))

    def forward(
        hashes: Hashes, history: Hashes, recent: Rows, values: FieldValues, scores: Floats, cold: Rows, /
    ) -> tuple[int, bool]:
        return score_mlp(hashes, history, recent, values, tables, scores, cold)

    return forward


def _tensor(tensors: Tensors, name: str, empty: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """The tensor, or an empty one where the snapshot does not have it.

    Tensors of a file are read-only, and so is the empty one: one of another type would have the kernel compiled again.
    """
    if name in tensors:
        return tensors[name]
    array = np.empty(empty, dtype)
    array.flags.writeable = False
    return array


def _shape_and_dense(config: Mapping[str, Any], tensors: Tensors) -> tuple[Indices, Floats]:
    """`MLPTables.shape` and `MLPTables.dense`."""
    layers = range(len(config["hidden"]) + 1)
    weights = [tensors[f"mlp.{layer}.weight"] for layer in layers]
    biases = [tensors[f"mlp.{layer}.bias"] for layer in layers]
    width, dim = item_width(config), int(config["dim"])
    statistics, dot, fields = (bool(config.get(name)) for name in ("numeric", "dot", "fields"))
    widths = [dim + width, width, 2 * dim * fields, dim * fields, USER * statistics]
    request, candidate, values, own, user, rest = np.split(weights[0], np.cumsum(widths), axis=1)
    parts = [np.concatenate([request, values, user], 1).T, biases[0], np.concatenate([candidate, own, rest], 1)]
    parts += [part for layer in layers[1:] for part in (weights[layer], biases[layer])]
    parts += [tensors["dot.user"], tensors["dot.history"]] if dot else []
    parts += [tensors["statistics.scale"], tensors["statistics.average"]] if statistics else []
    shape = np.array([width, statistics, dot, fields, *map(len, weights)], dtype=np.int64)
    return shape, np.concatenate([part.ravel() for part in parts])
