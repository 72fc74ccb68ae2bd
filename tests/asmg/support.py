"""Small logs and models for the library's tests, made with numpy alone and from the row's point of view."""

import math
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, is_dataclass, replace
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from asmg.batch import NO_CATEGORY, NO_VALUE, TABLES, PeriodData
from asmg.field_columns import FieldColumns, unscaled
from asmg.layout import OWN_VALUE
from asmg.models import EmbeddingMLPConfig, MatrixFactorizationConfig, Params, build_model
from asmg.updaters.asmg import Asmg
from asmg.updaters.base import Updater

ModelConfig = EmbeddingMLPConfig | MatrixFactorizationConfig
UpdaterT = TypeVar("UpdaterT", bound=Updater[Any])

SMALL = EmbeddingMLPConfig(dim=3, hidden=(5, 4))
SMALL_CATEGORIES = EmbeddingMLPConfig(dim=3, hidden=(5, 4), categories=True)
MF = MatrixFactorizationConfig(dim=3)
MF_CATEGORIES = MatrixFactorizationConfig(dim=3, categories=True)

NUMERIC = EmbeddingMLPConfig(dim=3, hidden=(5, 4), numeric=7)
DOT_CATEGORIES = EmbeddingMLPConfig(dim=3, hidden=(5, 4), categories=True, numeric=1, dot=True)
FIELDS = EmbeddingMLPConfig(dim=3, hidden=(5, 4), categories=True, dot=True, fields=True)

CONFIGS: dict[str, ModelConfig] = {
    "mlp": SMALL, "mlp+categories": SMALL_CATEGORIES, "mf": MF, "mf+categories": MF_CATEGORIES,
    "mlp+numeric": NUMERIC, "mlp+categories+numeric+dot": DOT_CATEGORIES, "mlp+categories+dot+fields": FIELDS,
}  # fmt: skip

SHAPES: dict[str, EmbeddingMLPConfig] = {
    f"{'categories' if categories else 'plain'}-{numeric}{'+dot' if dot else ''}{'+fields' if fields else ''}": (
        EmbeddingMLPConfig(dim=3, hidden=(5, 4), categories=categories, numeric=numeric, dot=dot, fields=fields)
    )
    for categories in (False, True)
    for numeric in (0, 7)
    for dot in (False, True)
    for fields in (False, True)
}
"""Embedding&MLP with everything that it may or may not have."""

FIELD_ROWS = 8
"""Rows of the field table of a random period."""


def unrounded(updater: UpdaterT) -> UpdaterT:
    """The update method, which rounds nothing from now on: comparisons to the last bits mean what is learned."""
    for each in (updater, getattr(updater, "inner", None)):
        if each is not None:
            each.base.config = replace(each.base.config, moment_bits=None)
        if isinstance(each, Asmg):
            each.config = replace(each.config, moment_bits=None, hidden_bits=None)
    return updater


def inputs_of(config: ModelConfig) -> int:
    """S, the numeric inputs that a model reads."""
    return build_model(config).numeric


def read_by(config: ModelConfig) -> dict[str, Any]:
    """What `random_period` has to make for a model: `numeric` and `fields`."""
    return {"numeric": inputs_of(config), "fields": "field" in build_model(config).tables}


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


def made_once(make: Callable[..., PeriodData]) -> Callable[..., PeriodData]:
    """Makes each period once and hands out copies, so that nobody can change another's."""
    made = lru_cache(500)(make)

    @wraps(make)
    def another(*args: Any, **kwargs: Any) -> PeriodData:
        hashable = {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
        return cloned(made(*args, **hashable))

    return another


def cloned(value: Any) -> Any:
    """A copy of a dataclass and of all tensors within, which are not checked again."""
    if isinstance(value, Tensor):
        return value.clone()
    if not is_dataclass(value):
        return value
    other = copy(value)
    vars(other).update({name: cloned(part) for name, part in vars(value).items()})
    return other


@made_once
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
    numeric: int = 0,
    fields: bool = False,
) -> PeriodData:
    """`n` interactions on tables of these sizes. Rows are ≥ 1; the categories of an item depend on `structure` only.

    All else is the same with and without numeric inputs and fields. With fields interactions count differently.
    """
    rng = np.random.default_rng(seed)
    histories = [rng.integers(1, items, size=rng.integers(0, longest + 1)).tolist() for _ in range(n)]
    data = period(
        rng.integers(1, users, size=n).tolist(),
        rng.integers(1, items, size=n).tolist(),
        histories,
        (rng.random(n) < 0.4).astype(float).tolist() if labels is None else labels,
        users=users,
        items=items,
        categories=categories,
        item_categories=random_categories(items, categories, structure) if categories else None,
    )
    data = replace(data, recent=torch.from_numpy(rng.integers(0, 31, (n, 3), dtype=np.int32)))
    if fields:
        importance = np.random.default_rng((seed, n)).exponential(1, n) + 0.2
        data = replace(data, fields=random_fields(seed, n), weight=torch.tensor(importance, dtype=torch.float32))
    if not numeric:
        return data
    numbers = np.random.default_rng((seed, numeric)).normal(size=(n, numeric))
    return replace(data, numeric=torch.tensor(numbers, dtype=torch.float32))


def random_fields(seed: int, n: int) -> FieldColumns:
    """Five columns: one now and then has no value, and the last is a number."""
    columns, rng = 5, np.random.default_rng((seed, 5))
    rows = rng.integers(1, FIELD_ROWS - 1, (n, columns))
    rows[:, 2] = np.where(rng.random(n) < 0.4, NO_VALUE, rows[:, 2])
    rows[:, -1], weights = FIELD_ROWS - 1, np.ones((n, columns))
    weights[:, -1] = rng.normal(size=n)
    settled = torch.full((columns,), NO_VALUE, dtype=torch.int32)
    own = torch.full((columns,), OWN_VALUE, dtype=torch.int32)
    return FieldColumns(
        rows=torch.tensor(rows, dtype=torch.int32),
        weights=torch.tensor(weights, dtype=torch.float32),
        sums=torch.tensor([0, 1, 0, 2, 2], dtype=torch.int32),
        size=FIELD_ROWS,
        neutral=own,
        numbers=settled,
        scale=unscaled(columns),
    )


def padded(data: PeriodData, rows: int) -> PeriodData:
    """The same interactions in a world that holds so many users, items, categories and values more."""
    more: dict[str, Any] = {"users": data.users + rows, "items": data.items + rows}
    if data.fields is not None:
        more["fields"] = replace(data.fields, size=data.fields.size + rows)
    if data.item_categories is not None:
        unknown = torch.full((rows, data.item_categories.shape[1]), NO_CATEGORY, dtype=torch.int32)
        more |= {"categories": data.categories + rows, "item_categories": torch.cat([data.item_categories, unknown])}
    return replace(data, **more)


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


def random_params(config: ModelConfig, seed: int = 0, **rows: int) -> Params:
    """Standard normal parameters, biases too; `rows` of each table."""
    rng = np.random.default_rng(seed)
    model = build_model(config)
    rows = {"field": FIELD_ROWS, **rows}
    shapes: dict[str, tuple[int, ...]] = {name: (rows[name], width) for name, width in model.table_widths.items()}
    shapes |= model.dense_shapes
    return {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}


def slow_logit(config: ModelConfig, params: Params, data: PeriodData, n: int, cold: Sequence[str] = ()) -> float:
    """The logit of interaction `n` on whole tables in float64 numpy, one look-up at a time.

    A row past a table's end is read as row 0, and so is every row of the tables named in `cold`.
    """
    table = {name: params[name].double().numpy() for name in TABLES if name in params}

    def look_up(name: str, row: int) -> np.ndarray:
        return table[name][0 if name in cold or row >= len(table[name]) else row]

    def of_categories(row: int) -> np.ndarray:
        assert data.item_categories is not None
        known = data.item_categories[row if row < len(data.item_categories) else 0].tolist()
        vectors = [look_up("category", c) for c in known if c != NO_CATEGORY]
        return sum(vectors, np.zeros(table["category"].shape[1])) / max(1, len(vectors))

    user, item = look_up("user", int(data.user[n])), int(data.item[n])
    if isinstance(config, MatrixFactorizationConfig):
        own = look_up("item", item) + (of_categories(item) if config.categories else 0)
        return float(user[: config.dim] @ own[: config.dim] + user[config.dim] + own[config.dim])

    def item_vector(row: int) -> np.ndarray:
        return np.concatenate([look_up("item", row), *([of_categories(row)] if config.categories else [])])

    start, stop = int(data.offsets[n]), int(data.offsets[n + 1])
    pooled = np.zeros(config.dim * (2 if config.categories else 1))
    for row in data.history[start:stop].tolist():
        pooled = pooled + item_vector(row) / (stop - start)
    candidate = item_vector(item)
    sums = np.zeros((3, config.dim))
    if config.fields:
        assert data.fields is not None
        for c, (row, weight) in enumerate(
            zip(data.fields.rows[n].tolist(), data.fields.weights[n].tolist(), strict=True)
        ):
            if row != NO_VALUE:
                number = weight != 1 and row < len(table["field"])  # id dropout lets numbers be
                sums[int(data.fields.sums[c])] += weight * (table["field"][row] if number else look_up("field", row))
    numeric = np.zeros(0) if data.numeric is None else data.numeric[n].double().numpy()
    x = np.concatenate([user, pooled, candidate, *(sums if config.fields else ()), numeric])
    layers = len(config.hidden) + 1
    for i in range(layers):
        x = params[f"mlp.{i}.weight"].double().numpy() @ x + params[f"mlp.{i}.bias"].double().numpy()
        if i < layers - 1:
            x = np.maximum(x, 0)
    logit = float(x[0])
    if config.dot:
        of_user, of_history = (params[name].double().numpy() for name in ("dot.user", "dot.history"))
        for k in range(len(candidate)):
            logit += (of_user[k] * user[k % config.dim] + of_history[k] * pooled[k]) * candidate[k]
    return logit


def whole_table_logits(config: ModelConfig, leaves: Params, data: PeriodData, rows: Sequence[int]) -> Tensor:
    """The forward pass over whole tables in plain torch operations of float64, one interaction at a time."""

    def of_categories(row: int) -> Tensor:
        assert data.item_categories is not None
        known = [c for c in data.item_categories[row].tolist() if c >= 0]
        zero = torch.zeros(leaves["category"].shape[1], dtype=torch.float64)
        return torch.stack([leaves["category"][c] for c in known]).mean(0) if known else zero

    @cache
    def vector(row: int) -> Tensor:
        own = leaves["item"][row]
        if not config.categories:
            return own
        if isinstance(config, MatrixFactorizationConfig):
            return own + of_categories(row)
        return torch.cat([own, of_categories(row)])

    logits = []
    for n in rows:
        user, item = leaves["user"][int(data.user[n])], vector(int(data.item[n]))
        if isinstance(config, MatrixFactorizationConfig):
            logits.append(user[: config.dim] @ item[: config.dim] + user[config.dim] + item[config.dim])
            continue
        history = data.history[int(data.offsets[n]) : int(data.offsets[n + 1])].tolist()
        pooled = torch.stack([vector(row) for row in history]).mean(0) if history else torch.zeros_like(item)
        sums = field_sums_of(leaves["field"], data, n) if config.fields else []
        x = torch.cat([user, pooled, item, *sums, *([] if data.numeric is None else [data.numeric[n].double()])])
        last = len(config.hidden)
        for i in range(last + 1):
            x = leaves[f"mlp.{i}.weight"] @ x + leaves[f"mlp.{i}.bias"]
            x = x.relu() if i < last else x
        logit = x[0]
        if config.dot:
            wide = torch.cat([user] * (len(item) // len(user)))
            logit = logit + leaves["dot.user"] @ (wide * item) + leaves["dot.history"] @ (pooled * item)
        logits.append(logit)
    return torch.stack(logits)


def field_sums_of(table: Tensor, data: PeriodData, n: int) -> list[Tensor]:
    """The sums of context, user and item of interaction `n`."""
    assert data.fields is not None
    sums = [torch.zeros(table.shape[1], dtype=torch.float64) for _ in range(3)]
    for c, row in enumerate(data.fields.rows[n].tolist()):
        if row != NO_VALUE:
            at = int(data.fields.sums[c])
            sums[at] = sums[at] + float(data.fields.weights[n, c]) * table[row]
    return sums


def mean_loss(logits: Tensor, target: Tensor, data: PeriodData, rows: Sequence[int]) -> Tensor:
    """Σ w·loss / Σ w of these interactions, in float64."""
    weight = torch.ones(len(rows), dtype=torch.float64) if data.weight is None else data.weight[rows].double()
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * weight).sum() / weight.sum()


def copied(tensors: Mapping[str, Tensor]) -> Params:
    """A copy of each tensor."""
    return {name: t.clone() for name, t in tensors.items()}


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


def snapshot(value: Any) -> list[Tensor]:
    """Copies of all tensors within, to compare with later."""
    return [t.clone() for t in tensors_in(value)]


def unchanged(before: list[Tensor], value: Any) -> bool:
    """Whether all tensors within are those of a snapshot, to the bit."""
    after = tensors_in(value)
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


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


class SlowTraining:
    """A base model over whole tables in float64 with dense Adam: what training of a few rows has to come to."""

    def __init__(self, config: ModelConfig, params: Params, lr: float) -> None:
        self.config = config
        self.adam = {name: DenseAdam(p.double().numpy(), lr) for name, p in params.items()}

    @property
    def params(self) -> Params:
        return {name: torch.tensor(a.value) for name, a in self.adam.items()}

    def grow(self, sizes: Mapping[str, int]) -> None:
        for name, a in self.adam.items():
            if sizes.get(name, 0) > len(a.value):
                a.grow(sizes[name])

    def epoch(self, data: PeriodData, order: Sequence[int], batch_size: int, target: Tensor | None = None) -> float:
        """One pass in this order; returns the mean loss."""
        wanted, total = (data.label if target is None else target).double(), 0.0
        for first in range(0, len(order), batch_size):
            rows = list(order[first : first + batch_size])
            leaves = {name: p.requires_grad_() for name, p in self.params.items()}
            logits = whole_table_logits(self.config, leaves, data, rows)
            mean = mean_loss(logits, wanted[rows], data, rows)
            total += float(mean.detach()) * len(rows)
            mean.backward()
            for name, a in self.adam.items():
                gradient = leaves[name].grad
                a.step(np.zeros_like(a.value) if gradient is None else gradient.numpy())
        return total / len(order)


def storages(values: Iterable[Any]) -> set[int]:
    """Where the tensors lie that an operation takes: single ones or lists of them."""
    found = set()
    for value in values:
        if isinstance(value, Tensor):
            found.add(value.untyped_storage().data_ptr())
        elif isinstance(value, (tuple, list)):
            found |= storages(value)
    return found


class Footprint(TorchDispatchMode):
    """The largest tensor that any torch operation within returned, all of them together, and the most memory that numpy
    held at a time.

    What numba allocates inside of compiled code is not seen; views of what is there already are not counted.
    """

    elements = 0
    """Of a new tensor."""
    all_elements = 0
    numpy_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = storages((*args, *(kwargs or {}).values()))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                elements = storage.nbytes() // tensor.element_size()
                self.elements = max(self.elements, elements)
                self.all_elements += elements
        return result

    def __enter__(self) -> "Footprint":
        super().__enter__()
        torch.ones(1).clone()  # torch loads what it needs for this
        self.elements = self.all_elements = 0
        tracemalloc.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.numpy_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        super().__exit__(*args)
