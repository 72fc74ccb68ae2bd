"""IU, the incremental update (the paper's "Conventional Incremental Update").

Θ_t = argmin_Θ L(Θ | D_t, Θ_{t-1}): one shuffled pass over the new period, starting from the last model, Adam's moments
carried on. The first period has no model to start from and gets several passes, as many as a held-out tail favours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.batch import COLD_ROW, PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.metrics import logloss
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params, grow, scatter, table_sizes
from asmg.training import Adam, AdamState, Progress, predict_logits, train_epoch
from asmg.updaters.base import Updater

__all__ = ["BaseState", "IncrementalUpdate", "TrainingConfig", "dump_adam", "dump_data", "load_adam", "load_data"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the base model is trained."""

    lr: float = 3e-3
    """Adam's step size."""
    batch_size: int = 256
    """Interactions a batch."""
    epochs: int = 1
    """Passes over a period."""
    first_epochs: int = 8
    """Most passes over the very first period."""
    holdout: float = 0.1
    """Newest fraction of the first period that says how many passes are good; it is learned afterwards."""
    cold_rate: float = 0.1
    """Probability that an id is read as the cold row throughout a batch (id dropout)."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.batch_size > 0 and self.epochs > 0 and self.first_epochs > 0):
            raise ValueError(f"training: expected positive lr, batch_size, epochs, first_epochs; received {self}")
        for name in ("holdout", "cold_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1); received {getattr(self, name)}")


@dataclass(frozen=True)
class BaseState:
    """The base model after some period."""

    params: Params
    """Θ_t."""
    adam: AdamState
    """Its optimizer."""
    periods: int
    """Periods learned so far."""


class IncrementalUpdate(Updater[BaseState]):
    """IU on Embedding&MLP."""

    name: ClassVar[str] = "iu"
    stages: ClassVar[tuple[str, ...]] = ("update_base",)

    def __init__(self, model: EmbeddingMLPConfig, training: TrainingConfig | None = None) -> None:
        self.model = EmbeddingMLP(model)
        self.training = training or TrainingConfig()

    @override
    def initial(self, rng: torch.Generator) -> BaseState:
        params = self.model.initial(rng)
        return BaseState(params, AdamState.zeros(params), periods=0)

    @override
    def run_stage(
        self, stage: str, state: BaseState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> BaseState:
        if stage not in self.stages:
            raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")
        if missing := set(self.model.tables) - set(data.sizes):
            raise ValueError(f"data: expected rows for the tables {self.model.tables}; received none for {missing}")
        tables = table_sizes(state.params)
        params = {name: grow(p, data.sizes[name]) if name in tables else p.clone() for name, p in state.params.items()}
        if state.periods == 0:
            for name in tables:
                params[name][COLD_ROW + 1 :] += scatter(len(params[name]) - 1, self.model.config.dim, rng)
        optimizer = Adam(params, state.adam.grown(table_sizes(params)), lr=self.training.lr)
        if state.periods == 0:
            params, adam = self._first(optimizer, data, rng, progress)
        else:
            for epoch in range(self.training.epochs):
                self._epoch(optimizer, data, rng, progress, epoch / self.training.epochs, 1 / self.training.epochs)
            adam = optimizer.state
        self.model.check(params)
        return BaseState(params, adam, state.periods + 1)

    @override
    def serving_models(self, state: BaseState) -> dict[str, Params]:
        return {"incremental": state.params} if state.periods else {}

    @override
    def dump(self, state: BaseState) -> dict[str, Checkpoint]:
        return {
            "base": Checkpoint("model", {"model": self.model.config.to_json()}, state.params),
            "optimizer": dump_adam(state.adam, periods=state.periods),
        }

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> BaseState:
        if set(parts) != {"base", "optimizer"}:
            raise CheckpointError(f"{self.name}: expected the parts base and optimizer; received {sorted(parts)}")
        base = parts["base"]
        config = self.model.config.to_json()
        if base.meta.get("model") != config:
            raise CheckpointError(f"model: expected {config}; received {base.meta.get('model')}")
        params = dict(base.tensors)
        self.model.check(params)
        return BaseState(params, load_adam(parts["optimizer"]), parts["optimizer"].meta["periods"])

    def _epoch(
        self,
        optimizer: Adam,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None,
        start: float,
        share: float,
    ) -> None:
        def part(fraction: float) -> None:
            if progress:
                progress(min(1.0, start + share * fraction))

        train_epoch(
            self.model,
            optimizer,
            data,
            batch_size=self.training.batch_size,
            rng=rng,
            cold_rate=self.training.cold_rate,
            progress=part,
        )

    def _first(
        self,
        optimizer: Adam,
        data: PeriodData,
        rng: torch.Generator,
        progress: Progress | None,
    ) -> tuple[Params, AdamState]:
        """Several passes over the older part, as many as its newest part favours, then one over that newest part."""
        tail = math.floor(len(data) * self.training.holdout)
        share = 1 / (self.training.first_epochs + 1)
        if tail == 0:
            for epoch in range(self.training.first_epochs):
                self._epoch(optimizer, data, rng, progress, epoch * share, share)
            return optimizer.params, optimizer.state
        head, held_out = data.slice(0, len(data) - tail), data.slice(len(data) - tail, len(data))
        best, kept = math.inf, (optimizer.params, optimizer.state)
        for epoch in range(self.training.first_epochs):
            self._epoch(optimizer, head, rng, progress, epoch * share, share)
            loss = logloss(predict_logits(self.model, optimizer.params, held_out), held_out.label)
            if loss >= best:
                break
            best = loss
            kept = ({n: p.clone() for n, p in optimizer.params.items()}, optimizer.state.grown({}))
        params, adam = kept
        optimizer = Adam(params, adam, lr=self.training.lr)
        self._epoch(optimizer, held_out, rng, progress, 1 - share, share)
        return optimizer.params, optimizer.state


def dump_adam(adam: AdamState, **meta: int) -> Checkpoint:
    """An optimizer as a checkpoint, with any further meta data."""
    tensors = {
        f"{part}.{name}": tensor
        for part in ("first", "second", "moved")
        for name, tensor in getattr(adam, part).items()
    }
    return Checkpoint("adam", {"step": adam.step, **meta}, tensors)


def load_adam(checkpoint: Checkpoint) -> AdamState:
    """The inverse of `dump_adam`."""

    def part(prefix: str) -> Params:
        return {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}

    return AdamState(step=checkpoint.meta["step"], first=part("first."), second=part("second."), moved=part("moved."))


def dump_data(data: PeriodData) -> Checkpoint:
    """A period's data as a checkpoint."""
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
    return Checkpoint("period-data", {n: v for n, v in values.items() if isinstance(v, int)}, tensors)


def load_data(checkpoint: Checkpoint) -> PeriodData:
    """The inverse of `dump_data`."""
    fields_: dict[str, Any] = {**checkpoint.meta, **checkpoint.tensors}
    return PeriodData(**fields_)
