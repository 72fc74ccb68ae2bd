"""The training stages, which the update method names.

A stage's note holds the digests of the training state, so a note is all that the next stage, or another worker, needs.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from asmg.progressive import stage_rng
from service.use_cases.update.checkpoints import Checkpoints, Parts
from service.use_cases.update.context import Progress, UpdateContext, UpdateStart

__all__ = ["TrainNote", "train"]


@dataclass(frozen=True)
class TrainNote:
    """Result of a training stage."""

    parts: Parts
    """The training state."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"state": dict(self.parts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], /) -> Self:
        """The inverse of `to_json`."""
        return cls(values["state"])


async def train(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    data_digest: str,
    stage: str,
    before: TrainNote | None,
    progress: Progress,
) -> TrainNote:
    """Run one stage of the update method.

    Args:
        context: holds the method.
        checkpoints: of this update.
        start: names the period, which the stage's randomness follows from.
        data_digest: the prepared period.
        stage: one of the method's `stages`.
        before: the note of the stage before; None for the first, which continues the state of the head.
        progress: told of each step.
    """
    rng = stage_rng(context.settings.seed, start.period, stage)
    data = await checkpoints.read_data(data_digest)
    state = await checkpoints.read_state(before.parts if before else None)
    trained = await asyncio.to_thread(context.team.run_stage, stage, state, data, rng=rng, progress=progress)
    return TrainNote(await checkpoints.write_state(trained))
