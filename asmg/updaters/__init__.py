"""Update methods, one file each, and the names by which settings and experiments call them."""

from collections.abc import Callable
from typing import Any

from asmg.generator import LinearConfig
from asmg.models import EmbeddingMLPConfig
from asmg.training import Execution
from asmg.updaters.asmg import Asmg, AsmgConfig
from asmg.updaters.base import Updater
from asmg.updaters.iu import IncrementalUpdate, TrainingConfig

__all__ = ["UPDATERS", "build_updater"]

Builder = Callable[[str, EmbeddingMLPConfig, bool, Execution | None], Updater[Any]]


def _iu(name, model, reference, execution):
    return IncrementalUpdate(model, TrainingConfig.reference() if reference else None, execution)


def _asmg(**changes: Any) -> Builder:
    def build(name, model, reference, execution):
        make = AsmgConfig.reference if reference else AsmgConfig
        return Asmg(model, make(**changes), TrainingConfig.reference() if reference else None, execution, name=name)

    return build


UPDATERS: dict[str, Builder] = {
    "iu": _iu,
    "asmg-linear": _asmg(generator=LinearConfig(), loss_weights="last"),
    "asmg-gru-multi": _asmg(),
    "asmg-gru-single": _asmg(loss_weights="last"),
    "asmg-gru-full": _asmg(window=None, carry_hidden=False),
    "asmg-gru-zero": _asmg(carry_hidden=False),
    "asmg-gru-unif": _asmg(loss_weights="uniform"),
}
"""Name → the method with its default configuration on a base model."""


def build_updater(
    name: str, model: EmbeddingMLPConfig, *, reference: bool = False, execution: Execution | None = None
) -> Updater[Any]:
    """The update method of this name.

    Args:
        reference: with the authors' settings instead of ours.

    Raises:
        ValueError: there is none.
    """
    if name not in UPDATERS:
        raise ValueError(f"updater: expected one of {', '.join(UPDATERS)}; received {name!r}")
    return UPDATERS[name](name, model, reference, execution)
