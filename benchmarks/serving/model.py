"""The measured model: seeded random parameters, statistics and fields where wanted, and the scores that it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.batch import PeriodData
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, default_config
from asmg.numbers import NumberMoments
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from benchmarks.serving.fields import ServingFields
from benchmarks.serving.requests import RequestPool, ServingSizes

PLAIN = EmbeddingMLP(EmbeddingMLPConfig())
"""Embedding&MLP with dims 8 and an MLP 24-12-6-1, without categories."""
WITH_STATISTICS = EmbeddingMLP(default_config(categories=False, numeric=len(NAMES)))
"""The shape that is served by default: the same with statistics and dot products."""
WITH_FIELDS = EmbeddingMLP(default_config(categories=False, numeric=len(NAMES), fields=True))
"""The default shape with fields."""

NEIGHBOURS = 47
"""Items that were clicked beside each item: as many as DIGINETICA's items have on average."""
BIAS_STEP = 0.3
"""Difference between the last biases of models with successive seeds, so that any score tells the models apart."""


@dataclass(frozen=True)
class ServedModel:
    """A model with all that it reads."""

    params: Params
    statistics: Statistics | None = None
    fields: ServingFields | None = None

    @property
    def shape(self) -> EmbeddingMLP:
        """Its layers."""
        return _shape(self.statistics, self.fields)

    @classmethod
    def random(
        cls,
        sizes: ServingSizes,
        seed: int,
        *,
        statistics: Statistics | None = None,
        fields: ServingFields | None = None,
    ) -> "ServedModel":
        """A model whose scores tell its rows apart; all numbers of another seed differ.

        Args:
            sizes: rows of the tables.
            seed: of the parameters.
            statistics: what the model reads beside the embeddings; None for a model without statistics.
            fields: likewise; they need statistics.
        """
        shape, rng = _shape(statistics, fields), torch.Generator().manual_seed(seed)
        params = shape.initial(rng)
        params["user"] = torch.randn(sizes.users + 1, shape.config.dim, generator=rng)
        params["item"] = torch.randn(sizes.items + 1, shape.config.dim, generator=rng)
        if fields is not None:
            params["field"] = 0.3 * torch.randn(fields.size, shape.config.dim, generator=rng)
        return cls(shape.shifted(params, BIAS_STEP * (seed % 4 - 1.5)), statistics, fields)

    @torch.inference_mode()
    def scores(self, pool: RequestPool, contexts: Sequence[Mapping[str, Any]] = ()) -> NDArray[np.float64]:
        """The scores [R, n] of the plain torch forward pass.

        Args:
            pool: the requests.
            contexts: of each request, for a model with fields.
        """
        params, (count, n) = self.params, pool.items.shape
        pooled = params["item"][torch.from_numpy(pool.histories)].mean(1)
        user = params["user"][torch.from_numpy(pool.users)]
        rows = torch.from_numpy(pool.items.reshape(-1))
        read = (user.repeat_interleave(n, 0), pooled.repeat_interleave(n, 0), params["item"][rows])
        numeric = None if self.statistics is None else self.statistics.inputs(_log_of(pool))
        sums = None if self.fields is None else self.fields.sums(params["field"], contexts, pool.users, pool.items)
        return torch.sigmoid(self.shape.head(params, *read, numeric, sums)).double().view(count, n).numpy()


def _shape(statistics: Statistics | None, fields: ServingFields | None) -> EmbeddingMLP:
    return PLAIN if statistics is None else WITH_STATISTICS if fields is None else WITH_FIELDS


def random_statistics(sizes: ServingSizes, seed: int, neighbours: int = NEIGHBOURS) -> Statistics:
    """Statistics of one period in which every item was clicked beside `neighbours` random others."""
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


def _log_of(pool: RequestPool) -> PeriodData:
    """The requests as interactions of users whose only interactions were the clicks of their histories."""
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
