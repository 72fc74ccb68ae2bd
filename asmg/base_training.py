"""Incremental training of a base model: what all update methods build on.

Θ_t = argmin_Θ L(Θ | D_t, Θ_{t-1}): one shuffled pass over the new period, starting from the last model, Adam's moments
carried on. The first period has no model to start from and gets several passes, as many as a held-out tail favours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from asmg.adam import AdamState
from asmg.batch import COLD_ROW, PeriodData, concatenate
from asmg.checkpoint import Checkpoint, CheckpointError, dump_adam, load_adam, tensors_of
from asmg.metrics import auc, logloss
from asmg.models import (
    BaseModel,
    EmbeddingMLP,
    EmbeddingMLPConfig,
    MatrixFactorizationConfig,
    Params,
    build_model,
    forget,
    grow,
    table_sizes,
)
from asmg.training import Execution, Progress, RowTraining, RowUpdate, commit, predict_logits

__all__ = ["BaseState", "BaseTraining", "ModelConfig", "Rehearsal", "TrainingConfig", "part_of"]

ModelConfig = EmbeddingMLPConfig | MatrixFactorizationConfig

PASSES_DECAY = 0.7
"""What a period's losses count for, one period later, where the number of passes is chosen: a tail of a tenth of one
period is noisy, and what is good changes slowly."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the base model is trained."""

    lr: float = 3e-3
    """Adam's step size."""
    batch_size: int | None = None
    """Interactions a batch; None for as many that a pass has 1,000 steps, but from 64 to 256: a small period in large
    batches would hardly move the model."""
    epochs: int = 1
    """Passes over a period."""
    most_epochs: int | None = None
    """Most passes over a period, where its newest part (`holdout`) says how many are good, beginning with `epochs`;
    None for always `epochs`. See `BaseTraining`."""
    first_epochs: int = 8
    """Most passes over the very first period, or over the periods of pretraining."""
    first_lr: float | None = None
    """Adam's step size in these; None for `lr`."""
    holdout: float = 0.1
    """Newest fraction of the first period (with `most_epochs`, of each) that says how many passes are good; it is
    learned afterwards."""
    cold_rate: float = 0.03
    """Probability that an id is read as the cold row throughout a batch (id dropout); and, where numeric inputs tell
    what a user did before, that an interaction is learned as one of a stranger, who did nothing, and once more that it
    is learned as one of a user whose past is not at hand."""
    neutral_rate: float = 0.1
    """Probability that an interaction is learned with all training-only fields neutral, as they are when a model
    predicts."""
    initial: Literal["cold", "glorot"] = "cold"
    """How tables begin: rows near the cold row, or, as in the authors' release, Glorot-uniform for all ids at once (of
    which no period may bring more than the first)."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.epochs > 0 and self.first_epochs > 0):
            raise ValueError(f"training: expected positive lr, epochs, first_epochs; received {self}")
        if self.most_epochs is not None and not (self.most_epochs >= self.epochs and self.holdout > 0):
            raise ValueError(
                f"most_epochs: expected at least epochs, {self.epochs}, and a holdout above 0, or None; "
                f"received {self.most_epochs} with holdout {self.holdout}"
            )
        if self.first_lr is not None and not self.first_lr > 0:
            raise ValueError(f"first_lr: expected a positive number or None; received {self.first_lr}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, or None; received {self.batch_size}")
        for name in ("holdout", "cold_rate", "neutral_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1); received {getattr(self, name)}")
        if self.initial not in ("cold", "glorot"):
            raise ValueError(f"initial: expected cold or glorot; received {self.initial!r}")

    @classmethod
    def reference(cls, **changes: Any) -> "TrainingConfig":
        """The authors' settings (methods.md, sections 0 to 2)."""
        settings: dict[str, Any] = {"lr": 1e-3, "batch_size": 256, "first_epochs": 10, "holdout": 0.0, "cold_rate": 0.0}
        settings |= {"initial": "glorot"}
        return cls(**{**settings, **changes})

    def batch(self, events: int) -> int:
        """Interactions a batch of a pass over so many."""
        return max(64, min(256, events // 1_000)) if self.batch_size is None else self.batch_size


@dataclass(frozen=True)
class BaseState:
    """The base model after some period."""

    params: Params
    """Θ_t."""
    adam: AdamState
    """Its optimizer."""
    periods: int
    """Periods learned so far."""
    pending: RowUpdate | None = None
    """What was learned since and is not in the tables yet."""
    passes: tuple[float, ...] = ()
    """Of 1, 2, … passes over a period: the losses on its newest part less that after one pass, summed over the periods
    so far, each counting for PASSES_DECAY of the next one. Empty unless `most_epochs` is set."""


class Rehearsal(NamedTuple):
    """A model that learned one part of a period, cut down to the rows that the whole period reads."""

    params: Params
    """The model, on the CPU."""
    rows: dict[str, Tensor] | None
    """Table name → int64 [n], the rows of the whole tables that `params` has; None where it has all."""
    held_out: PeriodData
    """The other part, in the rows of `params`."""


class BaseTraining:
    """Training of a base model with one configuration: what all update methods have in common.

    With `most_epochs` a period is learned as the first one is: passes over its older part, then one over its newest
    part. The older part gets the number of passes that did best so far (`BaseState.passes`), and one more is tried, so
    the choice costs one pass over the older part, as much as a rehearsal.
    """

    def __init__(self, model: ModelConfig, training: TrainingConfig, execution: Execution) -> None:
        self.model: BaseModel = build_model(model)
        self.config, self.execution = training, execution

    def initial(self, rng: torch.Generator) -> BaseState:
        """The state before the first period."""
        params = self.model.initial(rng)
        return BaseState(params, AdamState.zeros(params), periods=0)

    def begun(self, state: BaseState, sizes: Mapping[str, int], rng: torch.Generator) -> BaseState:
        """An initial state with whole tables."""
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
        """Training of the rows that `periods` touch."""
        return RowTraining(
            self.model, state.params, state.adam, periods, lr=lr or self.config.lr, execution=self.execution
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
        """`epochs` passes over `data`, or, for the very first data and with `most_epochs`, as many as are good.

        The result is pending.
        """
        if state.periods == 0:
            state = self.begun(state, data.sizes, rng)
            return replace(state, pending=self._first(state, data, rng, progress))
        session, passes = self._learned(state, data, rng, progress, target=target, shuffle=shuffle)
        return replace(state, pending=replace(session.finish(), passes=passes))

    def rehearsed(
        self,
        state: BaseState,
        data: PeriodData,
        held_out: PeriodData,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> Rehearsal:
        """What `train` would make of `data` alone, for a look at how it does on `held_out`; `state` stays as it is.

        It costs what learning `data` costs and touches no whole table, but for the very first data.
        """
        if state.periods == 0:
            return Rehearsal(self.committed(self.train(state, data, rng, progress)).params, None, held_out)
        session, _ = self._learned(state, data, rng, progress, held_out=(held_out,))
        learned = session.finish()
        return Rehearsal(learned.params, learned.rows, session.periods[-1])

    def favoured(self, passes: Sequence[float]) -> int:
        """How many passes over a period are best by what is known of them (`BaseState.passes`)."""
        return 1 + min(range(len(passes)), key=passes.__getitem__) if passes else self.config.epochs

    def _learned(
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
        """A session in which `data` has been learned, and what is known of the number of passes then.

        `held_out` is beside it and not learned.
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
        """One pass with this configuration."""
        if self.model.numeric and data.nobody is not None and self.config.cold_rate > 0:
            drawn, rate = torch.rand(len(data), generator=rng), self.config.cold_rate
            data = data.without_past(drawn < 2 * rate, strangers=drawn < rate)
        if data.fields is not None and data.fields.trains_only:
            # All of them at once, as they are when a model predicts, and all columns of a multi-valued one.
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

    def _first(self, state: BaseState, data: PeriodData, rng: torch.Generator, progress: Progress | None) -> RowUpdate:
        """Several passes over the older part, as many as its newest part favours, then one over that newest part."""
        tail, most = math.floor(len(data) * self.config.holdout), self.config.first_epochs
        cut = len(data) - tail
        parts = [data.slice(0, cut), data.slice(cut, len(data))] if tail else [data]
        session = self.session(state, parts, self.config.first_lr)

        def loss() -> float:
            return logloss(self.predicted(session.params, session.periods[1]), session.periods[1].label)

        self._passes(session, session.periods[0], rng, progress, loss if tail else None, most, most + 1)
        if tail:
            self.epoch(session, session.periods[1], rng, part_of(progress, most, most + 1))
        return session.finish()

    def _passes(
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
        """Passes until the loss has not been the least for `patience` of them; the best are kept."""
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
        """All of `first_epochs` over all `periods` together; of the passes the one with the best AUC on `validation`.

        (methods.md, section 1.)
        """
        data = concatenate(periods)
        state = self.begun(self.initial(rng), data.sizes, rng)
        session = self.session(state, [data], self.config.first_lr)

        def loss() -> float:
            params, _ = commit(state.params, state.adam, session.finish())
            found = auc(self.predicted(params, validation), validation.label)
            return 0.0 if found is None else -found

        most = self.config.first_epochs
        self._passes(session, session.periods[0], rng, None, loss, most, most, patience=most)
        return self.committed(replace(state, pending=session.finish()))

    def predicted(self, params: Mapping[str, Tensor], data: PeriodData) -> Tensor:
        """Logits float32 [N] of a log, computed as training is (`asmg.training.predict_logits`)."""
        return predict_logits(self.model, params, data, execution=self.execution)

    def committed(self, state: BaseState) -> BaseState:
        """The state with what is pending in its tables."""
        if state.pending is None:
            raise ValueError("state: expected one with a pending update; received one without")
        params, adam = commit(state.params, state.adam, state.pending)
        return BaseState(params, adam, state.periods + 1, passes=state.pending.passes)

    def forgotten(self, state: BaseState, rows: Mapping[str, Tensor]) -> BaseState:
        """The state as if nobody had ever had these rows, see `asmg.updaters.base.Updater.forgotten`."""
        if state.pending is not None:
            raise ValueError("state: expected one without a pending update; received one with")
        for name, at in rows.items():
            if len(at) and int(at.min()) <= COLD_ROW:
                raise ValueError(f"rows.{name}: expected rows past {COLD_ROW}; received {int(at.min())}")
        return replace(state, params=forget(state.params, rows), adam=state.adam.forgotten(rows))

    def dump(self, state: BaseState) -> dict[str, Checkpoint]:
        """The parts "base" and "optimizer", and "pending" where there is any."""
        parts = {
            "base": Checkpoint("model", {"model": self.model.config.to_json()}, state.params),
            "optimizer": dump_adam(state.adam, periods=state.periods, **_passes(state.passes)),
        }
        if state.pending is not None:
            update = state.pending
            tensors = {f"rows.{n}": t for n, t in update.rows.items()}
            tensors |= {f"param.{n}": t for n, t in update.params.items()}
            tensors |= dump_adam(update.adam).tensors
            meta = {"step": update.adam.step, "sizes": update.sizes, **_passes(update.passes)}
            parts["pending"] = Checkpoint("row-update", meta, tensors)
        return parts

    def only_lacks_fields(self, config: Any) -> bool:
        """Whether a stored configuration is this one's but for the fields, which it was made without."""
        plain = self.model.without_fields() if isinstance(self.model, EmbeddingMLP) else None
        return plain is not None and plain.config.to_json() == config

    def adopted(self, parts: Mapping[str, Checkpoint], rng: torch.Generator) -> BaseState:
        """As `load`; a model that was made without fields gets them, and says what it said before.

        `rng`: of the table of the fields, which begins as that of a new model does.
        """
        model = self.model
        if not (isinstance(model, EmbeddingMLP) and self.only_lacks_fields(parts["base"].meta.get("model"))):
            return self.load(parts)
        plain = BaseTraining(replace(model.config, fields=False), self.config, self.execution).load(parts)
        table = {"field": model.initial(rng)["field"]}
        adam, at_rest = plain.adam, AdamState.zeros(table)
        return replace(
            plain,
            params=model.widened(plain.params) | table,
            adam=AdamState(
                step=adam.step,
                first=model.widened(adam.first) | at_rest.first,
                second=model.widened(adam.second) | at_rest.second,
                moved=adam.moved | {name: torch.full_like(m, adam.step) for name, m in at_rest.moved.items()},
                restless=adam.restless | at_rest.restless,
            ),
        )

    def load(self, parts: Mapping[str, Checkpoint]) -> BaseState:
        """The inverse of `dump`, from among other parts."""
        base, config = parts["base"], self.model.config.to_json()
        if base.meta.get("model") != config:
            raise CheckpointError(f"model: expected {config}; received {base.meta.get('model')}")
        params, pending = dict(base.tensors), None
        self.model.check(params)
        if "pending" in parts:
            stored = parts["pending"]
            pending = RowUpdate(
                tensors_of(stored, "rows."),
                tensors_of(stored, "param."),
                load_adam(stored),
                dict(stored.meta["sizes"]),
                tuple(stored.meta.get("passes", ())),
            )
            self.model.check(pending.params)
            pending.adam.check(pending.params)
        optimizer = parts["optimizer"]
        adam = load_adam(optimizer)
        adam.check(params)
        return BaseState(params, adam, optimizer.meta["periods"], pending, tuple(optimizer.meta.get("passes", ())))


def _passes(passes: tuple[float, ...]) -> dict[str, Any]:
    """As meta data, which a state without has not."""
    return {"passes": list(passes)} if passes else {}


def part_of(progress: Progress | None, index: int, parts: int) -> Progress | None:
    """The progress of one part of a whole."""
    if progress is None:
        return None
    return lambda fraction: progress(min(1.0, (index + fraction) / parts))
