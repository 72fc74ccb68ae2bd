"""A version's scores by parts of a period as operators see them: `service.use_cases.update.scored_parts` with names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asmg.features import MISSING
from service.errors import ModelNotFound
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import EntityKind, Evaluation
from service.use_cases.status import MAX_NUMBER
from service.use_cases.update.parts import FieldParts, ModelParts, ScoredParts

__all__ = [
    "Breakdown",
    "ChangedItem",
    "CurveBin",
    "FieldBreakdown",
    "ModelBreakdown",
    "Part",
    "ValuePart",
    "get_breakdown",
]


@dataclass(frozen=True, slots=True)
class CurveBin:
    """Interactions with predictions of about the same size."""

    rows: int
    predicted: float
    """Mean predicted probability."""
    clicked: float
    """Click rate."""


@dataclass(frozen=True, slots=True)
class Part:
    """The scores on some of a period's interactions."""

    rows: int
    clicks: int
    auc: float | None
    """Null where all labels are equal."""
    logloss: float | None
    """Null where there are no interactions."""
    calibration: float | None
    """Predicted clicks divided by clicks; null without clicks."""


@dataclass(frozen=True, slots=True)
class Familiarity:
    """The scores on interactions with what no model had learned, and on the others."""

    new: Part
    known: Part


@dataclass(frozen=True, slots=True)
class ValuePart(Part):
    """The scores on the interactions with a value of a field."""

    value: str | None
    """Empty for a missing value; null for all other values together (`other`), and where it was removed since."""
    other: bool
    """Whether these are all values but the others listed."""


@dataclass(frozen=True, slots=True)
class FieldBreakdown:
    """The scores by the values of a field, the most frequent value first."""

    name: str
    values: Sequence[ValuePart]


@dataclass(frozen=True, slots=True)
class ChangedItem:
    """An item of which a version says another thing than the version before it."""

    item_id: str | None
    """Null where it was deleted or evicted since."""
    rows: int
    clicks: int
    before: float
    """Mean probability that the version before predicts."""
    after: float
    """Mean probability that this version predicts."""


@dataclass(frozen=True, slots=True)
class ModelBreakdown:
    """The scores of one model of the version."""

    model: str
    """`generated`, `incremental`, `previous` or `baseline`, as in the scores of the period."""
    curve: Sequence[CurveBin]
    """The calibration curve, by ascending prediction: at most ten bins of about equally many interactions."""
    users: Familiarity
    items: Familiarity
    fields: Sequence[FieldBreakdown]
    changed: Sequence[ChangedItem]
    """Those of which it says the most different things than version `against`, the largest difference first."""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The scores of a version on a period, by parts of the period."""

    version: int
    periods: Sequence[int]
    """Periods on which it is known how the version scored by parts, ascending."""
    period: int | None
    """The period that the rest is about; null where nothing is known of it."""
    rows: int
    """Interactions that were broken down."""
    against: int | None
    """The version before, that of `changed`; null where there was none."""
    models: Sequence[ModelBreakdown]


async def get_breakdown(database: Database, version: int, *, period: int | None) -> Breakdown:
    """The scores of a version by parts of a period that it had not learned.

    Args:
        database: has them.
        version: of a model.
        period: its number; None for the first that is known, the one after the version was made.

    Raises:
        ModelNotFound: there is no such version.
    """
    async with database.read() as session:
        if not 0 <= version <= MAX_NUMBER or await session.models.get(version) is None:
            raise ModelNotFound(version)
        periods = await session.breakdowns.of_version(version)
        chosen = next((each for each in periods if period in (None, each)), None)
        stored = None if chosen is None else await session.breakdowns.get(chosen)
        if chosen is None or stored is None:
            return Breakdown(version=version, periods=periods, period=None, rows=0, against=None, models=[])
        parts = ScoredParts.from_json(stored)
        evaluations = {each.model: each for each in await session.evaluations.list(chosen)}
        mine = {name: each for name, each in parts.models.items() if _is_of(evaluations, name, version)}
        changed = [row for model in mine.values() for row, *_ in model.changed]
        items = await _names(session, EntityKind.ITEM, changed, parts.allocations)
        values = await _names(
            session, EntityKind.FIELD, [row for each in parts.fields for row in each.values], parts.allocations
        )
    previous = evaluations.get("previous")
    return Breakdown(
        version=version,
        periods=periods,
        period=chosen,
        rows=parts.rows,
        against=previous.version if changed and previous is not None else None,
        models=[_model(name, model, parts, items, values) for name, model in mine.items()],
    )


def _is_of(evaluations: Mapping[str, Evaluation], model: str, version: int) -> bool:
    return model in evaluations and evaluations[model].version == version


async def _names(
    session: ReadSession, kind: EntityKind, rows: Sequence[int], allocations: Mapping[str, int]
) -> Mapping[int, str | None]:
    """The ids that had these rows then and still have them."""
    distinct = sorted(set(rows))
    ids = await session.entities.ids_at(kind, np.array(distinct, np.int64), allocations[kind])
    return dict(zip(distinct, ids, strict=True))


def _model(
    name: str,
    model: ModelParts,
    parts: ScoredParts,
    items: Mapping[int, str | None],
    values: Mapping[int, str | None],
) -> ModelBreakdown:
    groups = iter([Part(*size, *scores) for size, scores in zip(parts.sizes, model.groups, strict=True)])
    return ModelBreakdown(
        model=name,
        curve=[CurveBin(*each) for each in model.curve],
        users=Familiarity(next(groups), next(groups)),
        items=Familiarity(next(groups), next(groups)),
        fields=[
            FieldBreakdown(
                field.name,
                [
                    *(_value(_text(field, values[row]), next(groups)) for row in field.values),
                    *(_value(None, part, other=True) for part in [next(groups)] if part.rows),
                ],
            )
            for field in parts.fields
        ],
        changed=[ChangedItem(items[row], n, clicks, before, after) for row, n, clicks, before, after in model.changed],
    )


def _value(value: str | None, part: Part, *, other: bool = False) -> ValuePart:
    return ValuePart(part.rows, part.clicks, part.auc, part.logloss, part.calibration, value, other)


def _text(field: FieldParts, name: str | None) -> str | None:
    """A value as people read it, from its name in the field table (`asmg.features.name_of_value`)."""
    if name is None:
        return None
    value = name.partition("=")[2]
    if not field.edges or value == MISSING:
        return value
    bucket, edges = int(value), [f"{edge:g}" for edge in field.edges]
    if bucket == 0:
        return f"below {edges[0]}"
    return f"{edges[-1]} or more" if bucket >= len(edges) else f"{edges[bucket - 1]} to {edges[bucket]}"
