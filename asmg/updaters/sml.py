"""SML, sequential meta-learning (Zhang et al., "How to Retrain Recommender System?", SIGIR 2020; methods.md, 8 and 9).

Predictions come from T(Θ', Θ), a transfer from the previous model Θ' and the trained model Θ (`asmg.transfer`), never
from Θ itself. One update, when the data D_{t+1} of a period has arrived:

1. train_transfer: ω_{t+1} = argmin_ω L(T_ω(Θ'_t, Θ_t) | D_{t+1}), both models fixed; then Θ_t := T(Θ'_t, Θ_t). Of
   several passes, each followed by its assignment, the one whose T(Θ', Θ) has the best AUC on D_{t+1} is kept.
2. update_base: Θ'_{t+1} = Θ_t, as just assigned, and Θ_{t+1} = argmin_Θ L(T(Θ'_{t+1}, Θ) | D_{t+1}) from there. T is
   fixed; Adam's moments are carried on although the assignment changed the parameters.
3. generate: the assignments, Θ_{t+1} and T(Θ'_{t+1}, Θ_{t+1}) for whole tables.

The first model is trained without a transfer, so T is first trained on the third period (with pretraining, on the
second after it), as in the authors' release. The release reports the best of several epochs by the AUC on the next
period, which is unknown in serving; here the last epoch is used. With fewer `epochs` and the same `rng`, update_base
gives the intermediate models of more.

On Embedding&MLP this is SML, on matrix factorization SML-MF.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from asmg.adam import Adam, AdamState
from asmg.base_state import BASE_PARTS, BaseState, dump_base, load_base
from asmg.base_training import BaseTraining
from asmg.batch import Epoch, PeriodData, excerpt
from asmg.checkpoint import Checkpoint, dump_adam, load_adam, tensors_of
from asmg.metrics import auc
from asmg.models import MatrixFactorizationConfig, ModelConfig, Params, forget, grow, table_sizes
from asmg.training import (
    DivergedError,
    Execution,
    Progress,
    RowUpdate,
    TrainingConfig,
    cross_entropy,
    descend,
    part_of,
    take,
)
from asmg.transfer import Output, Transfer
from asmg.updaters.base import ServedParts, Updater

__all__ = ["BasePhase", "Sml", "SmlConfig", "SmlState", "TransferPhase"]


@dataclass(frozen=True, kw_only=True)
class SmlConfig:
    """Settings of the transfer T; those of the base model are in TrainingConfig (`lr`, `epochs`)."""

    output: Output = "residual"
    """Whether a transfer net returns a correction of the trained model ("residual", initially zero) or the model itself
    ("direct")."""
    lr: float = 1e-3
    """Adam's step size for T."""
    batch_size: int = 256
    """Interactions per batch in the training of T."""
    transfer_epochs: int = 1
    """Passes of T over a period, each followed by Θ := T(Θ', Θ)."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.batch_size > 0 and self.transfer_epochs > 0):
            raise ValueError(f"sml: expected positive lr, batch_size, transfer_epochs; received {self}")
        if self.output not in ("residual", "direct"):
            raise ValueError(f"output: expected 'residual' or 'direct'; received {self.output!r}")

    @classmethod
    def reference(cls, model: ModelConfig, **changes: Any) -> "SmlConfig":
        """The authors' settings on this base model: SML's (methods.md, section 8) or SML-MF's (section 9)."""
        passes = 5 if isinstance(model, MatrixFactorizationConfig) else 1
        return cls(**{"output": "direct", "transfer_epochs": passes, **changes})

    @staticmethod
    def reference_training(model: ModelConfig, **changes: Any) -> TrainingConfig:
        """The authors' settings of the base model's training: lr 1e-2 (1e-3 in SML's pretraining), and 5 passes for
        SML-MF.
        """
        mf = isinstance(model, MatrixFactorizationConfig)
        settings = {"lr": 1e-2, "first_lr": 1e-2 if mf else 1e-3, "epochs": 5 if mf else 1}
        return TrainingConfig.reference(**{**settings, **changes})

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SmlState:
    """The state between periods and stages."""

    base: BaseState
    """Θ_t with its optimizer; a pending update starts from the assigned Θ_t."""
    weights: Params
    """ω, the weights of T."""
    adam: AdamState
    """T's optimizer."""
    chain: tuple[Params, ...] = ()
    """The weights of T after each pass of train_transfer, to be applied to Θ_t in turn; the last are `weights`. Empty
    between updates."""
    previous: Params | None = None
    """Θ'_t, of the size of Θ_t; None before the first period."""
    generated: Params | None = None
    """T(Θ'_t, Θ_t), the model that predicts; None before the first period."""


class Sml(Updater[SmlState]):
    """SML on Embedding&MLP ("sml") and on matrix factorization ("sml-mf")."""

    stages: ClassVar[tuple[str, ...]] = ("train_transfer", "update_base", "generate")

    def __init__(
        self,
        model: ModelConfig,
        config: SmlConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.name = "sml-mf" if isinstance(model, MatrixFactorizationConfig) else "sml"
        self.config = config or SmlConfig()
        if training is not None and training.most_epochs is not None:
            raise ValueError(
                f"most_epochs: expected None, for SML has no held-out part; received {training.most_epochs}"
            )
        self.base = BaseTraining(model, training, execution)
        self.model, self.execution = self.base.model, self.base.execution
        self.transfer = Transfer(self.model, self.config.output)

    @classmethod
    def reference(cls, model: ModelConfig, execution: Execution | None = None) -> "Sml":
        """The method with the authors' settings."""
        return cls(model, SmlConfig.reference(model), SmlConfig.reference_training(model), execution)

    @override
    def initial(self, rng: torch.Generator) -> SmlState:
        base, weights = self.base.initial(rng), self.transfer.initial(rng)
        return SmlState(base, weights, AdamState.zeros(weights))

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> SmlState:
        return replace(self.initial(rng), base=base, previous=base.params, generated=base.params)

    @override
    def run_stage(
        self, stage: str, state: SmlState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> SmlState:
        if stage == "train_transfer":
            return self._train_transfer(state, data, rng, progress)
        if stage == "update_base":
            return self._update_base(state, data, rng, progress)
        if stage == "generate":
            return self._generate(state)
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    @override
    def forgotten(self, state: SmlState, rows: Mapping[str, Tensor]) -> SmlState:
        if state.chain:
            raise ValueError("state: expected one between two updates; received one after train_transfer")
        base = self.base.forgotten(state.base, rows)
        previous, generated = (
            None if params is None else forget(params, rows) for params in (state.previous, state.generated)
        )
        return replace(state, base=base, previous=previous, generated=generated)

    @override
    def serving_models(self, state: SmlState) -> dict[str, Params]:
        """See Updater. After the first period, which is learned without T, both are the same model."""
        return {} if state.generated is None else {"generated": state.generated, "incremental": state.base.params}

    @override
    def served_parts(self, state: SmlState) -> dict[str, ServedParts]:
        return {} if state.generated is None else {"generated": ServedParts("generated"), "incremental": ServedParts()}

    @property
    @override
    def rewrites_tables(self) -> bool:
        """See Updater: the transfer changes every row."""
        return True

    def transfers(self, state: SmlState) -> bool:
        """Whether Θ_t was trained through T, so that T can be trained on the next period."""
        return state.base.periods >= 2

    def _train_transfer(
        self, state: SmlState, data: PeriodData, rng: torch.Generator, progress: Progress | None
    ) -> SmlState:
        if not self.transfers(state):
            return state
        phase, passes = TransferPhase(self, state, data), self.config.transfer_epochs
        chain, best, kept = [], -math.inf, state
        for n in range(passes):
            phase.epoch(rng, part_of(progress, n, passes))
            weights, adam = phase.finish()
            chain.append(weights)
            # Without an AUC (a log of one class), or with equal ones, the first pass is kept.
            score = phase.auc() if passes > 1 else None
            if n == 0 or (score is not None and score > best):
                best = score if score is not None else -math.inf
                kept = replace(state, weights=weights, adam=adam, chain=tuple(chain))
            phase.assign()
        return kept

    def _update_base(
        self, state: SmlState, data: PeriodData, rng: torch.Generator, progress: Progress | None
    ) -> SmlState:
        if state.base.periods == 0:
            return replace(state, base=self.base.train(state.base, data, rng, progress))
        phase, epochs = BasePhase(self, state, data), self.base.config.epochs
        for n in range(epochs):
            phase.epoch(rng, part_of(progress, n, epochs))
        return replace(state, base=replace(state.base, pending=phase.finish()))

    def _generate(self, state: SmlState) -> SmlState:
        """Write all that is as large as the tables."""
        if state.previous is None:
            base = self.base.committed(state.base)
            return replace(state, base=base, previous=base.params, generated=base.params)
        device = self.execution.torch_device
        assigned = self.transfer.generate(state.chain, state.previous, state.base.params, device=device)
        # In both models an untrained new row is a copy of the cold row of the assigned model.
        base = self.base.committed(replace(state.base, params=assigned))
        sizes = table_sizes(base.params)
        previous = {name: grow(p, sizes[name]) if name in sizes else p for name, p in assigned.items()}
        generated = self.transfer.generate([state.weights], previous, base.params, device=device)
        try:
            self.model.check(generated)
        except ValueError as error:
            raise DivergedError(str(error)) from error
        return replace(state, base=base, chain=(), previous=previous, generated=generated)

    @override
    def signature(self) -> dict[str, Any]:
        return super().signature() | {"output": self.config.output}

    @override
    def dump(self, state: SmlState) -> dict[str, Checkpoint]:
        passes, learned = len(state.chain), state.previous is not None
        parts = {"updater": self.header(passes=passes, learned=learned), **dump_base(self.model, state.base)}
        parts["transfer"] = Checkpoint("transfer", {}, state.weights)
        parts["transfer_optimizer"] = dump_adam(state.adam)
        if passes:
            earlier = {f"{n}.{name}": w for n, weights in enumerate(state.chain[:-1]) for name, w in weights.items()}
            parts["chain"] = Checkpoint("transfer", {}, earlier)
        for name, params in (("previous", state.previous), ("generated", state.generated)):
            if params is not None:
                parts[name] = Checkpoint("model", {"model": self.model.config.to_json()}, params)
        return parts

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> SmlState:
        meta = self.check_header(parts)
        passes, learned = meta["passes"], meta["learned"]
        expected = {"updater", *BASE_PARTS, "transfer", "transfer_optimizer"}
        expected |= ({"previous", "generated"} if learned else set()) | ({"chain"} if passes else set())
        self.check_parts(parts, expected, optional={"pending"})
        weights = dict(parts["transfer"].tensors)
        chain = [*(tensors_of(parts["chain"], f"{n}.") for n in range(passes - 1)), weights] if passes else []
        for transfer in (weights, *chain[:-1]):
            self.transfer.check(transfer)
        adam = load_adam(parts["transfer_optimizer"])
        adam.check(weights)
        previous, generated = (dict(parts[n].tensors) if learned else None for n in ("previous", "generated"))
        for params in (previous, generated):
            if params is not None:
                self.model.check(params)
        return SmlState(
            base=load_base(self.model, parts),
            weights=weights,
            adam=adam,
            chain=tuple(chain),
            previous=previous,
            generated=generated,
        )


class TransferPhase:
    """Training of T on the rows that a period touches; both models are fixed."""

    def __init__(self, updater: Sml, state: SmlState, data: PeriodData) -> None:
        """Copy the rows out of the models; ids that are newer than the tables read the cold row."""
        assert state.previous is not None
        self.updater, self.model, self.transfer = updater, updater.model, updater.transfer
        self.device = updater.execution.torch_device
        (self.data,), rows = excerpt([self.model.reads(data)], self.model.tables, sizes=table_sizes(state.base.params))
        self.previous, self.trained = (
            {name: t.to(self.device) for name, t in take(params, rows).items()}
            for params in (state.previous, state.base.params)
        )
        self.weights = {name: w.to(self.device, copy=True) for name, w in state.weights.items()}
        self.adam = Adam(self.weights, state.adam.copied_to(self.device), lr=updater.config.lr)

    def epoch(self, rng: torch.Generator, progress: Progress | None = None) -> None:
        """One shuffled pass: argmin_ω L(T_ω(Θ', Θ) | D)."""
        order = torch.randperm(len(self.data), generator=rng)
        epoch = Epoch([self.data], [order.split(self.updater.config.batch_size)])
        target = epoch.label.to(self.device)
        dense = [name for name in self.trained if name not in self.model.table_widths]
        for s in range(len(epoch)):
            local = epoch.local(s, target)
            (batch,) = local.batches
            previous, trained = (
                {name: m[name][rows] for name, rows in local.rows.items()} | {name: m[name] for name in dense}
                for m in (self.previous, self.trained)
            )
            leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
            used = self.transfer.apply(leaves, previous, trained)
            loss = cross_entropy(self.model.logits(used, batch, local.features), batch)
            descend(self.adam, loss, leaves, {})
            if progress:
                progress((s + 1) / len(epoch))

    def auc(self) -> float | None:
        """The AUC of T(Θ', Θ) on the period; None if it has only one class."""
        used = self.transfer.generate([self.weights], self.previous, self.trained)
        return auc(self.updater.base.predicted(used, self.data), self.data.label)

    def assign(self) -> None:
        """Θ := T(Θ', Θ)."""
        self.trained = self.transfer.generate([self.weights], self.previous, self.trained)

    def finish(self) -> tuple[Params, AdamState]:
        """A copy of the current ω and its optimizer, on the CPU.

        Raises:
            DivergedError: a weight is NaN or infinite.
        """
        try:
            self.transfer.check(self.weights)
        except ValueError as error:
            raise DivergedError(str(error)) from error
        cpu = torch.device("cpu")
        return {n: w.to(cpu, copy=True) for n, w in self.weights.items()}, self.adam.state.copied_to(cpu)


class BasePhase:
    """Training of Θ through T on the rows that a period touches."""

    def __init__(self, updater: Sml, state: SmlState, data: PeriodData) -> None:
        """Copy the rows out of the assigned model, which is also the new Θ'."""
        assert state.previous is not None
        if updater.transfers(state) and not state.chain:
            raise ValueError("state: expected one after the stage train_transfer; received one before it")
        self.updater, self.model, self.transfer = updater, updater.model, updater.transfer
        self.session = updater.base.session(state.base, [data])
        device = updater.execution.torch_device
        before = {name: t.to(device) for name, t in take(state.previous, self.session.rows).items()}
        self.previous = self.transfer.generate(state.chain, before, self.session.params)
        for name, t in self.previous.items():
            self.session.params[name].copy_(t)
        self.weights = {name: w.to(device) for name, w in state.weights.items()}

    def epoch(self, rng: torch.Generator, progress: Progress | None = None) -> None:
        """One shuffled pass: argmin_Θ L(T(Θ', Θ) | D)."""
        config, optimizer, (data,) = self.updater.base.config, self.session.optimizer, self.session.periods
        order = torch.randperm(len(data), generator=rng)
        epoch = Epoch([data], [order.split(config.batch(len(data)))], cold_rate=config.cold_rate, rng=rng)
        target = epoch.label.to(self.updater.execution.torch_device)
        dense = {name: t for name, t in self.previous.items() if name not in self.session.rows}
        for s in range(len(epoch)):
            local = epoch.local(s, target)
            (batch,) = local.batches
            leaves = {name: optimizer.read(name, rows) for name, rows in local.rows.items()}
            leaves |= {name: self.session.params[name] for name in dense}
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            previous = {name: self.previous[name][rows] for name, rows in local.rows.items()} | dense
            used = self.transfer.apply(self.weights, previous, leaves)
            loss = cross_entropy(self.model.logits(used, batch, local.features), batch)
            descend(optimizer, loss, leaves, local.rows)
            if progress:
                progress((s + 1) / len(epoch))
        optimizer.settle()

    def finish(self) -> RowUpdate:
        """The trained rows, to be put into the assigned tables.

        Raises:
            DivergedError: a parameter is NaN or infinite.
        """
        return self.session.finish()
