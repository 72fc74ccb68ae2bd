"""Update methods, one file each, and the names by which settings and experiments call them."""

from collections.abc import Callable
from typing import Any

from asmg.models import EmbeddingMLPConfig
from asmg.updaters.asmg import AsmgConfig, AsmgGru
from asmg.updaters.base import Updater
from asmg.updaters.iu import IncrementalUpdate

__all__ = ["UPDATERS", "build_updater"]

UPDATERS: dict[str, Callable[[EmbeddingMLPConfig], Updater[Any]]] = {
    "iu": IncrementalUpdate,
    "asmg-gru-multi": AsmgGru,
    "asmg-gru-single": lambda model: AsmgGru(model, AsmgConfig(loss_weights="last")),
    "asmg-gru-unif": lambda model: AsmgGru(model, AsmgConfig(loss_weights="uniform")),
    "asmg-gru-zero": lambda model: AsmgGru(model, AsmgConfig(carry_hidden=False)),
}
"""Name → the method with its default configuration on a base model."""


def build_updater(name: str, model: EmbeddingMLPConfig) -> Updater[Any]:
    """The update method of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in UPDATERS:
        raise ValueError(f"updater: expected one of {', '.join(UPDATERS)}; received {name!r}")
    return UPDATERS[name](model)
