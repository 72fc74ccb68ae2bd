"""Scores of models on each period (table `evaluations`), and the decisions of the gate (column `gate` of versions)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.repositories.models import ModelKind

__all__ = ["Evaluation", "Evaluations", "GateSummary"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of a model on the log of a period that it had not learned."""

    period: int
    model: str
    """`generated`, `incremental`, `previous` or `baseline`; `shadow:` and a method that runs beside the served one."""
    version: int | None
    """None for a shadow."""
    events: int
    auc: float | None
    """None where all labels of the period are equal."""
    logloss: float
    calibration: float | None
    """Mean prediction over click rate; None where nothing was clicked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSummary:
    """What the gate has decided about all versions that had something to learn."""

    decisions: Mapping[str, int]
    """Number of versions by kind: `generated`, `incremental` and `previous`."""
    in_a_row: int
    """How many of the newest versions in a row were of kind `previous`."""
    trial: Mapping[str, Any] | None
    """`service.use_cases.update.trial.Trial` of the newest version (JSON); None where it had none."""

    def losses(self) -> dict[str, float]:
        """LogLoss on the newest tenth of the period learned last: of the rehearsals by rung, of a `constant` and of the
        model `served`; NaN where there is none.
        """
        losses: dict[str, float | None] = dict.fromkeys(("generated", "incremental", "constant", "served"))
        for rung, against in (self.trial or {}).get("rehearsals", {}).items():
            for name, comparison in against.items():
                losses |= {rung: comparison["logloss"], name: comparison["other"]}
        return {name: math.nan if loss is None else loss for name, loss in losses.items()}


class Evaluations:
    """Table `evaluations`, and the gate's decisions in `model_versions`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, evaluations: Sequence[Evaluation]) -> None:
        """Store evaluations; each replaces one of the same period and model, so that a stage may run again."""
        if not evaluations:
            return
        statement = upsert(tables.evaluations).values([asdict(evaluation) for evaluation in evaluations])
        columns = ("version", "events", "auc", "logloss", "calibration")
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["period", "model"], set_={name: statement.excluded[name] for name in columns}
            )
        )

    async def clear(self, period: int) -> None:
        """Remove the evaluations on a period."""
        await self._connection.execute(delete(tables.evaluations).where(tables.evaluations.c.period == period))

    async def list(self, first: int, last: int | None = None) -> Sequence[Evaluation]:
        """The evaluations on the periods `first` to `last` (default: `first` alone), ordered by period and model."""
        query = (
            select(tables.evaluations)
            .where(tables.evaluations.c.period.between(first, first if last is None else last))
            .order_by(tables.evaluations.c.period, tables.evaluations.c.model)
        )
        return [Evaluation(**row) for row in (await self._connection.execute(query)).mappings()]

    async def newest(self) -> Sequence[Evaluation]:
        """The evaluations on the newest period that has any, by model."""
        newest = select(func.max(tables.evaluations.c.period)).scalar_subquery()
        query = select(tables.evaluations).where(tables.evaluations.c.period == newest)
        rows = await self._connection.execute(query.order_by(tables.evaluations.c.model))
        return [Evaluation(**row) for row in rows.mappings()]

    async def gate_summary(self) -> GateSummary:
        """What the gate has decided about all versions that had something to learn."""
        table = tables.model_versions.c
        decided = table.gate["checks"].astext != "{}"  # without anything to learn nothing is checked
        served = select(func.max(table.version)).where(decided, table.kind != ModelKind.PREVIOUS)
        counts = select(
            table.kind,
            func.count(),
            func.count().filter(table.version > func.coalesce(served.scalar_subquery(), -1)),
        ).where(decided)
        found = {
            kind: (count, later) for kind, count, later in await self._connection.execute(counts.group_by(table.kind))
        }
        newest = select(table.gate["trial"]).where(decided).order_by(table.version.desc()).limit(1)
        rungs = (ModelKind.GENERATED, ModelKind.INCREMENTAL, ModelKind.PREVIOUS)
        return GateSummary(
            decisions={str(kind): found.get(kind, (0, 0))[0] for kind in rungs},
            in_a_row=found.get(ModelKind.PREVIOUS, (0, 0))[1],
            trial=await self._connection.scalar(newest),
        )
