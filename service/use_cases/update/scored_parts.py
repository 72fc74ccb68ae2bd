"""The scores of a period by parts of its log: what the stage `score` stores beside the scores of the whole.

Users, items and values of fields are numbers of table rows here, which are looked up when somebody reads it
(`service.use_cases.breakdown`): so nothing of an id remains that was deleted or evicted since.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW, PeriodData
from asmg.breakdown import Predicted, by_group, by_prediction, by_value, changed_items
from asmg.features import Schema
from asmg.field_columns import FieldColumns
from asmg.metrics import Scores
from asmg.progressive import stage_rng
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import UpdateContext, UpdateStart
from service.use_cases.update.parts import FieldParts, ModelParts, ScoredParts
from service.use_cases.update.prepare import PrepareNote

__all__ = ["break_down", "scored_parts"]

logger = logging.getLogger(__name__)

MOST_ROWS = 100_000
"""Interactions that are broken down; of a larger period as many are drawn. Four models take 0.1 s, 0.3 s with twelve
fields."""

MOST_FIELDS = 12
"""Fields that are broken down by, in the order of the schema: hour, weekday, and the declared ones."""

MOST_VALUES = 8
"""Values of a field with scores of their own, the most frequent ones; the others have theirs together."""

DIGITS = 5
"""Significant digits of the numbers that are stored."""


def break_down(
    context: UpdateContext,
    checkpoints: Checkpoints,
    start: UpdateStart,
    prepared: PrepareNote,
    state: Any,
    data: PeriodData,
    logits: Mapping[str, Tensor],
) -> ScoredParts | None:
    """The scores by parts of the period; None where no model was scored, or if that fails: no update waits for it.

    Args:
        context: has the schema and the update method.
        checkpoints: knows the rows of the excerpt.
        start: names the period.
        prepared: its note.
        state: of the head.
        data: the period.
        logits: name of a model → what it says of each interaction.
    """
    if not logits:
        return None
    rows = checkpoints.selection.rows
    try:
        new = {
            table: checkpoints.is_new(table, rows[table][local.numpy()])
            for table, local in (("user", data.user), ("item", data.item))
        }
        if (statistics := context.updater.statistics_of(state)) is not None:
            new["item"] = ~statistics.counts_any(data.item).numpy()  # an item of the catalogue has a row before
        return scored_parts(
            data,
            context.schema,
            rows,
            new,
            logits,
            allocations={kind: prepared.allocations[kind] for kind in ("item", "field")},
            rng=stage_rng(context.settings.seed, start.period, "parts"),
        )
    except Exception:
        logger.exception("period %d: its scores are not broken down", start.period)
        return None


def scored_parts(
    data: PeriodData,
    schema: Schema,
    rows: Mapping[str, NDArray[np.int64]],
    new: Mapping[str, NDArray[np.bool_]],
    logits: Mapping[str, Tensor],
    *,
    allocations: Mapping[str, int],
    rng: torch.Generator,
) -> ScoredParts:
    """Divide a period and score its parts.

    Args:
        data: the N interactions.
        schema: of their fields.
        rows: table name → row of the whole table for each row in the data.
        new: "user" and "item" → whether no model had learned that of each interaction, [N].
        logits: name of a model → what it says of each, [N]. Where `previous` is among them, the changes from it to
            `generated` and `incremental` are told.
        allocations: see `ScoredParts`.
        rng: draws the interactions of a large period.
    """
    drawn = np.arange(len(data))
    if len(data) > MOST_ROWS:
        drawn = torch.randperm(len(data), generator=rng)[:MOST_ROWS].sort().values.numpy()
    label, item = data.label[drawn], data.item[drawn].numpy()
    divisions = [[np.flatnonzero(new[table][drawn] == fresh) for fresh in (True, False)] for table in ("user", "item")]
    fields = []
    for name, columns, edges in _columns(schema, data.fields):
        values, found = by_value(columns[drawn], MOST_VALUES)
        fields.append(FieldParts(name, rows["field"][values].tolist(), edges))
        divisions.append(found)
    told = {name: Predicted.of(each[drawn], label) for name, each in logits.items() if bool(torch.isfinite(each).all())}
    clicks = label.numpy() > 0.5
    return ScoredParts(
        rows=len(drawn),
        allocations=allocations,
        sizes=[(len(group), int(clicks[group].sum())) for groups in divisions for group in groups],
        fields=fields,
        models={
            name: ModelParts(
                curve=[(n, _short(p), _short(c)) for n, p, c in by_prediction(predicted)],
                groups=[_scores(scores) for groups in divisions for scores in by_group(predicted, groups)],
                changed=[
                    (int(rows["item"][each.item]), each.rows, each.clicks, _short(each.before), _short(each.after))
                    for each in changed_items(item, told["previous"], predicted)
                    if each.item != COLD_ROW
                ]
                if name in ("generated", "incremental") and "previous" in told
                else (),
            )
            for name, predicted in told.items()
        },
    )


def _columns(schema: Schema, fields: FieldColumns | None) -> Sequence[tuple[str, NDArray[np.int64], tuple[float, ...]]]:
    """The fields whose values are broken down by: their names, columns [N, C], and edges between buckets."""
    found: list[tuple[str, NDArray[np.int64], tuple[float, ...]]] = []
    at = 0
    for each in schema.all if fields is not None else ():
        assert fields is not None
        if each.by_table and len(found) < MOST_FIELDS:
            found.append((each.name, fields.rows[:, at : at + each.most].numpy(), each.buckets))
        at += each.most
    return found


def _scores(scores: Scores | None) -> tuple[float | None, float | None, float | None]:
    if scores is None:
        return None, None, None
    auc, calibration = scores.auc, scores.calibration
    return (
        None if auc is None else _short(auc),
        _short(scores.logloss),
        None if calibration is None else _short(calibration),
    )


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
