"""What is kept of a period for the guardrails: a profile of all interactions, and some of them.

Later model versions are scored on the interactions that were kept (`service.use_cases.guardrails`). They were drawn
uniformly, and are as the models read them, with their histories and labels.
"""

import asyncio
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import dump_data
from asmg.progressive import stage_rng
from service.storage.postgres.repositories import PeriodSample
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import UpdateContext, UpdateStart
from service.use_cases.update.prepare import PrepareNote
from service.use_cases.update.profile import EDGES, Profile
from service.use_cases.update.trial import Trial

__all__ = ["keep_sample", "profile_of"]


def profile_of(
    data: PeriodData, new_user: NDArray[np.bool_], new_item: NDArray[np.bool_], logits: Tensor | None
) -> Profile:
    """The profile of a period.

    Args:
        data: the N interactions.
        new_user: whether no model had learned the user of each, [N].
        new_item: whether no model had learned the item of each, [N].
        logits: what the served model says of each, [N]; None where that is the prior.
    """
    bins = None
    if logits is not None:
        places = torch.bucketize(logits.double(), torch.tensor(EDGES, dtype=torch.float64))
        bins = torch.bincount(places, minlength=len(EDGES) + 1).tolist()
    return Profile(
        events=len(data),
        clicks=int(data.label.sum()),
        new_users=float(new_user.mean()),
        new_items=float(new_item.mean()),
        logits=bins,
    )


async def keep_sample(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    prepared: PrepareNote,
    said: tuple[int, Tensor] | None,
    trial: Trial,
) -> PeriodSample | None:
    """Draw a sample of the period and store its artifact; None where none is to be kept.

    Args:
        context: its settings say how many interactions are kept.
        checkpoints: has the period.
        start: names it.
        prepared: its note.
        said: the version that is served, and what it says of each interaction; None where that is the prior.
        trial: compares that with a constant.
    """
    size = context.settings.sample_events
    if not size:
        return None
    data = await checkpoints.read_data(prepared.data)
    rows = checkpoints.selection.rows
    new = [
        checkpoints.is_new(table, rows[table][local.numpy()])
        for table, local in (("user", data.user), ("item", data.item))
    ]
    profile = await asyncio.to_thread(profile_of, data, new[0], new[1], said and said[1])
    if (served := trial.served) is not None:
        values = served.to_json()
        profile = replace(profile, logloss=values["logloss"], constant=values["other"], error=values["error"])
    kept = PeriodSample(
        period=start.period,
        profile=profile.to_json(),
        digest=None,
        served_version=None,
        served_logits=None,
        allocations=prepared.allocations,
    )
    if said is None:
        return kept
    rng = stage_rng(context.settings.seed, start.period, "sample")
    drawn = torch.randperm(len(data), generator=rng)[:size].sort().values
    # A version that scores them adds its own statistics, and its own scale of the numbers.
    sample = replace(data.select(drawn), numeric=None, nobody=None)
    whole = await asyncio.to_thread(lambda: dump_data(checkpoints.selection.restored(sample)))
    return replace(
        kept,
        digest=await checkpoints.files.put(whole),
        served_version=said[0],
        served_logits=said[1][drawn].float().numpy().tobytes(),
    )
