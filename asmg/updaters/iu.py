"""IU, the incremental update (the paper's "Conventional Incremental Update"; methods.md, section 2).

Θ_t = argmin_Θ L(Θ | D_t, Θ_{t-1}); see `asmg.base_training`, which the other methods use too.
"""

from typing_extensions import override

from asmg.base_state import BaseState
from asmg.batch import PeriodData
from asmg.updaters.base_model import BaseModelUpdater

__all__ = ["IncrementalUpdate"]


class IncrementalUpdate(BaseModelUpdater):
    """IU."""

    name = "iu"

    @override
    def target(self, state: BaseState, data: PeriodData) -> None:
        """None: IU learns the labels."""
