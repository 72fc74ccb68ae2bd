"""What the servers are asked: a seeded random model, its users' histories, and ready-made requests.

Row n of a table is the id `u<n>` or `i<n>`; row 0 is the cold row, which no id has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from asmg.batch import HISTORY_LENGTH, PeriodData
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, default_config
from asmg.numbers import NumberMoments
from asmg.statistics import NAMES, Statistics, StatisticsConfig

__all__ = [
    "NEIGHBOURS",
    "WITH_FIELDS",
    "WITH_STATISTICS",
    "RequestPool",
    "ServingSizes",
    "ServingWorkload",
    "expected_scores",
    "item_id",
    "load_model",
    "make_workload",
    "random_params",
    "random_statistics",
    "save_model",
    "user_id",
]

MODEL = EmbeddingMLP(EmbeddingMLPConfig())
"""Embedding&MLP with dims 8 and an MLP 24-12-6-1, without categories."""

WITH_STATISTICS = EmbeddingMLP(default_config(categories=False, numeric=len(NAMES)))
"""The shape that is served by default: the same with statistics and dot products."""

WITH_FIELDS = EmbeddingMLP(default_config(categories=False, numeric=len(NAMES), fields=True))
"""The same with fields."""

NEIGHBOURS = 47
"""Items beside each item, as many as DIGINETICA's have on average."""

BIAS_STEP = 0.3
"""By how much the last bias of one model differs from that of the next, beside all other numbers."""


def user_id(row: int) -> str:
    """The id of a user's table row."""
    return f"u{row}"


def item_id(row: int) -> str:
    """The id of an item's table row."""
    return f"i{row}"


@dataclass(frozen=True, kw_only=True)
class ServingSizes:
    """Sizes of the model's tables, without their cold rows."""

    users: int = 2_000
    items: int = 20_000

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"users: expected at least 1; received {self.users}")
        if self.items < HISTORY_LENGTH:
            raise ValueError(f"catalogue: expected at least the {HISTORY_LENGTH} of a history; received {self.items}")


@dataclass(frozen=True)
class RequestPool:
    """Requests for the scores of `n` distinct items each."""

    users: NDArray[np.int64]
    """Rows of the users who ask, [R]."""
    histories: NDArray[np.int64]
    """Rows of the items that each has clicked, [R, 30]."""
    items: NDArray[np.int64]
    """Rows of the candidates, [R, n]."""

    @property
    def n(self) -> int:
        """Candidates of a request."""
        return int(self.items.shape[1])

    def first(self, count: int) -> "RequestPool":
        """The first `count` of them."""
        return RequestPool(self.users[:count], self.histories[:count], self.items[:count])

    def encode(
        self,
        key: str,
        *,
        before: bytes = b"",
        after: bytes = b"",
        contexts: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[bytes]:
        """Each request as the bytes of an HTTP/1.1 request that keeps its connection.

        Args:
            key: the API key sent along.
            before, after: what a server wants around the document.
            contexts: of each request; None for none.
        """
        requests = []
        for n, (user, items) in enumerate(zip(self.users.tolist(), self.items.tolist(), strict=True)):
            document: dict[str, Any] = {"user_id": user_id(user), "items": [item_id(item) for item in items]}
            if contexts is not None:
                document["context"] = contexts[n]
            body = before + orjson.dumps(document) + after
            head = (
                "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            requests.append(head.encode("ascii") + body)
        return requests


@dataclass(frozen=True)
class ServingWorkload:
    """A model's sizes, the users who ask, and their histories."""

    sizes: ServingSizes
    users: NDArray[np.int64]
    """Rows of the users who ask, [A], ascending."""
    histories: NDArray[np.int64]
    """Rows of the 30 distinct items that each of them has clicked, [A, 30]."""
    seed: int

    def requests(self, n: int, count: int) -> RequestPool:
        """`count` requests of random users for `n` distinct random items each; equal for equal arguments."""
        rng = np.random.default_rng([self.seed, 2, n])
        who = rng.integers(len(self.users), size=count)
        items = np.stack([_distinct(rng, self.sizes.items, n) for _ in range(count)])
        return RequestPool(self.users[who], self.histories[who], items)

    def one_each(self) -> RequestPool:
        """One request of each user for one item."""
        return RequestPool(self.users, self.histories, self.histories[:, :1])


def make_workload(sizes: ServingSizes, seed: int, *, active: int | None = None) -> ServingWorkload:
    """Users with their histories; `active` of them ask, or all."""
    rng = np.random.default_rng([seed, 1])
    users = np.arange(1, sizes.users + 1)
    if active is not None and active < sizes.users:
        users = np.sort(_distinct(rng, sizes.users, active))
    histories = np.stack([_distinct(rng, sizes.items, HISTORY_LENGTH) for _ in range(len(users))])
    return ServingWorkload(sizes, users, histories, seed)


def random_params(sizes: ServingSizes, seed: int, model: EmbeddingMLP = MODEL, values: int = 0) -> Params:
    """A model whose scores tell its rows apart; another seed gives other numbers everywhere.

    Args:
        sizes: of the tables.
        seed: of the numbers.
        model: the shape.
        values: rows of the field table of a model with fields.
    """
    rng = torch.Generator().manual_seed(seed)
    params = model.initial(rng)
    params["user"] = torch.randn(sizes.users + 1, model.config.dim, generator=rng)
    params["item"] = torch.randn(sizes.items + 1, model.config.dim, generator=rng)
    if model.config.fields:
        params["field"] = 0.3 * torch.randn(values, model.config.dim, generator=rng)
    return model.shifted(params, BIAS_STEP * (seed % 4 - 1.5))


def random_statistics(sizes: ServingSizes, seed: int, neighbours: int = NEIGHBOURS) -> Statistics:
    """Of one period, in which every item was clicked beside `neighbours` others at random."""
    rng, items = np.random.default_rng([seed, 3]), sizes.items + 1
    near = np.sort(rng.integers(1, items, (items, min(neighbours, sizes.items))).astype(np.int32), 1)
    near[0], distinct = 0, np.ones(near.shape, dtype=bool)
    distinct[:, 1:] = near[:, 1:] > near[:, :-1]
    distinct[0] = False
    starts = np.concatenate([[0], np.cumsum(distinct.sum(1))])
    shown = 1 + torch.from_numpy(rng.integers(0, 100, (items, 2)).astype(np.float32))
    counts = torch.stack([shown.amin(1), shown.amax(1)], 1).repeat(1, 2)
    counts[0] = 0
    together, passed = (torch.from_numpy(rng.integers(1, 9, starts[-1]).astype(np.float32)) for _ in range(2))
    degrees = torch.zeros(items).index_add_(0, torch.repeat_interleave(torch.from_numpy(np.diff(starts))), together)
    moments = torch.ones(2, len(NAMES) + 2, dtype=torch.float64)
    moments[0, 1], moments[1] = 0.3, 2.0
    once = torch.ones(items, dtype=torch.int32)
    return Statistics(
        StatisticsConfig(), 1, counts, once, torch.from_numpy(starts), torch.from_numpy(near[distinct]),
        together, passed, degrees, once, moments, NumberMoments.initial(),
    )  # fmt: skip


@torch.inference_mode()
def expected_scores(
    params: Mapping[str, Tensor],
    pool: RequestPool,
    statistics: Statistics | None = None,
    fields: Tensor | None = None,
) -> NDArray[np.float64]:
    """What the plain torch forward says of each candidate, [R, n]: of a model with statistics, where they are given,
    and of one with fields, where their sums [R · n, 3 · dim] are.
    """
    count, n = pool.items.shape
    pooled = params["item"][torch.from_numpy(pool.histories)].mean(1)
    user = params["user"][torch.from_numpy(pool.users)]
    rows = torch.from_numpy(pool.items.reshape(-1))
    model = MODEL if statistics is None else WITH_STATISTICS if fields is None else WITH_FIELDS
    about = (user.repeat_interleave(n, 0), pooled.repeat_interleave(n, 0), params["item"][rows])
    numeric = None if statistics is None else statistics.inputs(_log_of(pool))
    return torch.sigmoid(model.head(params, *about, numeric, fields)).double().view(count, n).numpy()


def _log_of(pool: RequestPool) -> PeriodData:
    """The requests as interactions of users who have clicked their histories and have passed nothing."""
    count, n = pool.items.shape
    length = pool.histories.shape[1]
    return PeriodData(
        user=torch.zeros(count * n, dtype=torch.int32),
        item=torch.from_numpy(pool.items.reshape(-1).astype(np.int32)),
        history=torch.from_numpy(np.repeat(pool.histories, n, 0).reshape(-1).astype(np.int32)),
        offsets=torch.arange(count * n + 1) * length,
        label=torch.zeros(count * n),
        recent=torch.tensor([[length, 10, length]], dtype=torch.int32).repeat(count * n, 1),
        users=1,
        items=1 + int(max(pool.items.max(), pool.histories.max())),
    )


def save_model(folder: Path, params: Params, workload: ServingWorkload) -> None:
    """Leave the model and the histories where the other servers find them."""
    tensors = {**params, "users": torch.from_numpy(workload.users), "histories": torch.from_numpy(workload.histories)}
    save_file(tensors, folder / "model.safetensors")


def load_model(folder: Path) -> Params:
    """What `save_model` left: the parameters, and "users" and "histories" beside them."""
    return load_file(folder / "model.safetensors")


def _distinct(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    return 1 + rng.choice(rows, count, replace=False)
