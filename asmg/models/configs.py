"""Configurations of the base models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from asmg.layout import DIM, HIDDEN

__all__ = ["EmbeddingMLPConfig", "MatrixFactorizationConfig", "ModelConfig", "config_from_json", "default_config"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingMLPConfig:
    """Shape of Embedding&MLP."""

    dim: int = 8
    """Width of every embedding."""
    hidden: tuple[int, ...] = (12, 6)
    """Widths of the MLP's hidden layers."""
    categories: bool = False
    """Whether an item's vector is its own embedding followed by the mean of its categories' embeddings."""
    numeric: int = 0
    """S, the number of numeric inputs (`asmg.batch.PeriodData.numeric`)."""
    dot: bool = False
    """Whether weighted dot products of user and item, and of history and item, are added to the logit."""
    fields: bool = False
    """Whether it reads fields of the context, the user and the item (`asmg.field_columns`)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected positive widths; received dim={self.dim}, hidden={self.hidden}")
        if self.numeric < 0:
            raise ValueError(f"numeric: expected at least 0; received {self.numeric}")

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values.

        `numeric`, `dot` and `fields` are left out when zero or false, so that the result equals what releases without
        them have stored.
        """
        values = asdict(self) | {"hidden": list(self.hidden)}
        return {name: value for name, value in values.items() if value or name not in ("numeric", "dot", "fields")}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "EmbeddingMLPConfig":
        """The inverse of `to_json`."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})  # type: ignore[arg-type] # checked by __post_init__


def default_config(*, categories: bool, numeric: int, fields: bool = False) -> EmbeddingMLPConfig:
    """The default shape of the base model, in the service and in experiments.

    Args:
        categories: whether the items have categories.
        numeric: S, the number of numeric inputs.
        fields: whether the model reads fields.
    """
    return EmbeddingMLPConfig(dim=DIM, hidden=HIDDEN, categories=categories, numeric=numeric, dot=True, fields=fields)


@dataclass(frozen=True, kw_only=True)
class MatrixFactorizationConfig:
    """Shape of a biased matrix factorization."""

    dim: int = 8
    """Length of a vector, without its bias."""
    categories: bool = False
    """Whether the mean of an item's category rows is added to its row."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1; received {self.dim}")

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "MatrixFactorizationConfig":
        """The inverse of `to_json`."""
        return cls(**values)  # type: ignore[arg-type] # checked by __post_init__


ModelConfig = EmbeddingMLPConfig | MatrixFactorizationConfig
"""Configuration of any base model."""


def config_from_json(values: Mapping[str, object]) -> ModelConfig:
    """The inverse of `to_json` of either configuration."""
    kind = MatrixFactorizationConfig if "hidden" not in values else EmbeddingMLPConfig
    return kind.from_json(values)
