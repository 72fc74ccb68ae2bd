"""Configurations of the generators."""

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["GeneratorConfig", "LinearConfig"]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Configuration of the GRU generator."""

    hidden: int = 4
    """Hidden size d of every GRU, ≥ 1."""
    output: Literal["residual", "direct"] = "residual"
    """Whether the input parameter is added to the output ("residual") or not ("direct")."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: expected at least 1; received {self.hidden}")
        if self.output not in ("residual", "direct"):
            raise ValueError(f"output: expected 'residual' or 'direct'; received {self.output!r}")

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Configuration of the linear generator."""

    window: int = 3
    """k, the maximum number of models that it combines, ≥ 1."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window: expected at least 1; received {self.window}")

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return asdict(self)
