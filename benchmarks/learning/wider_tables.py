"""The same traffic on larger tables: between the rows that it touches there are rows that no batch touches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from asmg.batch import PeriodData


@dataclass(frozen=True)
class Places:
    """The places of the rows of tables in larger tables; the cold row stays the first."""

    rows: dict[str, torch.Tensor]
    """Table name → int64 [rows], distinct, from 0 for the cold row."""
    sizes: dict[str, int]
    """Table name → rows of the larger table."""

    @classmethod
    def draw(cls, sizes: dict[str, int], factor: int, seed: int) -> "Places":
        """Random places in tables `factor` times as large."""
        rng = np.random.default_rng([seed, factor])
        rows = {
            name: torch.from_numpy(np.concatenate([[0], 1 + rng.choice((n - 1) * factor, n - 1, replace=False)]))
            for name, n in sizes.items()
        }
        return cls(rows, {name: 1 + (n - 1) * factor for name, n in sizes.items()})


def spread(periods: Sequence[PeriodData], places: Places) -> list[PeriodData]:
    """The same periods on the larger tables."""
    user, item = (places.rows[name].int() for name in ("user", "item"))
    return [
        replace(
            p, user=user[p.user.long()], item=item[p.item.long()], history=item[p.history.long()],
            users=places.sizes["user"], items=places.sizes["item"],
        )
        for p in periods
    ]  # fmt: skip
