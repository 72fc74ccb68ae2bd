"""The base models: Embedding&MLP (the paper's) and matrix factorization (SML-MF's), one functional forward pass each.

A model is a configuration and a dictionary of tensors. Its tables are named "user", "item", "category" (with
categories) and "field" (with fields); all other parameters are dense. Training, evaluation and generated parameters go
through `BaseModel.logits`; the kernels and the serving snapshot compute the same and are tested against it.
"""

from asmg.models.base import BaseModel
from asmg.models.configs import (
    EmbeddingMLPConfig,
    MatrixFactorizationConfig,
    ModelConfig,
    config_from_json,
    default_config,
)
from asmg.models.embedding_mlp import EmbeddingMLP
from asmg.models.matrix_factorization import MatrixFactorization
from asmg.models.tables import (
    Params,
    check_tensors,
    field_sums,
    forget,
    grow,
    masked_mean,
    placed,
    read_rows,
    replace_rows,
    table_sizes,
    uniform,
)

__all__ = [
    "BaseModel",
    "EmbeddingMLP",
    "EmbeddingMLPConfig",
    "MatrixFactorization",
    "MatrixFactorizationConfig",
    "ModelConfig",
    "Params",
    "build_model",
    "check_tensors",
    "config_from_json",
    "default_config",
    "field_sums",
    "forget",
    "grow",
    "masked_mean",
    "placed",
    "read_rows",
    "replace_rows",
    "table_sizes",
    "uniform",
]


def build_model(config: ModelConfig) -> EmbeddingMLP | MatrixFactorization:
    """The base model of a configuration."""
    return EmbeddingMLP(config) if isinstance(config, EmbeddingMLPConfig) else MatrixFactorization(config)
