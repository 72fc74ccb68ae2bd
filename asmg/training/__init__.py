"""Training and scoring of a base model: the one loop over mini-batches, and the scoring pass.

On a CPU the steps run as machine code (`asmg.kernels`); on a GPU, or on request, as eager torch, with equal results up
to float32 rounding.
"""

from asmg.training.config import TrainingConfig
from asmg.training.execution import CHUNK, DivergedError, Execution, Progress, finite, part_of
from asmg.training.rows import RowTraining, RowUpdate, commit, cross_entropy, descend, take, trained
from asmg.training.scoring import evaluate, narrow, predict_logits

__all__ = [
    "CHUNK",
    "DivergedError",
    "Execution",
    "Progress",
    "RowTraining",
    "RowUpdate",
    "TrainingConfig",
    "commit",
    "cross_entropy",
    "descend",
    "evaluate",
    "finite",
    "narrow",
    "part_of",
    "predict_logits",
    "take",
    "trained",
]
