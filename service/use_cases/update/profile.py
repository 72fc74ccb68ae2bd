"""The profile of a period, as it is stored. Who reads it needs no training library."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

__all__ = ["EDGES", "Profile"]

EDGES = tuple(-6 + n / 2 for n in range(25))
"""Logits between the bins of a profile's histogram; the first bin is below all of them, the last above."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a period's inputs, and what the served model said of them, are distributed."""

    events: int
    clicks: int
    new_users: float
    """Share of the interactions whose user no model had learned."""
    new_items: float
    """Share of the interactions whose item no model had learned."""
    logits: Sequence[int] | None = None
    """Interactions by the logit that was served, in the bins between `EDGES`; None where the prior was served."""
    logloss: float | None = None
    """Of what was served."""
    constant: float | None = None
    """LogLoss of the period's own click rate."""
    error: float | None = None
    """Standard error of the difference of the two."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(**values)
