"""The hot loops of training as machine code (numba): planning an epoch, the GRU, Embedding&MLP, Adam, statistics.

Each kernel for models has a plain torch counterpart (`asmg.training`, `asmg.generator`, `asmg.models`), which documents
the formulas, runs on a GPU, and is compared with in the tests. A training step touches so little data that an eager
step is mostly dispatch. The kernels run many steps in one call, on buffers that stay in the processor's cache, in loops
over rows or scalars ("lanes") that the compiler vectorises.

Code is compiled once and cached on disk (in NUMBA_CACHE_DIR). Kernels release the GIL.
"""

from asmg.kernels.adam import adam_dense, adam_rows, read_rows, settle_rows
from asmg.kernels.base_steps import BaseReads, base_buffers, base_gradients, base_move, base_steps
from asmg.kernels.common import sigmoid, tanh
from asmg.kernels.embedding_mlp import cross_entropy, predict
from asmg.kernels.generator_steps import (
    GeneratorReads,
    generator_buffers,
    generator_gradient,
    generator_gradient_dense,
    generator_move,
    generator_steps,
)
from asmg.kernels.gru import gru_backward, gru_forward
from asmg.kernels.gru_dense import gru_backward_dense, gru_forward_dense
from asmg.kernels.items import item_vectors, item_vectors_backward
from asmg.kernels.plan import Plan, plan_epoch, renumber

__all__ = [
    "BaseReads",
    "GeneratorReads",
    "Plan",
    "adam_dense",
    "adam_rows",
    "base_buffers",
    "base_gradients",
    "base_move",
    "base_steps",
    "cross_entropy",
    "generator_buffers",
    "generator_gradient",
    "generator_gradient_dense",
    "generator_move",
    "generator_steps",
    "gru_backward",
    "gru_backward_dense",
    "gru_forward",
    "gru_forward_dense",
    "item_vectors",
    "item_vectors_backward",
    "plan_epoch",
    "predict",
    "read_rows",
    "renumber",
    "settle_rows",
    "sigmoid",
    "tanh",
]
