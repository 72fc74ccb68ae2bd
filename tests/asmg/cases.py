"""Every update method on small base models: what the contract suite, and the tests of single methods, run on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint
from asmg.models import EmbeddingMLPConfig, table_sizes
from asmg.statistics import NAMES, StatisticsConfig
from asmg.training import predict_logits
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.base import Updater
from tests.asmg.support import made_once, random_period, torch_rng, unrounded

Parts = dict[str, bytes]

# Wide enough not to start with every ReLU closed: all rows start as the cold row, so a unit is open for all or none.
SMALL = EmbeddingMLPConfig(dim=3, hidden=(8, 6))
SMALL_CATEGORIES = replace(SMALL, categories=True)


@dataclass(frozen=True)
class Case:
    """An update method on a small base model, with or without categories."""

    updater: str
    config: EmbeddingMLPConfig
    reference: bool = False
    """With the authors' settings: their tables never grow."""
    statistics: bool = False
    """Whether the numeric inputs are statistics, that the method counts itself."""
    rounds: bool = True
    """Whether the states are rounded as the settings say."""

    def build(self) -> Updater[Any]:
        statistics = StatisticsConfig() if self.statistics else None
        updater = build_updater(self.updater, self.config, reference=self.reference, statistics=statistics)
        return updater if self.rounds else unrounded(updater)

    @made_once
    def period(self, t: int, n: int = 300, **changes: Any) -> PeriodData:
        """The t-th period of a stream in which the tables grow. Its rows are the same with and without categories,
        numeric inputs and fields."""
        size = 6 if self.reference else t
        items = 9 + 2 * size
        more: dict[str, Any] = {"categories": 2 + items // 3} if self.config.categories else {}
        more |= {"numeric": 0 if self.statistics else self.config.numeric, "fields": self.config.fields}
        data = random_period(1000 + t, n, **({"users": 6 + size, "items": items} | more | changes))
        if "labels" in changes:
            return data
        # Odd items and odd users click more, so that there is something to learn.
        odds = (data.item % 2 + data.user % 2).numpy()
        label = np.random.default_rng(t).random(n) < np.array([0.1, 0.5, 0.9])[odds]
        return replace(data, label=torch.tensor(label, dtype=torch.float32))

    def state(self, periods: int) -> Any:
        """The state after so many periods. It is shared by the checks: none may change it."""
        return learned(self, periods)


@cache
def learned(case: Case, periods: int) -> Any:
    updater = case.build()
    if periods == 0:
        return updater.initial(torch_rng(17))
    # The first period is larger, so that the models are past their nearly constant beginnings.
    data = case.period(periods, 900 if periods == 1 else 300)
    return updater.update(learned(case, periods - 1), data, rng=torch_rng(periods))


CASES = {
    name + suffix: Case(name, config)
    for name in UPDATERS
    for suffix, config in (("", SMALL), ("+categories", SMALL_CATEGORIES))
}
REFERENCES = {f"{name}@reference": replace(case, reference=True) for name, case in CASES.items()}
# One of each kind of method has everything that a base model can have instead of categories alone.
for _name, _counts in (("iu", True), ("spmf", False), ("sml", False), ("asmg-gru-multi", True)):
    del CASES[f"{_name}+categories"]
    _config = replace(SMALL_CATEGORIES, numeric=len(NAMES) if _counts else 2, dot=True, fields=True)
    _more = "statistics" if _counts else "numeric"
    CASES[f"{_name}+categories+{_more}+dot+fields"] = Case(_name, _config, statistics=_counts)


def to_bytes(updater: Updater[Any], state: Any) -> Parts:
    return {name: part.to_bytes() for name, part in updater.dump(state).items()}


def from_bytes(updater: Updater[Any], parts: Mapping[str, bytes]) -> Any:
    return updater.load({name: Checkpoint.from_bytes(data) for name, data in parts.items()})


def mapped(value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    """A copy of a state with every named tensor replaced."""
    if isinstance(value, dict):
        return {n: change(n, t) if isinstance(t, Tensor) else mapped(t, change) for n, t in value.items()}
    if isinstance(value, tuple):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, (type, PeriodData)):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def check_served(updater: Updater[Any], state: Any, data: PeriodData) -> None:
    """There are models to serve, finite, of the right shapes and as large as the period's tables."""
    models = updater.serving_models(state)
    assert models
    data = updater.prepare(state, data)
    for params in models.values():
        updater.model.check(params)
        assert table_sizes(params) == {name: data.sizes[name] for name in updater.model.tables}
        assert bool(torch.isfinite(predict_logits(updater.model, params, data)).all())


def stages_of(case: Case, t: int) -> list[Any]:
    """The states during an update, the one after it last."""
    updater, states = case.build(), [case.state(t - 1)]
    for stage in updater.stages:
        states.append(updater.run_stage(stage, states[-1], case.period(t), rng=torch_rng(t)))
    return states[1:]


class Contract:
    """Checks that every update method has to pass."""

    def __init__(self) -> None:
        self.checks: dict[str, Callable[[Case], None]] = {}
        self.with_reference: set[str] = set()

    def check(self, function: Callable[[Case], None]) -> Callable[[Case], None]:
        """Adds a check."""
        self.checks[function.__name__] = function
        return function

    def check_reference_too(self, function: Callable[[Case], None]) -> Callable[[Case], None]:
        """Adds a check that has to hold with the authors' settings as well."""
        self.with_reference.add(function.__name__)
        return self.check(function)

    def params(self) -> list[Any]:
        """Every method × every check, as arguments (case, function)."""
        return [
            pytest.param(case, function, id=f"{name}:{of}")
            for name, case in (CASES | REFERENCES).items()
            for of, function in self.checks.items()
            if not case.reference or of in self.with_reference
        ]
