"""Version 0, a constant prior that is served before the first update; and the version that is served now."""

from collections.abc import Sequence

from service.errors import NotReady
from service.serving.canary_share import CanaryShare
from service.serving.prior import prior_snapshot
from service.serving.turns import Canary, Champion
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AliasName, ModelKind, ModelVersion, Takeover

__all__ = ["current_champions", "ensure_prior"]

PRIOR_VERSION = 0
PRIOR_PERIOD = 0
UNKNOWN_CTR = 0.5
"""Click probability of the prior where `prior_ctr` is not set."""
ACTOR = "service"
"""Who makes version 0."""


async def ensure_prior(database: Database, artifacts: ArtifactStore, prior_ctr: float | None) -> None:
    """Create version 0, which predicts `prior_ctr` for everything, unless it exists; 0.5 where `prior_ctr` is None.

    Any number of processes may call it at once; the first one's prior stays for good.
    """
    async with database.read() as session:
        if await session.models.get(PRIOR_VERSION) is not None:
            return
    snapshot = prior_snapshot(UNKNOWN_CTR if prior_ctr is None else prior_ctr)
    digest = await artifacts.put(snapshot, "serving", hot=True)
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        if await work.models.get(PRIOR_VERSION) is not None:
            return
        await work.models.insert(
            ModelVersion(
                version=PRIOR_VERSION,
                period=PRIOR_PERIOD,
                kind=ModelKind.PRIOR,
                parent_version=None,
                serving_digest=digest,
                state={},
                scores={},
                gate={},
                created_by=ACTOR,
            )
        )
        for name in (AliasName.CHAMPION, AliasName.HEAD):
            await work.models.set_alias(name, PRIOR_VERSION, lead_seconds=0, actor=ACTOR, reason="before any update")
        await work.commit()


async def current_champions(database: Database) -> Sequence[Champion]:
    """The version that is served now, and those that take over next, oldest first.

    Raises:
        NotReady: there is no version yet.
    """
    # Not a read session: nobody may be setting a moment while this looks, and its view must begin after that.
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.TAKEOVER)
        turns = await work.takeovers.turns()
    if not turns:
        raise NotReady("there is no model version yet")
    return [
        Champion(turn.version, turn.period, turn.files, turn.active_from, turn.move, _canary(turn)) for turn in turns
    ]


def _canary(turn: Takeover) -> Canary | None:
    """The version beside the champion."""
    of = turn.canary
    return None if of is None else Canary(of.version, of.period, of.files, CanaryShare(of.share, of.salt))
