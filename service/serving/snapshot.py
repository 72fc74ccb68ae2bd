"""The serving snapshot: one immutable file with a model and the index of the ids it knows, mapped by every process."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asmg.batch import COLD_ROW, HISTORY_LENGTH, ItemFeatures
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import BaseModel, EmbeddingMLP, EmbeddingMLPConfig, build_model, config_from_json
from service.serving.id_index import IdIndex

__all__ = ["Prediction", "Snapshot", "encode_snapshot", "prior_snapshot"]

KIND = "serving"
EPSILON = 1e-6
"""Scores are kept this far from 0 and 1, so that no reader meets a logarithm of zero."""


class Prediction(NamedTuple):
    """What a snapshot says about one user and some items."""

    scores: list[float]
    """Click probabilities in the order of the items, each in (0, 1)."""
    cold_user: bool
    """Whether the user is unknown to the model."""
    cold_items: list[int]
    """Positions of the items that are unknown to the model."""


@dataclass(frozen=True)
class Snapshot:
    """One model version, ready to predict. Nothing in it ever changes."""

    version: int
    """The model version."""
    period: int
    """The last period it learned from; 0 for the prior."""
    model: BaseModel
    params: Mapping[str, Tensor]
    """"user" [U, dim], "items" [I, width] (categories already mixed in) and what else the base model has."""
    users: IdIndex
    items: IdIndex

    @classmethod
    def load(cls, path: Path, version: int, period: int) -> "Snapshot":
        """Map a snapshot file.

        Every page is read once, here, so that no request waits for the disk later.

        Raises:
            ValueError: the file is no snapshot, or holds numbers that are not finite.
        """
        try:
            with safe_open(path, framework="pt") as file:
                _, meta = Checkpoint.parse_header(file.metadata(), KIND)
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (no mapping, has keys() only)
        except SafetensorError as error:
            raise CheckpointError(f"snapshot: expected a file of kind {KIND!r}; received an unreadable one") from error
        model = build_model(config_from_json(meta["model"]))
        expected = {f"param.{name}" for name in ("user", "items", *model.dense_shapes)}
        expected |= {f"{kind}.{part}" for kind in ("users", "items") for part in ("hashes", "rows")}
        if set(tensors) != expected:
            raise CheckpointError(f"snapshot: expected tensors {sorted(expected)}; received {sorted(tensors)}")
        params = {name.removeprefix("param."): t for name, t in tensors.items() if name.startswith("param.")}
        for name, tensor in params.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
        indices = {
            kind: IdIndex(tensors[f"{kind}.hashes"].numpy().view(np.uint64), tensors[f"{kind}.rows"].numpy())
            for kind in ("users", "items")
        }
        for index in indices.values():
            index.hashes.sum(), index.rows.sum()
        return cls(version, period, model, params, **indices)

    @torch.inference_mode()
    def predict(self, user_id: str, items: Sequence[str], history: Sequence[str]) -> Prediction:
        """Score candidates for one user.

        Args:
            user_id: may be unknown.
            items: candidate ids; may be unknown.
            history: ids of the user's clicked items, most recent first; the first 30 count.
        """
        user = int(self.users.lookup([user_id])[0])
        past = history[:HISTORY_LENGTH]
        rows = torch.from_numpy(self.items.lookup([*items, *past]))
        vectors = self.params["items"]
        candidate = vectors[rows[: len(items)]]
        pooled = vectors[rows[len(items) :]].mean(0, keepdim=True) if past else torch.zeros(1, vectors.shape[1])
        n = len(items)
        logits = self.model.head(self.params, self.params["user"][user].expand(n, -1), pooled.expand(n, -1), candidate)
        cold = torch.nonzero(rows[:n] == COLD_ROW).squeeze(1).tolist()
        return Prediction(torch.sigmoid(logits).clamp(EPSILON, 1 - EPSILON).tolist(), user == COLD_ROW, cold)


def encode_snapshot(
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: IdIndex,
    items: IdIndex,
    item_categories: Tensor | None = None,
) -> bytes:
    """The snapshot file of a model.

    Args:
        model, params: the model to serve.
        users, items: rows of the ids it knows, within its tables.
        item_categories: int [I, C] for a model with categories.
    """
    features = None
    if item_categories is not None:
        features = ItemFeatures(row=torch.arange(len(params["item"])), categories=item_categories.long())
    tensors: dict[str, Tensor] = {f"param.{name}": params[name] for name in model.dense_shapes}
    tensors["param.user"] = params["user"]
    tensors["param.items"] = model.item_vectors(params, features)
    for kind, index in (("users", users), ("items", items)):
        tensors[f"{kind}.hashes"] = torch.from_numpy(index.hashes.view(np.int64))
        tensors[f"{kind}.rows"] = torch.from_numpy(index.rows)
    return Checkpoint(KIND, {"model": model.config.to_json()}, tensors).to_bytes()


def prior_snapshot(ctr: float) -> bytes:
    """Version 0: the model that answers `ctr`, in (0, 1), to everything."""
    model = EmbeddingMLP(EmbeddingMLPConfig())
    params = {name: torch.zeros(1, model.config.dim) for name in model.tables}
    params |= {name: torch.zeros(shape) for name, shape in model.dense_shapes.items()}
    last = list(model.dense_shapes)[-1]
    params[last] = torch.tensor([math.log(ctr / (1 - ctr))])
    nobody = IdIndex(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32))
    return encode_snapshot(model, params, nobody, nobody)
