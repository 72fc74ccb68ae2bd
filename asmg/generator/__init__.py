"""The meta generators M_ω: from a sequence of base models to the model to serve.

`GRUGenerator` is the paper's, `LinearGenerator` that of ASMG-Linear. Both treat the base model's scalars in groups:
each table is a group of P = dim positions with one row per id, whose weights are shared by all rows; all scalars of the
MLP together are one group (`DENSE`) of P positions with a single row, each with weights of its own. A hidden state is
[rows, P, d] per group.
"""

from asmg.generator.base import DENSE, Generator, HiddenState
from asmg.generator.configs import GeneratorConfig, LinearConfig
from asmg.generator.gru import GRUGenerator, from_lanes, to_lanes
from asmg.generator.linear import LinearGenerator

__all__ = [
    "DENSE",
    "GRUGenerator",
    "Generator",
    "GeneratorConfig",
    "HiddenState",
    "LinearConfig",
    "LinearGenerator",
    "from_lanes",
    "to_lanes",
]
