"""Sample negatives for a log that has only positives, and correct the click rate that is learned from them.

The stage `resolve` samples, the stage `publish` corrects.
"""

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asmg.progressive import stage_rng
from service.storage.postgres.database import UnitOfWork
from service.storage.postgres.repositories import EntityKind, PeriodLog

__all__ = ["Sampling", "logit_correction", "sample_negatives"]

METHOD = "uniform over the items known, without those that the user clicked in the period"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How negatives were added to a log; stored in the period's `labels`."""

    method: str = METHOD
    seed: int
    """Seed of the draws; it follows from the installation's seed and the period."""
    per_positive: int
    """Negatives drawn for each positive, unless its user has clicked every item."""
    items: int
    """Number of items that they were drawn from: all that had a row by then, and the log's own."""
    positives: int
    """Number of positives in the log."""
    negatives: int
    """Number of negatives that were added to it."""


async def sample_negatives(
    work: UnitOfWork, period: int, *, per_positive: int, seed: int, evict_after: int | None = None
) -> Sampling | None:
    """Add negatives to the log of a sealed period where it has only positives; None where it has others.

    The same log, items and seed give the same negatives.

    Args:
        work: the transaction to add them in.
        period: number of the period.
        per_positive: negatives for each positive, at least 1.
        seed: seed of the installation.
        evict_after: number of periods after which unseen items are evicted; items that would be evicted now are not
            drawn, so that chance does not keep them. None: no item is ever evicted.
    """
    log = await work.interactions.log(period)
    if not len(log) or not log.labels.all():
        return None
    known, rows = await work.entities.rows(EntityKind.ITEM)
    if evict_after is not None:
        now = max(period, await work.models.newest_period() or 0)
        stale = await work.entities.stale(EntityKind.ITEM, now, evict_after)
        known = await asyncio.to_thread(_without, known, rows, stale)
    own_seed = stage_rng(seed, period, "negatives").initial_seed()
    positives, drawn, items = await asyncio.to_thread(_draw, log, known, per_positive, own_seed)
    stored = await work.interactions.insert_sampled(period, positives, drawn, per_positive)
    return Sampling(seed=own_seed, per_positive=per_positive, items=items, positives=len(log), negatives=stored)


def _without(ids: list[str], rows: NDArray[np.int64], stale: NDArray[np.int64]) -> list[str]:
    """The ids whose row is not one of the stale ones."""
    return [item for item, is_stale in zip(ids, np.isin(rows, stale).tolist(), strict=True) if not is_stale]


def _draw(log: PeriodLog, known: list[str], per_positive: int, seed: int) -> tuple[NDArray[np.int64], list[str], int]:
    """Draw the negatives.

    Returns:
        for each negative the index of its positive in the log; its item; and the number of items drawn from.
    """
    from asmg.datasets.sampling import draw_negatives  # with polars, which updates without sampling do without

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
    """What to add to the logits of a model that has learned a log with sampled negatives.

    With s sampled negatives and p positives the model learns the odds p : s; the odds of the traffic are
    prior : 1 - prior. Adding log(prior / (1 - prior)) - log(p / s) turns the one into the other.

    Args:
        sampling: how negatives were sampled.
        prior_ctr: click rate of the traffic, between 0 and 1.
    """
    return math.log(prior_ctr / (1 - prior_ctr)) - math.log(sampling.positives / sampling.negatives)
