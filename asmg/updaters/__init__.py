"""Update methods, one file each, and the names by which settings and experiments call them."""

from collections.abc import Callable, Mapping
from typing import Any

from asmg.checkpoint import Checkpoint
from asmg.generator import LinearConfig
from asmg.models import EmbeddingMLPConfig, MatrixFactorizationConfig, config_from_json
from asmg.statistics import StatisticsConfig
from asmg.training import Execution, TrainingConfig
from asmg.updaters.asmg import Asmg
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.base import Updater
from asmg.updaters.bu import BatchConfig, BatchUpdate
from asmg.updaters.incctr import IncCTR
from asmg.updaters.iu import IncrementalUpdate
from asmg.updaters.sml import Sml, SmlConfig
from asmg.updaters.spmf import ReservoirUpdate, SpmfConfig
from asmg.updaters.with_statistics import PART as STATISTICS
from asmg.updaters.with_statistics import WithStatistics

__all__ = ["UPDATERS", "build_updater", "updater_of_dump"]

Builder = Callable[[str, EmbeddingMLPConfig, bool, Execution | None], Updater[Any]]
"""Builds a method from its name, the base model, whether the authors' settings are used, and the execution."""


def _iu(_: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
    return IncrementalUpdate(model, _training(reference), execution)


def _bu(window: int) -> Builder:
    def build(_: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
        return BatchUpdate(model, BatchConfig(window=window), _training(reference), execution)

    return build


def _spmf(_: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
    return ReservoirUpdate(model, SpmfConfig.reference() if reference else None, _training(reference), execution)


def _incctr(_: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
    return IncCTR(model, None, _training(reference), execution)


def _sml(name: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
    base: EmbeddingMLPConfig | MatrixFactorizationConfig = model
    if name == "sml-mf":
        base = MatrixFactorizationConfig(dim=model.dim, categories=model.categories)
    return Sml.reference(base, execution) if reference else Sml(base, SmlConfig(), None, execution)


def _asmg(**changes: Any) -> Builder:
    def build(name: str, model: EmbeddingMLPConfig, reference: bool, execution: Execution | None) -> Updater[Any]:
        config = AsmgConfig.reference(**changes) if reference else AsmgConfig(**changes)
        return Asmg(model, config, _training(reference), execution, name=name)

    return build


def _training(reference: bool) -> TrainingConfig:
    return TrainingConfig.reference() if reference else TrainingConfig()


UPDATERS: dict[str, Builder] = {
    "iu": _iu,
    "bu-3": _bu(3),
    "bu-5": _bu(5),
    "bu-7": _bu(7),
    "spmf": _spmf,
    "incctr": _incctr,
    "sml": _sml,
    "sml-mf": _sml,
    "asmg-linear": _asmg(generator=LinearConfig(), carry_hidden=False, loss_weights="last"),
    "asmg-gru-single": _asmg(loss_weights="last"),
    "asmg-gru-multi": _asmg(),
    "asmg-gru-full": _asmg(window=None, carry_hidden=False),
    "asmg-gru-zero": _asmg(carry_hidden=False),
    "asmg-gru-unif": _asmg(loss_weights="uniform"),
}
"""Name → builder of the method."""


def build_updater(
    name: str,
    model: EmbeddingMLPConfig,
    *,
    reference: bool = False,
    execution: Execution | None = None,
    statistics: StatisticsConfig | None = None,
) -> Updater[Any]:
    """The update method of this name.

    Args:
        name: one of UPDATERS.
        model: configuration of the base model. SML-MF uses a matrix factorization of the same `dim` instead.
        reference: whether to use the authors' settings instead of ours.
        execution: where to compute.
        statistics: settings of the statistics that are the model's numeric inputs. None if the data already has them,
            or the model has no numeric inputs; ignored for a matrix factorization.

    Raises:
        ValueError: the name is unknown, or the model has another number of numeric inputs.
    """
    if name not in UPDATERS:
        raise ValueError(f"updater: expected one of {', '.join(UPDATERS)}; received {name!r}")
    updater = UPDATERS[name](name, model, reference, execution)
    if statistics is None or not isinstance(updater.model.config, EmbeddingMLPConfig):
        return updater
    return WithStatistics(updater, statistics)


def updater_of_dump(parts: Mapping[str, Checkpoint]) -> Updater[Any]:
    """The method that can load this dump, built from its part "updater".

    Raises:
        ValueError: the method is unknown.
        LookupError: the part is missing or incomplete.
    """
    meta = parts["updater"].meta
    shape, counted = config_from_json(meta["model"]), meta.get(STATISTICS)
    if isinstance(shape, MatrixFactorizationConfig):
        shape = EmbeddingMLPConfig(dim=shape.dim, categories=shape.categories)
    statistics = None if counted is None else StatisticsConfig(**counted)
    return build_updater(meta["updater"], shape, statistics=statistics)
