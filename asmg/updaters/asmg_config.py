"""Settings of ASMG."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from asmg.generator import GeneratorConfig, LinearConfig
from asmg.rounding import check_bits

__all__ = ["AsmgConfig"]


@dataclass(frozen=True, kw_only=True)
class AsmgConfig:
    """Settings of the generator, its training and the trust in it."""

    generator: GeneratorConfig | LinearConfig = field(default_factory=GeneratorConfig)
    """Configuration of the generator; its type selects the generator."""
    window: int | None = 3
    """k, the number of most recent models that the generator reads; None for all ("full")."""
    loss_weights: Literal["linear", "uniform", "last"] = "linear"
    """The weights λ of the periods: linear, j / Σj ("multi"); uniform, 1/k ("unif"); last, the newest alone
    ("single")."""
    carry_hidden: bool = True
    """Whether the window starts from the hidden state of the models before it, or else from zeros ("zero")."""
    lr: float = 3e-2
    """Adam's step size for ω."""
    dense_share: float = 1.0
    """Fraction of `lr`, in (0, 1], for the generator's weights of the MLP, of which each scalar has its own set."""
    batch_size: int = 256
    """Interactions of the newest period per step; the other periods are cut into as many parts."""
    epochs: int = 1
    """Passes over the window's data."""
    average: bool = True
    """Whether ω becomes the average of its values after each step of the last pass, instead of the last value."""
    untouched: Literal["generate", "keep", "plain"] = "plain"
    """What a row gets that the period's training did not read. "generate": a generated row like all others, and its
    hidden state moves on. Otherwise its hidden state stays: "keep", its last generated row; "plain", the row of the
    incremental model, so that only rows of the newest period are corrected."""
    moment_bits: int | None = 5
    """Bits of mantissa, 0 to 22, to which the moments of ω's optimizer are rounded at the end of a period
    (`asmg.rounding`), so that they take a third of the bytes; None for all 23."""
    hidden_bits: int | None = 12
    """Likewise for the hidden states that a period moves on, which then take three fifths of the bytes."""
    blends: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The candidate fractions α ≥ 0, ascending; (1.0,) always serves the generated model."""
    evidence_decay: float = 0.9
    """Weight, in [0, 1], that a fraction's past gain keeps per period."""
    caution: float = 1.0
    """Number of standard errors, ≥ 0, by which a gain must exceed zero to count."""
    full_window: bool = False
    """Whether the generator is first trained when there are k models."""
    skip_first: bool = False
    """Whether the first model (that of pretraining) is left out of the sequence."""

    def __post_init__(self) -> None:
        if not ((self.window is None or self.window > 0) and self.lr > 0 and self.batch_size > 0 and self.epochs > 0):
            raise ValueError(f"asmg: expected positive window, lr, batch_size, epochs; received {self}")
        if not 0 < self.dense_share <= 1:
            raise ValueError(f"dense_share: expected a number in (0, 1]; received {self.dense_share}")
        if self.loss_weights not in ("linear", "uniform", "last"):
            raise ValueError(f"loss_weights: expected linear, uniform or last; received {self.loss_weights!r}")
        if self.untouched not in ("generate", "keep", "plain"):
            raise ValueError(f"untouched: expected generate, keep or plain; received {self.untouched!r}")
        check_bits("moment_bits", self.moment_bits)
        check_bits("hidden_bits", self.hidden_bits)
        if not self.blends or list(self.blends) != sorted(set(self.blends)) or min(self.blends) < 0:
            raise ValueError(f"blends: expected distinct fractions ≥ 0, ascending; received {self.blends}")
        if self.caution < 0:
            raise ValueError(f"caution: expected a number ≥ 0; received {self.caution}")
        if not 0 <= self.evidence_decay <= 1:
            raise ValueError(f"evidence_decay: expected a number in [0, 1]; received {self.evidence_decay}")

        if isinstance(self.generator, LinearConfig):
            if self.generator.window != self.window:
                raise ValueError(f"window: expected the generator's, {self.generator.window}; received {self.window}")
            if self.carry_hidden:
                raise ValueError("carry_hidden: expected False with the linear generator; received True")

    @classmethod
    def reference(cls, **changes: Any) -> "AsmgConfig":
        """The authors' settings (methods.md, sections 6 and 7)."""
        settings: dict[str, Any] = {
            "generator": GeneratorConfig(output="direct"),
            "lr": 1e-2,
            "average": False,
            "untouched": "generate",
            "moment_bits": None,
            "hidden_bits": None,
            "blends": (1.0,),
            "full_window": True,
            "skip_first": True,
        }
        return cls(**{**settings, **changes})

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return asdict(self) | {"blends": list(self.blends)}
