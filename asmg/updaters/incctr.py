"""IncCTR, distillation from one model to the next (Wang et al. 2020, a baseline of the paper; methods.md, section 5).

Θ_t = argmin_Θ (1-λ)·CE(f_Θ(x), y) + λ·CE(f_Θ(x), p) on D_t from Θ_{t-1}, where p = f_{Θ_{t-1}}(x) is the probability
that the last model (the teacher) predicts. Cross-entropy is linear in its target, so this is IU with the target
(1-λ)·y + λ·p instead of the label y.
"""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from asmg.base_state import BaseState
from asmg.batch import PeriodData
from asmg.models import ModelConfig
from asmg.training import Execution, TrainingConfig
from asmg.updaters.base_model import BaseModelUpdater

__all__ = ["IncCTR", "IncCTRConfig"]


@dataclass(frozen=True, kw_only=True)
class IncCTRConfig:
    """Weight of the teacher."""

    distillation: float = 0.1
    """λ, the teacher's share of the loss, in [0, 1); 0 is IU."""

    def __post_init__(self) -> None:
        if not 0 <= self.distillation < 1:
            raise ValueError(f"distillation: expected a number in [0, 1); received {self.distillation}")


class IncCTR(BaseModelUpdater):
    """IncCTR. The first period and pretraining have no teacher; their labels are learned."""

    name = "incctr"

    def __init__(
        self,
        model: ModelConfig,
        config: IncCTRConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(model, training, execution)
        self.config = config or IncCTRConfig()

    @override
    def target(self, state: BaseState, data: PeriodData) -> Tensor:
        """(1-λ)·y + λ·p, float32 [N], p being the probabilities of the state's model; computed once for all passes.

        Ids that the model does not know are scored by its cold rows.
        """
        teacher = self.base.predicted(state.params, data).sigmoid()
        return data.label.lerp(teacher, self.config.distillation)
