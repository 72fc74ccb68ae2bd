"""What an experiment runs."""

import os
from dataclasses import dataclass, field

from asmg.experiments.methods import METHODS, OWN, SENSITIVE, MethodJob
from asmg.experiments.protocol import Protocol
from asmg.updaters import UPDATERS
from asmg.yardsticks import LIGHTGBM_MISSING, YARDSTICKS, installed_yardsticks

__all__ = ["HIDDEN_SIZES", "LENGTHS", "ExperimentOptions", "cores", "default_methods"]

LENGTHS = (1, 2, 3, 4, 5, 7)
"""Sequence lengths k in the sensitivity figure."""

HIDDEN_SIZES = (1, 2, 4, 8, 16)
"""Hidden sizes in the sensitivity figure."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_methods() -> tuple[str, ...]:
    """All methods, without LightGBM if it is not installed."""
    return (*UPDATERS, *installed_yardsticks())


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What an experiment runs."""

    methods: tuple[str, ...] = field(default_factory=default_methods)
    """Names of `asmg.updaters.UPDATERS` and of `asmg.yardsticks.YARDSTICKS`."""
    seeds: int = 5
    """Number of seeds: 0 … seeds - 1."""
    protocol: Protocol = field(default_factory=Protocol)
    """Periods and settings."""
    sensitivity: bool = True
    """Whether asmg-gru-multi, if it is among the methods, also runs with other sequence lengths and hidden sizes."""
    processes: int | None = None
    """Number of jobs at a time; None for the number of cores."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods: expected at least one; received none")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods: expected some of {', '.join(METHODS)}; received {name!r}")
            if name in YARDSTICKS and name not in installed_yardsticks():
                raise ValueError(f"methods: {LIGHTGBM_MISSING}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: expected each once; received {', '.join(self.methods)}")
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1; received {self.seeds}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: expected at least 1; received {self.processes}")

    @property
    def jobs(self) -> list[MethodJob]:
        """The jobs of each seed."""
        found = [MethodJob(name) for name in self.methods]
        if self.sensitivity and SENSITIVE in self.methods:
            numbers = [("k", k) for k in LENGTHS] + [("hidden", d) for d in HIDDEN_SIZES]
            found += [MethodJob(SENSITIVE, f"{name}={n}") for name, n in numbers if n != OWN[name]]
        return found
