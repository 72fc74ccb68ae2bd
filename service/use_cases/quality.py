"""What the metrics tell of the model: how it scored, how old it is, how large, and how long the last update took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, Evaluation

__all__ = ["ModelSummary", "model_summary"]


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The champion, the scores of the newest period, and the newest update."""

    scores: Sequence[Evaluation]
    """Of each model, on the newest period that was scored."""
    stage_seconds: Mapping[str, float]
    """By stage: how long it took in the newest update that ended."""
    age_seconds: float = math.nan
    """Since the model that the champion serves was made; a version of the kind `previous` serves an older model."""
    trust: float = math.nan
    """α: the share of the way from the incremental model to the generated one at which the served model is."""
    snapshot_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of the champion's snapshot: `base`, and `overlay` of all deltas."""


async def model_summary(database: Database) -> ModelSummary:
    """What Postgres knows now; without a champion only the scores and the stages."""
    async with database.read() as session:
        scores, stage_seconds = await session.evaluations.newest(), await session.stages.newest_seconds()
        alias = await session.models.alias(AliasName.CHAMPION)
        champion = None if alias is None else await session.models.get(alias.version)
        if champion is None:
            return ModelSummary(scores, stage_seconds)
        sizes = await session.artifacts.sizes(champion.snapshot_files)
        age = await session.models.served_for(champion.version)
    base, *deltas = (sizes.get(digest, 0) for digest in champion.snapshot_files or ("",))
    serving = champion.state.get("serving")
    return ModelSummary(
        scores,
        stage_seconds,
        age_seconds=age,
        trust=math.nan if serving is None else serving["fraction"] if serving["toward"] else 0.0,
        snapshot_bytes={"base": base, "overlay": sum(deltas)},
    )
