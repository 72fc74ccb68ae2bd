"""The forward pass of a serving snapshot in plain torch: what the compiled one is compared with, and what serves where
that one does not come to the same scores.

It is slower by an order of magnitude and brings torch into the process, which serving does without otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.layout import COLD_ROW
from asmg.models import build_model, config_from_json
from service.serving.forward import EPSILON, Forward
from service.serving.id_index import IdIndex

__all__ = ["eager_forward"]


def eager_forward(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Forward:
    """The same function as `service.serving.forward.compiled_forward`."""
    model = build_model(config_from_json(config))
    users = IdIndex(tensors["users.hashes"], tensors["users.starts"])
    items = IdIndex(tensors["items.hashes"], tensors["items.starts"])
    params = {name: torch.tensor(tensors[name]) for name in model.dense_shapes}

    def rows_of(table: str, rows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(tensors[table][rows])  # a copy, so that torch does not mind that a file is read-only

    @torch.inference_mode()
    def forward(
        asked: NDArray[np.uint64], history: NDArray[np.uint64], scores: NDArray[np.float32], cold: NDArray[np.int32], /
    ) -> tuple[int, bool]:
        n, user, rows = len(scores), users.lookup(asked[:1]), items.lookup(asked[1:])
        vectors = rows_of("items.vectors", rows)
        pooled = torch.zeros(1, vectors.shape[1])
        if len(history):
            pooled = rows_of("items.vectors", items.lookup(history)).mean(0, keepdim=True)
        logits = model.head(params, rows_of("users.vectors", user).expand(n, -1), pooled.expand(n, -1), vectors)
        scores[:] = torch.sigmoid(logits).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).numpy()
        (unknown,) = np.nonzero(rows == COLD_ROW)
        cold[: len(unknown)] = unknown
        return len(unknown), bool(user[0] == COLD_ROW)

    return forward
