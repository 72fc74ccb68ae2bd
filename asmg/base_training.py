"""Incremental training of a base model, which all update methods build on.

Θ_t = argmin_Θ L(Θ | D_t, Θ_{t-1}): one shuffled pass over the new period, starting from the last model and Adam's
moments. The first period starts from a fresh model and gets several passes; a held-out tail says how many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asmg.adam import AdamState
from asmg.base_state import BaseState, only_lacks_fields
from asmg.batch import COLD_ROW, PeriodData, concatenate
from asmg.metrics import auc, logloss
from asmg.models import BaseModel, ModelConfig, Params, build_model, forget, grow, table_sizes
from asmg.rounding import rounded_moments
from asmg.training import (
    Execution,
    Progress,
    RowTraining,
    RowUpdate,
    TrainingConfig,
    commit,
    part_of,
    predict_logits,
    take,
    trained,
)

__all__ = ["BaseTraining", "Rehearsal"]

PASSES_DECAY = 0.7
"""Weight, in (0, 1], that past losses keep per period when the number of passes is chosen. The held-out tenth of a
single period is noisy, and the best number changes slowly."""


class Rehearsal(NamedTuple):
    """A model that learned one part of a period, to be scored on the other part."""

    params: Params
    """The model on the CPU, cut down to the rows that the whole period reads."""
    rows: dict[str, Tensor] | None
    """Table name → int64 [n], the rows of the whole tables that `params` has; None for all rows."""
    touched: dict[str, Tensor]
    """Table name → int64 [m], places within `rows` of those that the training moved; the others are as before."""
    held_out: PeriodData
    """The other part, as rows of `params`."""


class BaseTraining:
    """Training of a base model with one configuration, shared by all update methods.

    With `TrainingConfig.most_epochs` every period is learned as the first one is: several passes over its older part,
    then one over its newest part. The older part gets the number of passes that was best so far (`BaseState.passes`).
    One more pass is tried, so the choice costs one pass over the older part.

    Args:
        model: configuration of the base model.
        training: settings; by default `TrainingConfig()`.
        execution: where to compute; by default `Execution()`.
    """

    def __init__(
        self, model: ModelConfig, training: TrainingConfig | None = None, execution: Execution | None = None
    ) -> None:
        self.model: BaseModel = build_model(model)
        self.config, self.execution = training or TrainingConfig(), execution or Execution()

    def initial(self, rng: torch.Generator) -> BaseState:
        """The state before the first period."""
        params = self.model.initial(rng)
        return BaseState(params, AdamState.zeros(params), periods=0)

    def begun(self, state: BaseState, sizes: Mapping[str, int], rng: torch.Generator) -> BaseState:
        """The initial state with whole tables.

        Args:
            state: from `initial`.
            sizes: table name → rows.
            rng: for the initial rows.

        Raises:
            ValueError: `sizes` lacks one of the model's tables.
        """
        if missing := set(self.model.tables) - set(sizes):
            raise ValueError(f"data: expected rows for the tables {self.model.tables}; received none for {missing}")
        if self.config.initial == "glorot":
            params = self.model.glorot(sizes, rng)
        else:
            tables = table_sizes(state.params)
            params = {name: grow(p, sizes[name]) if name in tables else p for name, p in state.params.items()}
            for name in tables:
                params[name][COLD_ROW + 1 :] += self.model.scatter(name, len(params[name]) - 1, rng)
        return BaseState(params, AdamState.zeros(params), periods=0)

    def session(self, state: BaseState, periods: Sequence[PeriodData], lr: float | None = None) -> RowTraining:
        """Training of the rows that `periods` touch, with step size `lr` (by default the configuration's)."""
        return RowTraining(
            self.model,
            state.params,
            state.adam,
            periods,
            lr=lr or self.config.lr,
            execution=self.execution,
            restless=self.config.restless,
        )

    def train(
        self,
        state: BaseState,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None = None,
        *,
        target: Tensor | None = None,
        shuffle: bool = True,
    ) -> BaseState:
        """Learn `data`; the result is pending until `committed`.

        Args:
            state: left unchanged.
            data: the period.
            rng: for the order, id dropout and, for the first period, the initial rows.
            progress: called with the fraction done.
            target: float32 [N] in [0, 1], learned instead of the labels; not for the first period.
            shuffle: whether the order is random; the first period's always is.

        Raises:
            DivergedError: a loss or a parameter is NaN or infinite.
        """
        if state.periods == 0:
            begun = self.begun(state, data.sizes, rng)
            learned = _with_all_rows(begun, self._learn_first(begun, data, rng, progress))
        else:
            session, passes = self._learn(state, data, rng, progress, target=target, shuffle=shuffle)
            learned = replace(session.finish(), passes=passes)
        adam = rounded_moments(learned.adam, self.config.moment_bits, rng)
        return replace(state, pending=replace(learned, adam=adam))

    def rehearsed(
        self,
        state: BaseState,
        data: PeriodData,
        held_out: PeriodData,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> Rehearsal:
        """The model that `train` would make of `data` alone, to be scored on `held_out`; `state` stays unchanged.

        Costs as much as learning `data`. Copies whole tables only for the first period.
        """
        if state.periods == 0:
            begun = self.begun(state, data.sizes, rng)
            params, _ = commit(begun.params, begun.adam, self._learn_first(begun, data, rng, progress))
            return Rehearsal(params, None, {}, held_out)
        session, _ = self._learn(state, data, rng, progress, held_out=(held_out,))
        learned, before = session.finish(), take(state.params, session.rows)
        own = trained(self.model, state.params, state.adam, [data]).rows
        touched = {n: torch.isin(rows, own[n]).nonzero().squeeze(1) for n, rows in learned.rows.items()}
        params = {
            n: before[n].index_copy(0, touched[n], p[touched[n]]) if n in touched else p
            for n, p in learned.params.items()
        }
        return Rehearsal(params, learned.rows, touched, session.periods[-1])

    def favoured(self, passes: Sequence[float]) -> int:
        """The number of passes with the lowest loss so far (`BaseState.passes`); `epochs` without any."""
        return 1 + min(range(len(passes)), key=passes.__getitem__) if passes else self.config.epochs

    def _learn(
        self,
        state: BaseState,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None,
        *,
        target: Tensor | None = None,
        shuffle: bool = True,
        held_out: Sequence[PeriodData] = (),
    ) -> tuple[RowTraining, tuple[float, ...]]:
        """Learn `data` in a session that also has the rows of `held_out`.

        Returns:
            the session, and the new `BaseState.passes`.
        """
        most, passes = self.config.most_epochs, state.passes
        cut = len(data) - (0 if most is None else math.floor(len(data) * self.config.holdout))
        if most is None or cut == len(data):
            count = self.config.epochs if most is None else min(most, self.favoured(passes))
            session = self.session(state, [data, *held_out])
            for epoch in range(count):
                self.epoch(session, session.periods[0], rng, part_of(progress, epoch, count), target, shuffle)
            return session, passes
        session = self.session(state, [data.slice(0, cut), data.slice(cut, len(data)), *held_out])
        older, newest, *_ = session.periods
        early, late = (None, None) if target is None else (target[:cut], target[cut:])
        losses, kept, tried = [], [], min(most, self.favoured(passes) + 1)
        for epoch in range(tried):
            self.epoch(session, older, rng, part_of(progress, epoch, tried + 1), early, shuffle)
            losses.append(logloss(self.predicted(session.params, newest), newest.label))
            kept.append(session.keep())
        passes = tuple(
            PASSES_DECAY * (passes[n] if n < len(passes) else 0.0) + (losses[n] - losses[0] if n < tried else 0.0)
            for n in range(max(len(passes), tried))
        )
        session.restore(kept[min(self.favoured(passes), tried) - 1])
        self.epoch(session, newest, rng, part_of(progress, tried, tried + 1), late, shuffle)
        return session, passes

    def epoch(
        self,
        session: RowTraining,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None = None,
        target: Tensor | None = None,
        shuffle: bool = True,
    ) -> None:
        """One pass over `data`, one of the session's periods or a slice of one, with this configuration.

        At random, interactions lose the user's past (`cold_rate`) or their training-only fields (`neutral_rate`), as in
        predictions that lack them.
        """
        if self.model.numeric and data.nobody is not None and self.config.cold_rate > 0:
            drawn, rate = torch.rand(len(data), generator=rng), self.config.cold_rate
            data = data.without_past(drawn < 2 * rate, strangers=drawn < rate)
        if data.fields is not None and data.fields.trains_only:
            # All training-only columns of an interaction together, as in a prediction.
            where = torch.rand(len(data), 1, generator=rng) < self.config.neutral_rate
            data = replace(data, fields=data.fields.with_neutral(where))
        session.epoch(
            data,
            batch_size=self.config.batch(len(data)),
            rng=rng,
            cold_rate=self.config.cold_rate,
            target=target,
            shuffle=shuffle,
            progress=progress,
        )

    def _learn_first(
        self, state: BaseState, data: PeriodData, rng: torch.Generator, progress: Progress | None
    ) -> RowUpdate:
        """Learn the first period: passes over its older part until the loss on the rest rises, then one over the
        rest.
        """
        tail, most = math.floor(len(data) * self.config.holdout), self.config.first_epochs
        cut = len(data) - tail
        parts = [data.slice(0, cut), data.slice(cut, len(data))] if tail else [data]
        session = self.session(state, parts, self.config.first_lr)

        def loss() -> float:
            return logloss(self.predicted(session.params, session.periods[1]), session.periods[1].label)

        self._pass_repeatedly(session, session.periods[0], rng, progress, loss if tail else None, most, most + 1)
        if tail:
            self.epoch(session, session.periods[1], rng, part_of(progress, most, most + 1))
        return session.finish()

    def _pass_repeatedly(
        self,
        session: RowTraining,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None,
        loss: Callable[[], float] | None,
        most: int,
        shares: int,
        patience: int = 1,
    ) -> None:
        """At most `most` passes over `data`; the state after the pass with the least loss is kept.

        Args:
            session: trains.
            data: what is learned.
            rng: for the order and the dropout.
            progress: called with the fraction done.
            loss: computed after each pass; None to make and keep all passes.
            most: maximum number of passes.
            shares: number of passes that `progress` counts as the whole.
            patience: number of passes without an improvement after which no more are made.
        """
        best, kept, waited = math.inf, None, 0
        for epoch in range(most):
            self.epoch(session, data, rng, part_of(progress, epoch, shares))
            if loss is None:
                continue
            found = loss()
            if found < best:
                best, kept, waited = found, session.keep(), 0
            elif (waited := waited + 1) >= patience:
                break
        if kept is not None:
            session.restore(kept)

    def pretrained(self, periods: Sequence[PeriodData], validation: PeriodData, rng: torch.Generator) -> BaseState:
        """Pretraining (methods.md, section 1): `first_epochs` passes over all periods together; the best by AUC is
        kept.

        Args:
            periods: oldest first.
            validation: the period after them, on which the AUC is measured. Nothing is trained on it.
            rng: for the initial rows, the order and the dropout.
        """
        data = concatenate(periods)
        state = self.begun(self.initial(rng), data.sizes, rng)
        session = self.session(state, [data], self.config.first_lr)

        def loss() -> float:
            params, _ = commit(state.params, state.adam, session.finish())
            found = auc(self.predicted(params, validation), validation.label)
            return 0.0 if found is None else -found

        most = self.config.first_epochs
        self._pass_repeatedly(session, session.periods[0], rng, None, loss, most, most, patience=most)
        return self.committed(replace(state, pending=session.finish()))

    def predicted(self, params: Mapping[str, Tensor], data: PeriodData) -> Tensor:
        """Logits float32 [N] of a log, by the same kind of execution as training (`asmg.training.predict_logits`)."""
        return predict_logits(self.model, params, data, execution=self.execution)

    def committed(self, state: BaseState) -> BaseState:
        """The state with its pending update put into the tables.

        Raises:
            ValueError: nothing is pending.
        """
        if state.pending is None:
            raise ValueError("state: expected one with a pending update; received one without")
        params, adam = commit(state.params, state.adam, state.pending)
        return BaseState(params, adam, state.periods + 1, passes=state.pending.passes)

    def forgotten(self, state: BaseState, rows: Mapping[str, Tensor]) -> BaseState:
        """The state with these rows reset to the cold row, see `asmg.updaters.base.Updater.forgotten`.

        Raises:
            ValueError: an update is pending, or the cold row is among the rows.
        """
        if state.pending is not None:
            raise ValueError("state: expected one without a pending update; received one with")
        for name, at in rows.items():
            if len(at) and int(at.min()) <= COLD_ROW:
                raise ValueError(f"rows.{name}: expected rows past {COLD_ROW}; received {int(at.min())}")
        return replace(state, params=forget(state.params, rows), adam=state.adam.forgotten(rows))

    def only_lacks_fields(self, config: Any) -> bool:
        """Whether a stored model configuration equals this one's except that it has no fields."""
        return only_lacks_fields(self.model, config)


def _with_all_rows(begun: BaseState, update: RowUpdate) -> RowUpdate:
    """An update of some rows of tables that nobody has stored yet, as one of all their rows."""
    params, adam = commit(begun.params, begun.adam, update)
    rows = {name: torch.arange(update.sizes[name]) for name in update.rows}
    return replace(update, rows=rows, params=params, adam=adam)
