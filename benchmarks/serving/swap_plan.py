"""What is published under load: bases of their own, or deltas as a period adds them, and bases written anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.printing import progress
from benchmarks.services import OwnStores
from benchmarks.serving.model import BIAS_STEP, ServedModel
from benchmarks.serving.model_store import Snapshots, StoredSnapshot, store
from benchmarks.serving.options import ServeOptions
from benchmarks.serving.requests import RequestPool, ServingSizes
from service.processes.stop_request import StopRequest

BASES = 4
"""Distinct bases where each version is one; version v is base v % 4."""
CHANGED = 5_000
"""Most users, and most items, that a delta has."""


@dataclass(frozen=True)
class Publication:
    """A version that is published, or the present one that gets another base."""

    version: int
    snapshot: StoredSnapshot
    renewal: bool = False
    """Whether the version was published before."""


@dataclass
class Plan:
    """All that is published, stored already."""

    first: StoredSnapshot
    """Version 1."""
    publications: list[Publication] = field(default_factory=list)
    expected: list[NDArray[np.float64]] = field(default_factory=list)
    """Scores of the requests, [R, n]; version v gives expected[v % len(expected)]."""
    base_bytes: int = 0
    """Size of the largest base."""
    delta_bytes: int = 0
    """Size of the largest delta."""


class Planner:
    """Makes and stores what is published.

    Args:
        stores: of the service.
        sizes: rows of the tables.
        pool: the requests that will be sent.
        options: how many versions, and of which kind.
        stop: ends the work.
    """

    def __init__(
        self, stores: OwnStores, sizes: ServingSizes, pool: RequestPool, options: ServeOptions, stop: StopRequest
    ) -> None:
        self._stores, self._sizes, self._pool, self._options, self._stop = stores, sizes, pool, options, stop
        self._snapshots = Snapshots(sizes, stores.folder)
        self._last = options.versions + 1

    def bases(self) -> Plan:
        """Each version is a base of its own."""
        stored, expected, size = [], [], 0
        for number in range(BASES):
            self._stop.check()
            progress(f"swap: making snapshot {number + 1} of {BASES}")
            model = ServedModel.random(self._sizes, BASES * self._options.seed + number)
            expected.append(model.scores(self._pool))
            snapshot, size = self._base(model, size)
            stored.append(snapshot)
        publications = [Publication(version, stored[version % BASES]) for version in range(2, self._last + 1)]
        return Plan(stored[1 % BASES], publications, expected, size)

    def deltas(self) -> Plan:
        """Each version adds a delta; after `options.deltas` of them the newest gets a base with all of it."""
        rng = np.random.default_rng([self._options.seed, 5])
        model = ServedModel.random(self._sizes, self._options.seed)
        scores = model.scores(self._pool)
        snapshot, size = self._base(model, 0)
        plan = Plan(snapshot, expected=[np.full_like(scores, np.nan), scores], base_bytes=size)  # there is no version 0
        for version in range(2, self._last + 1):
            self._stop.check()
            progress(f"swap: making version {version} of {self._last}")
            changed = _some_rows(self._pool, self._sizes, rng)
            model = _changed(model, changed, rng, version)
            plan.expected.append(model.scores(self._pool))
            delta = self._snapshots.make_delta(model, changed)
            plan.delta_bytes = max(plan.delta_bytes, delta.size)
            snapshot += store(self._stores, delta, here=not self._options.fetch)
            plan.publications.append(Publication(version, snapshot))
            if (version - 1) % self._options.deltas == 0:
                snapshot, plan.base_bytes = self._base(model, plan.base_bytes)
                plan.publications.append(Publication(version, snapshot, renewal=True))
        return plan

    def _base(self, model: ServedModel, largest: int) -> tuple[StoredSnapshot, int]:
        """The snapshot of a model, stored; and the size of the largest one."""
        file = self._snapshots.make(model)
        return store(self._stores, file, here=not self._options.fetch), max(largest, file.size)


def _some_rows(pool: RequestPool, sizes: ServingSizes, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Rows of users and items, half of them of those that requests ask for where there are so many."""
    found = {}
    for name, count, asked in (
        ("user", sizes.users, np.unique(pool.users)),
        ("item", sizes.items, np.union1d(pool.items, pool.histories)),
    ):
        most = min(CHANGED, count // 2)
        own = rng.choice(asked, min(most // 2, len(asked)), replace=False)
        others = 1 + rng.choice(count, most - len(own), replace=False)
        found[name] = np.union1d(own, others)
    return found


def _changed(
    model: ServedModel, changed: Mapping[str, NDArray[np.int64]], rng: np.random.Generator, version: int
) -> ServedModel:
    """The model with other numbers in these rows, and another bias; its tables are changed in place."""
    for name, rows in changed.items():
        table = model.params[name]
        table[torch.from_numpy(rows)] = torch.from_numpy(rng.standard_normal((len(rows), table.shape[1]), np.float32))
    shift = BIAS_STEP * (1 if version % 4 else -3)
    return replace(model, params=model.shape.shifted(model.params, shift))
