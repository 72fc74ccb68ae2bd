"""Parameters as the numpy arrays that the kernels read."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from asmg.batch import TABLES
from asmg.models import BaseModel, EmbeddingMLP

__all__ = ["flat_array", "mlp_widths", "table_arrays"]


def table_arrays(params: Mapping[str, Tensor], model: BaseModel) -> tuple[np.ndarray, ...]:
    """The tables in the order of TABLES as arrays that share memory; one row of zeros for a table that the model
    lacks.
    """
    none = np.zeros((1, model.table_widths["user"]), np.float32)
    return tuple(params[table].numpy() if table in model.tables else none for table in TABLES)


def flat_array(params: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """A copy of the named tensors, flattened and concatenated."""
    return torch.cat([params[n].reshape(-1) for n in names]).numpy()


def mlp_widths(model: BaseModel) -> tuple[np.ndarray, int]:
    """Widths of the MLP's input and layers, and the length of an item's vector."""
    assert isinstance(model, EmbeddingMLP), "the only model with kernels"
    return np.array(model.widths), model.item_width
