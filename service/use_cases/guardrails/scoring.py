"""Score model versions on the interactions that were kept of periods."""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import torch

from asmg import metrics
from asmg.batch import PeriodData
from asmg.checkpoint import load_data
from asmg.layers import Selection
from asmg.training import predict_logits
from service.errors import ModelNotFound, NotReady
from service.storage.artifacts.state_files import StateFiles
from service.storage.postgres.repositories import ModelVersion, PeriodSample, SampleScore
from service.use_cases.update.checkpoints import rows_of_nobody
from service.use_cases.update.context import UpdateContext
from service.use_cases.update.served import ServedLayers, read_served
from service.use_cases.update.trial import compare

__all__ = ["score_waiting"]

logger = logging.getLogger(__name__)


async def score_waiting(context: UpdateContext) -> tuple[int, Sequence[SampleScore]] | None:
    """Score one version on all samples for which somebody waits.

    Each sample is read as the version would have read it, with the statistics that it was served with. Users and items
    that have lost their rows since are strangers in it.

    Returns:
        the version and its scores, which are to be stored; None where nothing waits.
    """
    async with context.database.read() as session:
        found = await session.samples.waiting()
        if found is None:
            return None
        version, periods = found
        model = await session.models.get(version)
        samples = {sample.period: sample for sample in await session.samples.list(periods[0], periods[-1])}
    if model is None:
        raise ModelNotFound(version)
    files = StateFiles(context.artifacts, context.settings.state_dir)
    served = await _read(context, files, model)
    scores = []
    for period in periods:
        scores.append(await _score(context, files, model, served, samples[period]))
        context.beat()
    return version, scores


async def _read(context: UpdateContext, files: StateFiles, model: ModelVersion) -> ServedLayers | str:
    """What a version serves, or why it cannot be read. No update waits for a version that is damaged."""
    if "serving" not in model.state:
        return "the version serves the prior" if model.version == 0 else "the version is too old: its layers are gone"
    try:
        return await read_served(context, files, model.state)
    except (NotReady, OSError):
        raise
    except Exception as error:
        logger.exception("version %d cannot be read", model.version)
        return f"{type(error).__name__}: {error}"


async def _score(
    context: UpdateContext, files: StateFiles, model: ModelVersion, served: ServedLayers | str, sample: PeriodSample
) -> SampleScore:
    """What a version says of a sample."""
    if isinstance(served, str):
        failure = served
    elif sample.digest is None or sample.served_logits is None:
        failure = "the interactions of this period are not kept any more"
    else:
        try:
            stored = await files.open(sample.digest, "period-data")
            nobody = await rows_of_nobody(context, sample.allocations)
            gone = {table: torch.from_numpy(rows) for table, rows in nobody.items()}
            return await asyncio.to_thread(
                _compare, model.version, served, sample, load_data(stored).forgotten(gone), sample.served_logits
            )
        except (NotReady, OSError):
            raise
        except Exception as error:  # no update waits for it
            logger.exception("version %d cannot score what was kept of period %d", model.version, sample.period)
            failure = f"{type(error).__name__}: {error}"
    return SampleScore(
        version=model.version,
        period=sample.period,
        events=0,
        auc=None,
        logloss=None,
        served_logloss=None,
        error=None,
        failure=failure,
    )


def _compare(version: int, served: ServedLayers, sample: PeriodSample, data: PeriodData, said: bytes) -> SampleScore:
    """The scores of a version on a sample, beside those of what was served."""
    selection = Selection.of([data])
    local = served.prepared(selection.localised(data), selection)
    logits = predict_logits(served.model, served.excerpt(selection), local)
    found = compare(logits, torch.from_numpy(np.frombuffer(said, np.float32).copy()), local.label, local.user)
    own = metrics.scores(logits, local.label)
    values = found.to_json()
    return SampleScore(
        version=version,
        period=sample.period,
        events=len(data),
        auc=own.auc,
        logloss=values["logloss"],
        served_logloss=values["other"],
        error=values["error"],
    )
