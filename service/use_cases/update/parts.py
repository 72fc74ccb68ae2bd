"""The scores of a period by parts of its log, as they are stored. Who reads them needs no training library."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

__all__ = ["FieldParts", "ModelParts", "ScoredParts"]


@dataclass(frozen=True)
class FieldParts:
    """A field by which the log is divided."""

    name: str
    values: Sequence[int]
    """Rows of its most frequent values in the whole field table. A group of all other values follows theirs."""
    edges: Sequence[float] = ()
    """Of a numeric field in buckets: between the buckets."""


@dataclass(frozen=True)
class ModelParts:
    """The scores of one model."""

    curve: Sequence[tuple[int, float, float]]
    """The calibration curve: interactions, mean prediction and click rate, by ascending prediction."""
    groups: Sequence[tuple[float | None, float | None, float | None]]
    """AUC, LogLoss and calibration of each group; the last two are None where it is empty."""
    changed: Sequence[tuple[int, int, int, float, float]] = ()
    """Items of which it says the most different things than the model `previous`: row in the whole item table,
    interactions, clicks, mean prediction of `previous` and its own."""


@dataclass(frozen=True, kw_only=True)
class ScoredParts:
    """The scores of all models of a period by parts of its log."""

    rows: int
    """Interactions that are broken down; all of the period, or as many as are drawn of a large one."""
    allocations: Mapping[str, int]
    """Kind → number of the latest allocation of the rows that are named here."""
    sizes: Sequence[tuple[int, int]]
    """Interactions and clicks of each group: users that no model had learned, and the others; items, likewise; the
    values of each field, and its other values."""
    fields: Sequence[FieldParts]
    models: Mapping[str, ModelParts] = field(default_factory=dict)
    """Name of a model → its scores; models whose predictions are not finite have none."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        fields = [FieldParts(**each) for each in values["fields"]]
        models = {name: ModelParts(**each) for name, each in values["models"].items()}
        return cls(**{**values, "fields": fields, "models": models})
