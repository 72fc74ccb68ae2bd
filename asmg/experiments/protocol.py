"""The protocol of an experiment: which periods are for pretraining, updates and tests, and the base model."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from asmg.datasets.prepared import PreparedLog
from asmg.experiments.periods import Known, Periods, cut_periods, with_numbers, with_statistics
from asmg.models import EmbeddingMLPConfig, default_config
from asmg.statistics import NAMES

__all__ = ["Protocol", "Settings"]

Settings = Literal["default", "paper"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The paper's protocol: pretrain on the first periods, update on each of the others, test on the last."""

    periods: int = 31
    """Number of equal periods into which the log is cut."""
    pretrain: int = 10
    """Number of periods for pretraining; the AUC on the one after them decides the number of passes."""
    test_from: int = 24
    """First update step of the test: the model after it is scored on the following period."""
    settings: Settings = "default"
    """Our settings ("default"), or those of the paper's authors ("paper")."""
    categories: bool = False
    """Whether items have their categories."""
    statistics: bool | None = None
    """Whether the base model reads statistics; None: only with our settings."""
    fields: bool = False
    """Whether methods read the fields of the log, including hour and weekday."""
    dropped: tuple[str, ...] = ()
    """Names of statistics (`asmg.statistics.NAMES`) that every method reads as zeros, to measure what each
    contributes."""
    dim: int | None = None
    """Width of the base model's embeddings; None for that of the settings."""
    hidden: tuple[int, ...] | None = None
    """Widths of its hidden layers; None for those of the settings."""
    dot: bool | None = None
    """Whether it has the dot products; None for the choice of the settings."""

    def __post_init__(self) -> None:
        if self.settings not in ("default", "paper"):
            raise ValueError(f"settings: expected default or paper; received {self.settings!r}")
        if self.pretrain < 1:
            raise ValueError(f"pretrain: expected at least 1; received {self.pretrain}")
        for name in self.dropped:
            if name not in NAMES:
                raise ValueError(f"dropped: expected some of {', '.join(NAMES)}; received {name!r}")
        if not self.pretrain < self.test_from < self.periods:
            raise ValueError(
                "expected pretrain < test_from < periods; "
                f"received pretrain {self.pretrain}, test_from {self.test_from}, periods {self.periods}"
            )
        _ = self.model  # checks the widths

    @property
    def steps(self) -> range:
        """The update steps; the last period is only scored."""
        return range(self.pretrain + 1, self.periods)

    @property
    def reads_statistics(self) -> bool:
        """Whether the base model reads statistics."""
        return self.settings == "default" if self.statistics is None else self.statistics

    @property
    def dropped_columns(self) -> list[int]:
        """Column numbers of `dropped`."""
        return [NAMES.index(name) for name in self.dropped]

    @property
    def model(self) -> EmbeddingMLPConfig:
        """Configuration of the base model."""
        numeric = len(NAMES) if self.reads_statistics else 0
        shape = default_config if self.settings == "default" else EmbeddingMLPConfig
        asked = {"dim": self.dim, "hidden": self.hidden, "dot": self.dot}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(shape(categories=self.categories, numeric=numeric), fields=self.fields, **changes)

    def cut(self, log: PreparedLog) -> Periods:
        """Cut a log into periods with the inputs that the base model reads."""
        known: Known = "all" if self.settings == "paper" else "so_far"
        periods = cut_periods(log, self.periods, known=known, categories=self.categories, fields=self.fields)
        return with_statistics(periods, self.dropped_columns) if self.reads_statistics else with_numbers(periods)
