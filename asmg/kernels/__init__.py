"""The hot loops of training as machine code (numba): planning an epoch, the GRU, Embedding&MLP, Adam.

Everything here has a plain torch counterpart (`asmg.training`, `asmg.generator`, `asmg.models`), which is what the
formulas are documented in, what runs on a GPU, and what the tests compare with. These versions win because a step of
training touches so little that an eager step is all dispatch: they work through many steps in one call, on buffers that
stay in the processor's cache, in loops over rows or scalars ("lanes") that the compiler can vectorise.

Compiled once and cached on disk (NUMBA_CACHE_DIR says where). The GIL is free meanwhile.
"""

from asmg.kernels.adam import adam_dense, adam_rows, read_rows
from asmg.kernels.common import sigmoid, tanh
from asmg.kernels.embedding_mlp import cross_entropy, item_vectors, item_vectors_backward, predict
from asmg.kernels.gru import gru_backward, gru_backward_dense, gru_forward, gru_forward_dense
from asmg.kernels.plan import Plan, plan_epoch, renumber
from asmg.kernels.steps import base_steps, generator_steps

__all__ = [
    "Plan",
    "adam_dense",
    "adam_rows",
    "base_steps",
    "cross_entropy",
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
    "sigmoid",
    "tanh",
]
