"""What both implementations of the forward pass have in common: arguments, result, and the bounds of a score."""

from typing import Protocol

from asmg.kernels.common import Floats, Rows
from service.serving.fields import FieldValues
from service.serving.id_hashes import Hashes

__all__ = ["EPSILON", "Forward"]

EPSILON = 1e-6
"""Every score lies in [ε, 1 − ε], so that whoever takes its logarithm gets a finite number."""


class Forward(Protocol):
    """Computes the scores of one snapshot."""

    def __call__(
        self, hashes: Hashes, history: Hashes, recent: Rows, values: FieldValues, scores: Floats, cold: Rows, /
    ) -> tuple[int, bool]:
        """Score N candidates for one user.

        Args:
            hashes: of the ids of the user and of the candidates, uint64 [1 + N].
            history: hashes of the items that the user clicked, newest first, uint64 [H].
            recent: what the user did of late, int32 [3] (`asmg.kernels.statistics.user_statistics`). Only models with
                statistics read it.
            values: of the fields of the request. Only models with fields read them.
            scores: receives the click probabilities, float32 [N].
            cold: receives the positions of the unknown candidates, ascending, int32 [N].

        Returns:
            the number of unknown candidates, and whether the user is unknown.
        """
