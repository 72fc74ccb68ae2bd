"""The compiled forward pass over the files of a snapshot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import Floats, Rows
from asmg.kernels.statistics import USER, fadings
from service.serving.fields import FieldValues
from service.serving.forward.interface import Forward
from service.serving.forward.mf import MFTables, score_mf
from service.serving.forward.mlp import MLPTables, score_mlp
from service.serving.forward.tables import pack
from service.serving.id_hashes import Hashes
from service.serving.snapshot_file import SnapshotFiles, item_row_width, vector_width

__all__ = ["compiled_forward"]


def compiled_forward(meta: Mapping[str, Any], files: SnapshotFiles) -> Forward:
    """The forward pass of a snapshot as machine code.

    Args:
        meta: the header of the newest file (`service.serving.snapshot_file`).
        files: the base and the overlay.
    """
    config, packed, width = meta["model"], pack(files), vector_width(meta["model"])
    if "hidden" not in config:
        factors = MFTables(*packed, np.array([width, config["categories"]], np.int64))
        return lambda hashes, history, recent, values, scores, cold: score_mf(hashes, history, factors, scores, cold)
    dense = files.newest.tensors
    counted = meta["statistics"] if config.get("numeric") else {"periods": 0, "decay": 1.0, "pair_decay": 1.0}
    of_items, of_pairs = (fadings(float(counted[name]), int(counted["periods"])) for name in ("decay", "pair_decay"))
    has = [bool(config.get(name)) for name in ("categories", "numeric", "dot", "fields")]
    layers = [*config["hidden"], 1]
    shape = np.array([width, item_row_width(config), counted["periods"], len(of_items), *has, *layers], np.int64)
    tables = MLPTables(*packed, shape, _dense(config, dense), np.concatenate([of_items, of_pairs]))

    def forward(
        hashes: Hashes, history: Hashes, recent: Rows, values: FieldValues, scores: Floats, cold: Rows, /
    ) -> tuple[int, bool]:
        return score_mlp(hashes, history, recent, values, tables, scores, cold)

    return forward


def _dense(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Floats:
    """`MLPTables.dense`."""
    layers = range(len(config["hidden"]) + 1)
    weights = [tensors[f"mlp.{layer}.weight"] for layer in layers]
    biases = [tensors[f"mlp.{layer}.bias"] for layer in layers]
    dim = int(config["dim"])
    width = dim * (2 if config["categories"] else 1)
    statistics, dot, fields = (bool(config.get(name)) for name in ("numeric", "dot", "fields"))
    widths = [dim + width, width, 2 * dim * fields, dim * fields, USER * statistics]
    request, candidate, values, own, user, rest = np.split(weights[0], np.cumsum(widths), axis=1)
    parts = [np.concatenate([request, values, user], 1).T, biases[0], np.concatenate([candidate, own, rest], 1)]
    parts += [part for layer in layers[1:] for part in (weights[layer], biases[layer])]
    parts += [tensors["dot.user"], tensors["dot.history"]] if dot else []
    parts += [tensors["statistics.scale"], tensors["statistics.average"]] if statistics else []
    return np.concatenate([part.ravel() for part in parts])
