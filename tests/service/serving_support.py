"""Random models and their snapshots, and what the library's own forward pass says to the same questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, InteractionBatch, ItemFeatures
from asmg.models import (
    EmbeddingMLP,
    EmbeddingMLPConfig,
    MatrixFactorization,
    MatrixFactorizationConfig,
    Params,
    build_model,
)
from service.serving.encode import Known, encode_snapshot
from service.serving.snapshot import Snapshot

USERS = [f"u{n}" for n in range(1, 8)]
ITEMS = [f"i{n}" for n in range(1, 50)]
CATEGORIES = 6

TOLERANCE = 1e-5
"""By how much two ways to one score may differ: both add the same float32 numbers, in another order. A sum of 100 terms
around 1 is then 100 · 6·10⁻⁸ off at the most, and the sigmoid makes a quarter of it at its steepest.
"""


def known(ids: Sequence[str]) -> Known:
    """Row n for the n-th of them, from 1 on."""
    return Known(ids, np.arange(1, len(ids) + 1))


@dataclass(frozen=True)
class Made:
    """A model whose row n belongs to the n-th user and item, from 1 on."""

    model: EmbeddingMLP | MatrixFactorization
    params: Params
    item_categories: Tensor | None
    users: Sequence[str]
    items: Sequence[str]

    def encoded(self) -> bytes:
        return encode_snapshot(self.model, self.params, known(self.users), known(self.items), self.item_categories)

    def snapshot(self, folder: Path) -> Snapshot:
        path = folder / "snapshot.safetensors"
        path.write_bytes(self.encoded())
        return Snapshot.open(path, 1, 1)

    def scores(self, user: str, items: Sequence[str], history: Sequence[str]) -> Tensor:
        """The library's forward pass over whole tables, one interaction for each candidate."""
        past = [_row(self.items, item) for item in history]
        batch = InteractionBatch(
            user=torch.full((len(items),), _row(self.users, user)),
            item=torch.tensor([_row(self.items, item) for item in items]),
            history=torch.tensor(past * len(items), dtype=torch.int64),
            offsets=torch.arange(len(items) + 1) * len(past),
            label=torch.zeros(len(items)),
        )
        features = None
        if self.item_categories is not None:
            features = ItemFeatures(torch.arange(len(self.item_categories)), self.item_categories)
        return torch.sigmoid(self.model.logits(self.params, batch, features))


def _row(ids: Sequence[str], name: str) -> int:
    return ids.index(name) + 1 if name in ids else COLD_ROW


def random_model(
    seed: int,
    *,
    dim: int = 4,
    hidden: tuple[int, ...] = (6, 3),
    categories: bool = False,
    users: Sequence[str] = USERS,
    items: Sequence[str] = ITEMS,
) -> Made:
    """A model whose logits are mostly within ±5, so that scores differ; one without layers factorizes a matrix."""
    rng = torch.Generator().manual_seed(seed)
    config: EmbeddingMLPConfig | MatrixFactorizationConfig
    if hidden:
        config = EmbeddingMLPConfig(dim=dim, hidden=hidden, categories=categories)
    else:
        config = MatrixFactorizationConfig(dim=dim, categories=categories)
    model = build_model(config)
    sizes = {"user": len(users) + 1, "item": len(items) + 1, "category": CATEGORIES}
    params = {
        n: torch.randn(size, model.table_widths[n], generator=rng) for n, size in sizes.items() if n in model.tables
    }
    for name, shape in model.dense_shapes.items():
        if len(shape) == 1:
            params[name] = torch.rand(shape, generator=rng)  # so that few hidden units are closed for all items
        else:
            params[name] = 1.5 / math.sqrt(shape[1]) * torch.randn(shape, generator=rng)
    table = None
    if categories:
        table = torch.randint(1, CATEGORIES, (sizes["item"], 3), generator=rng)
        table[torch.rand(table.shape, generator=rng) < 0.4] = NO_CATEGORY
        table[COLD_ROW] = NO_CATEGORY
    return Made(model, params, table, users, items)
