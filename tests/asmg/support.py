"""Small logs and models for the library's tests, made with numpy alone and from the row's point of view."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.batch import NO_CATEGORY, PeriodData
from asmg.models import TABLES, EmbeddingMLP, EmbeddingMLPConfig, Params

SMALL = EmbeddingMLPConfig(dim=3, hidden=(5, 4))
SMALL_CATEGORIES = EmbeddingMLPConfig(dim=3, hidden=(5, 4), categories=True)


def torch_rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def period(
    user: Sequence[int],
    item: Sequence[int],
    histories: Sequence[Sequence[int]],
    label: Sequence[float],
    *,
    users: int,
    items: int,
    item_categories: Sequence[Sequence[int]] | None = None,
    categories: int = 0,
) -> PeriodData:
    """A period from lists: `histories[n]` are the item rows of interaction n."""
    return PeriodData(
        user=torch.tensor(user, dtype=torch.int32),
        item=torch.tensor(item, dtype=torch.int32),
        history=torch.tensor([row for history in histories for row in history], dtype=torch.int32),
        offsets=torch.tensor([0, *np.cumsum([len(history) for history in histories])], dtype=torch.int64),
        label=torch.tensor(label, dtype=torch.float32),
        users=users,
        items=items,
        categories=categories,
        item_categories=None if item_categories is None else torch.tensor(item_categories, dtype=torch.int32),
    )


def random_period(
    seed: int,
    n: int = 40,
    *,
    users: int = 6,
    items: int = 9,
    categories: int = 0,
    longest: int = 5,
    labels: Sequence[float] | None = None,
    structure: int = 0,
) -> PeriodData:
    """`n` interactions on tables of these sizes. Rows are ≥ 1; the categories of an item depend on `structure` only."""
    rng = np.random.default_rng(seed)
    histories = [rng.integers(1, items, size=rng.integers(0, longest + 1)).tolist() for _ in range(n)]
    return period(
        rng.integers(1, users, size=n).tolist(),
        rng.integers(1, items, size=n).tolist(),
        histories,
        (rng.random(n) < 0.4).astype(float).tolist() if labels is None else labels,
        users=users,
        items=items,
        categories=categories,
        item_categories=random_categories(items, categories, structure) if categories else None,
    )


def random_categories(items: int, categories: int, structure: int = 0) -> list[list[int]]:
    """Up to two categories of each item; row 0 has none.

    With categories ≥ 2 + items // 3 a larger catalogue starts like a smaller one.
    """
    matrix = [[NO_CATEGORY, NO_CATEGORY]]
    for item in range(1, items):
        rng = np.random.default_rng((structure, item))
        known = min(categories - 1, 1 + item // 3)
        chosen = (1 + rng.choice(known, size=min(int(rng.integers(0, 3)), known), replace=False)).tolist()
        matrix.append(chosen + [NO_CATEGORY] * (2 - len(chosen)))
    return matrix


def random_params(config: EmbeddingMLPConfig, seed: int = 0, **rows: int) -> Params:
    """Standard normal parameters, biases too; `rows` of each table."""
    rng = np.random.default_rng(seed)
    model = EmbeddingMLP(config)
    shapes: dict[str, tuple[int, ...]] = {name: (rows[name], config.dim) for name in model.tables}
    shapes |= model.dense_shapes
    return {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}


def slow_logit(config: EmbeddingMLPConfig, params: Params, data: PeriodData, n: int, cold: Sequence[str] = ()) -> float:
    """The logit of interaction `n` on whole tables in float64 numpy, one look-up at a time.

    A row past a table's end is read as row 0, and so is every row of the tables named in `cold`.
    """
    table = {name: params[name].double().numpy() for name in TABLES if name in params}

    def look_up(name: str, row: int) -> np.ndarray:
        return table[name][0 if name in cold or row >= len(table[name]) else row]

    def item_vector(row: int) -> np.ndarray:
        if not config.categories:
            return look_up("item", row)
        assert data.item_categories is not None
        known = data.item_categories[row if row < len(data.item_categories) else 0].tolist()
        vectors = [look_up("category", c) for c in known if c != NO_CATEGORY]
        mean = sum(vectors, np.zeros(config.dim)) / max(1, len(vectors))
        return np.concatenate([look_up("item", row), mean])

    start, stop = int(data.offsets[n]), int(data.offsets[n + 1])
    pooled = np.zeros(config.dim * (2 if config.categories else 1))
    for row in data.history[start:stop].tolist():
        pooled = pooled + item_vector(row) / (stop - start)
    x = np.concatenate([look_up("user", int(data.user[n])), pooled, item_vector(int(data.item[n]))])
    layers = len(config.hidden) + 1
    for i in range(layers):
        x = params[f"mlp.{i}.weight"].double().numpy() @ x + params[f"mlp.{i}.bias"].double().numpy()
        if i < layers - 1:
            x = np.maximum(x, 0)
    return float(x[0])


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors within nested dataclasses, dictionaries and tuples, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in tensors_in(value[key])]
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in tensors_in(part)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for name in value.__dataclass_fields__ for t in tensors_in(getattr(value, name))]
    return []


@dataclass
class DenseAdam:
    """TensorFlow 1's Adam on a whole array: every element moves in every step (methods.md, section 0)."""

    value: np.ndarray
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    t: int = 0

    def __post_init__(self) -> None:
        self.m, self.v = np.zeros_like(self.value), np.zeros_like(self.value)

    def step(self, gradient: np.ndarray) -> None:
        self.t += 1
        rate = self.lr * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        self.m = self.beta1 * self.m + (1 - self.beta1) * gradient
        self.v = self.beta2 * self.v + (1 - self.beta2) * gradient**2
        self.value = self.value - rate * self.m / (np.sqrt(self.v) + self.eps)

    def grow(self, rows: int) -> None:
        more = rows - len(self.value)
        self.value = np.concatenate([self.value, np.repeat(self.value[:1], more, 0)])
        self.m, self.v = (np.concatenate([a, np.zeros((more, a.shape[1]))]) for a in (self.m, self.v))
