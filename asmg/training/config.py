"""Settings of the training of a base model."""

from dataclasses import dataclass
from typing import Any, Literal

from asmg.rounding import check_bits

__all__ = ["TrainingConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the base model is trained."""

    lr: float = 3e-3
    """Adam's step size."""
    batch_size: int | None = None
    """Interactions per batch; None for a size between 64 and 256 that gives 1,000 steps per pass, because a small
    period in large batches would hardly change the model."""
    epochs: int = 1
    """Passes over a period."""
    most_epochs: int | None = None
    """Maximum passes over a period; their number is chosen by the loss on its newest part (`holdout`), starting from
    `epochs`. None for always `epochs`. See `asmg.base_training.BaseTraining`."""
    first_epochs: int = 8
    """Maximum passes over the first period, or over the periods of pretraining."""
    first_lr: float | None = None
    """Adam's step size in the first period and in pretraining; None for `lr`."""
    holdout: float = 0.1
    """Newest fraction, in [0, 1), of the first period (with `most_epochs`, of every period) whose loss decides the
    number of passes; it is learned afterwards."""
    cold_rate: float = 0.03
    """Probability, in [0, 1), that an id is read as the cold row throughout a batch (id dropout). With numeric inputs
    about the user also the probability that an interaction is learned as one of an unknown user, and that it is learned
    as one of a known user whose past is unavailable."""
    neutral_rate: float = 0.1
    """Probability, in [0, 1), that an interaction is learned with its training-only fields neutral, as in
    predictions."""
    restless: bool = False
    """Whether every period also moves the rows that it does not read but that momentum still moves, as dense Adam does.
    Otherwise such a row keeps its place until it is learned from again, and first makes up for the moves it missed."""
    moment_bits: int | None = 7
    """Bits of mantissa, 0 to 22, to which the moments of Adam are rounded at the end of a period, of the rows that it
    learned and of the MLP (`asmg.rounding`), so that they take less than half of the bytes; None for all 23."""
    initial: Literal["cold", "glorot"] = "cold"
    """Initial tables: "cold", rows near the cold row; "glorot", Glorot-uniform as in the authors' release, which
    requires that no period brings ids that the first one does not have."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.epochs > 0 and self.first_epochs > 0):
            raise ValueError(f"training: expected positive lr, epochs, first_epochs; received {self}")
        if self.most_epochs is not None and not (self.most_epochs >= self.epochs and self.holdout > 0):
            raise ValueError(
                f"most_epochs: expected at least epochs, {self.epochs}, and a holdout above 0, or None; "
                f"received {self.most_epochs} with holdout {self.holdout}"
            )
        if self.first_lr is not None and not self.first_lr > 0:
            raise ValueError(f"first_lr: expected a positive number or None; received {self.first_lr}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, or None; received {self.batch_size}")
        for name in ("holdout", "cold_rate", "neutral_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1); received {getattr(self, name)}")
        check_bits("moment_bits", self.moment_bits)
        if self.initial not in ("cold", "glorot"):
            raise ValueError(f"initial: expected cold or glorot; received {self.initial!r}")

    @classmethod
    def reference(cls, **changes: Any) -> "TrainingConfig":
        """The authors' settings (methods.md, sections 0 to 2)."""
        settings: dict[str, Any] = {"lr": 1e-3, "batch_size": 256, "first_epochs": 10, "holdout": 0.0, "cold_rate": 0.0}
        settings |= {"initial": "glorot", "restless": True, "moment_bits": None}
        return cls(**{**settings, **changes})

    def batch(self, events: int) -> int:
        """Batch size for a pass over `events` interactions."""
        return max(64, min(256, events // 1_000)) if self.batch_size is None else self.batch_size
