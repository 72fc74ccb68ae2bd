"""Random models, their snapshots, and the library's forward pass for the same inputs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, HISTORY_LENGTH, NO_CATEGORY, InteractionBatch, ItemFeatures, PeriodData
from asmg.models import (
    EmbeddingMLP,
    EmbeddingMLPConfig,
    MatrixFactorization,
    MatrixFactorizationConfig,
    Params,
    build_model,
)
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from service.serving.encode import Known, TrainedModel, encode_base
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
    return Known.of(ids, np.arange(1, len(ids) + 1))


def base_of(trained: TrainedModel) -> bytes:
    """The base file of a model."""
    with BytesIO() as file:
        encode_base(file, trained)
        return file.getvalue()


def metadata_of(content: bytes) -> dict[str, str]:
    """What stands in the header of a safetensors file beside its tensors."""
    size = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return metadata


@dataclass(frozen=True)
class Made:
    """A model whose row n belongs to the n-th user and item, from 1 on."""

    model: EmbeddingMLP | MatrixFactorization
    params: Params
    item_categories: Tensor | None
    users: Sequence[str]
    items: Sequence[str]
    statistics: Statistics | None = None

    def trained(self, **changes: Any) -> TrainedModel:
        made = TrainedModel(
            model=self.model,
            params=self.params,
            users=known(self.users),
            items=known(self.items),
            categories=self.item_categories,
            statistics=self.statistics,
        )
        return replace(made, **changes)

    def encoded(self) -> bytes:
        return base_of(self.trained())

    def snapshot(self, folder: Path) -> Snapshot:
        path = folder / "snapshot.safetensors"
        path.write_bytes(self.encoded())
        return Snapshot.open(path, 1, 1)

    def scores(
        self, user: str, items: Sequence[str], history: Sequence[str], recent: Sequence[int] = (0, 0, 0)
    ) -> Tensor:
        """The library's forward pass over whole tables, one interaction for each candidate."""
        past = [_row(self.items, item) for item in history]
        batch = InteractionBatch(
            user=torch.full((len(items),), _row(self.users, user)),
            item=torch.tensor([_row(self.items, item) for item in items]),
            history=torch.tensor(past * len(items), dtype=torch.int64),
            offsets=torch.arange(len(items) + 1) * len(past),
            label=torch.zeros(len(items)),
            numeric=self.numeric(items, history, recent),
        )
        features = None
        if self.item_categories is not None:
            features = ItemFeatures(torch.arange(len(self.item_categories)), self.item_categories)
        return torch.sigmoid(self.model.logits(self.params, batch, features))

    def numeric(self, items: Sequence[str], history: Sequence[str], recent: Sequence[int]) -> Tensor | None:
        """The statistics of the candidates, as those of a log in which new items have rows past all tables."""
        if self.statistics is None or not self.model.numeric:
            return None
        known = max(len(self.items) + 1, len(self.statistics.counts))
        new = {name: known + n for n, name in enumerate({*items, *history} - {*self.items})}
        rows = [new.get(name) or _row(self.items, name) for name in (*items, *history)]
        past = torch.tensor(rows[len(items) :], dtype=torch.int32)
        return self.statistics.inputs(
            PeriodData(
                user=torch.zeros(len(items), dtype=torch.int32),
                item=torch.tensor(rows[: len(items)], dtype=torch.int32),
                history=past.repeat(len(items)),
                offsets=torch.arange(len(items) + 1) * len(past),
                label=torch.zeros(len(items)),
                recent=torch.tensor([list(recent)] * len(items), dtype=torch.int32),
                users=1,
                items=max(rows) + 1,
            )
        )


def random_log(rng: np.random.Generator, items: int, *, size: int = 400, users: int = 20) -> PeriodData:
    """A period of clicks and passes on some of the items 1, …, `items`, of which few are frequent."""

    def some(count: int) -> Tensor:
        return torch.from_numpy((1 + rng.zipf(1.3, count) % items).astype(np.int32))

    lengths = rng.integers(0, HISTORY_LENGTH + 1, size)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    recent = np.sort(rng.integers(0, 31, (size, 3)))[:, [2, 0, 1]].astype(np.int32)
    recent[:, 1] = np.minimum(recent[:, 1], 10)
    return PeriodData(
        user=torch.from_numpy(rng.integers(1, users, size).astype(np.int32)),
        item=some(size),
        history=some(int(offsets[-1])),
        offsets=offsets,
        label=torch.from_numpy((rng.random(size) < 0.4).astype(np.float32)),
        recent=torch.from_numpy(recent),
        users=users,
        items=items + 1,
    )


def random_statistics(seed: int, items: int, *, periods: int = 3, neighbours: int = 4, size: int = 400) -> Statistics:
    """Of some periods; with so few neighbours that many pairs are forgotten."""
    rng, found = np.random.default_rng(seed), Statistics.initial(StatisticsConfig(neighbours=neighbours))
    for _ in range(periods):
        found = found.learned(random_log(rng, items, size=size))
    return found


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
    dot: bool = False,
    statistics: Statistics | None = None,
) -> Made:
    """A model whose logits are mostly within ±5, so that scores differ; one without layers factorizes a matrix."""
    rng = torch.Generator().manual_seed(seed)
    config: EmbeddingMLPConfig | MatrixFactorizationConfig
    if hidden:
        numeric = 0 if statistics is None else len(NAMES)
        config = EmbeddingMLPConfig(dim=dim, hidden=hidden, categories=categories, numeric=numeric, dot=dot)
    else:
        config = MatrixFactorizationConfig(dim=dim, categories=categories)
    model = build_model(config)
    sizes = {"user": len(users) + 1, "item": len(items) + 1, "category": CATEGORIES}
    params = {
        n: torch.randn(size, model.table_widths[n], generator=rng) for n, size in sizes.items() if n in model.tables
    }
    for name, shape in model.dense_shapes.items():
        if len(shape) == 1:  # biases so that few hidden units are closed for all items; weights of dot products
            params[name] = torch.rand(shape, generator=rng) / (1 + name.startswith("dot") * shape[0] ** 0.5)
        else:
            params[name] = 1.5 / math.sqrt(shape[1]) * torch.randn(shape, generator=rng)
    table = None
    if categories:
        table = torch.randint(1, CATEGORIES, (sizes["item"], 3), generator=rng)
        table[torch.rand(table.shape, generator=rng) < 0.4] = NO_CATEGORY
        table[COLD_ROW] = NO_CATEGORY
    return Made(model, params, table, users, items, statistics)
