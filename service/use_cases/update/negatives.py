"""Negatives for a period whose log says only what was chosen, and what they do to the click rate."""

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asmg.datasets.sampling import draw_negatives
from asmg.progressive import stage_rng
from service.storage.postgres.database import UnitOfWork
from service.storage.postgres.repositories import EntityKind, PeriodLog

__all__ = ["Sampling", "logit_correction", "sample_negatives"]

METHOD = "uniform over the items known, without those that the user clicked in the period"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Negatives that were added to a log; noted in the period's `labels`."""

    method: str = METHOD
    seed: int
    """Of the draws; it follows from the installation's seed and the period."""
    per_positive: int
    """Drawn for each positive whose user had not clicked every item."""
    items: int
    """From which they were drawn: those of closed periods and of the catalogue then, and the log's own."""
    positives: int
    """Of the log."""
    negatives: int
    """Added to it."""


async def sample_negatives(
    work: UnitOfWork, period: int, *, per_positive: int, seed: int, evict_after: int | None = None
) -> Sampling | None:
    """Add negatives to the log of a sealed period, in the transaction given, where it has only positives.

    The same log, items and seed give the same negatives. Items that would be evicted now, after `evict_after` periods,
    are not drawn: chance shall not keep them.
    """
    log = await work.interactions.log(period)
    if not len(log) or not log.labels.all():
        return None
    known, rows = await work.entities.rows(EntityKind.ITEM)
    if evict_after is not None:
        now = max(period, await work.models.newest_period() or 0)
        stale = np.isin(rows, await work.entities.stale(EntityKind.ITEM, now, evict_after))
        known = [item for item, is_stale in zip(known, stale.tolist(), strict=True) if not is_stale]
    own_seed = stage_rng(seed, period, "negatives").initial_seed()
    positives, drawn, items = await asyncio.to_thread(_draw, log, known, per_positive, own_seed)
    stored = await work.interactions.insert_sampled(period, positives, drawn, per_positive)
    return Sampling(seed=own_seed, per_positive=per_positive, items=items, positives=len(log), negatives=stored)


def _draw(log: PeriodLog, known: list[str], per_positive: int, seed: int) -> tuple[NDArray[np.int64], list[str], int]:
    """For each negative the place of its positive in the log and its item; from how many items they were drawn."""
    item_ids = sorted({*known, *log.item_ids})
    number_of = {item: n for n, item in enumerate(item_ids)}
    items = np.fromiter((number_of[item] for item in log.item_ids), np.int64, len(log))
    _, users = np.unique(np.array(log.user_ids, dtype=object), return_inverse=True)
    has_negative, drawn = draw_negatives(
        users.astype(np.int64),
        items,
        np.arange(len(log)),
        len(item_ids),
        per_positive=per_positive,
        whole_log=True,
        rng=np.random.default_rng(seed),
    )
    return np.repeat(np.flatnonzero(has_negative), per_positive), [item_ids[n] for n in drawn.tolist()], len(item_ids)


def logit_correction(sampling: Sampling, prior_ctr: float) -> float:
    """What to add to the logits of a model that has learned such a log, so that it predicts `prior_ctr` on average.

    Of s sampled negatives and p positives the model learns the odds p : s; those of the traffic are
    prior : 1 - prior. log(prior / (1 - prior)) - log(p / s) leads from the one to the other, for every odds alike: it
    says by how much negatives are fewer than in the traffic.
    """
    return math.log(prior_ctr / (1 - prior_ctr)) - math.log(sampling.positives / sampling.negatives)
