"""The methods and variants that an experiment can run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from asmg.experiments.protocol import Protocol
from asmg.generator import GeneratorConfig
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.asmg import Asmg
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.base import Updater
from asmg.yardsticks import YARDSTICKS

__all__ = ["BASE", "METHODS", "OWN", "SENSITIVE", "VARIANTS", "MethodJob"]

METHODS = (*UPDATERS, *YARDSTICKS)
"""Names of all methods: update methods and yardsticks."""

BASE = "iu"
"""The method with which the others are compared."""

SENSITIVE = "asmg-gru-multi"
"""The method of the sensitivity figures."""

OWN: dict[str, int] = {"k": AsmgConfig().window or 0, "hidden": GeneratorConfig().hidden}
"""Sequence length k and hidden size of `SENSITIVE` without a variant."""

VARIANTS: dict[str, Callable[[str], Any]] = {
    "k": int,
    "hidden": int,
    "lr": float,
    "dense_share": float,
    "epochs": int,
    "caution": float,
}
"""Setting of the generator that a variant can change → type of its value. "k" is `AsmgConfig.window`, "hidden" the
GRUs' hidden size, the others are settings of `AsmgConfig`."""


@dataclass(frozen=True, order=True)
class MethodJob:
    """A method, or a variant of an ASMG-GRU method with another setting of its generator."""

    method: str
    """One of METHODS."""
    variant: str = ""
    """Empty, or a setting of the generator (`VARIANTS`) such as "k=5" or "lr=0.01"."""

    def __str__(self) -> str:
        return f"{self.method} {self.variant}".rstrip()

    @property
    def is_yardstick(self) -> bool:
        """Whether the method is a yardstick, which needs no chain."""
        return self.method in YARDSTICKS

    def build(self, protocol: Protocol) -> Updater[Any]:
        """Build the method with the protocol's base model and settings.

        Raises:
            ValueError: the method or the variant is unknown.
        """
        updater = build_updater(self.method, protocol.model, reference=protocol.settings == "paper")
        if not self.variant:
            return updater
        name, _, number = self.variant.partition("=")
        shape = updater.config.generator if isinstance(updater, Asmg) else None
        try:
            value = VARIANTS[name](number)
            if not isinstance(shape, GeneratorConfig):
                raise ValueError
        except (KeyError, ValueError):
            known = ", ".join(f"{known}=…" for known in VARIANTS)
            raise ValueError(f"variant: expected one of {known} of an ASMG-GRU method; received {self}") from None
        assert isinstance(updater, Asmg)
        if name == "hidden":
            changes: dict[str, Any] = {"generator": replace(shape, hidden=value)}
        else:
            changes = {"window" if name == "k" else name: value}
        config = replace(updater.config, **changes)
        return Asmg(updater.base.model.config, config, updater.base.config, updater.execution, name=updater.name)
