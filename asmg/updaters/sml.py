"""SML, sequential meta-learning (Zhang et al., "How to Retrain Recommender System?", SIGIR 2020; methods.md, 8 and 9).

What predicts is never the trained model Θ itself but T(Θ', Θ), a transfer from the model Θ' before it
(`asmg.transfer`). One update, when the data D_{t+1} of a period has arrived:

1. train_transfer: ω_{t+1} = argmin_ω L(T_ω(Θ'_t, Θ_t) | D_{t+1}), both models fixed; then Θ_t := T(Θ'_t, Θ_t). Of
   several passes, each followed by its assignment, the one whose T(Θ', Θ) has the best AUC on D_{t+1} goes on.
2. update_base: Θ'_{t+1} = Θ_t, as just assigned, and Θ_{t+1} = argmin_Θ L(T(Θ'_{t+1}, Θ) | D_{t+1}) from there, T fixed
   and Adam's moments carried on although the numbers have jumped.
3. generate: the assignments, Θ_{t+1} and T(Θ'_{t+1}, Θ_{t+1}) over whole tables.

The first model is trained plainly and there is nothing to transfer from, so T begins to be trained on the third period
(with pretraining, on the second after it), as in the authors' release. There "the best of the epochs by the next
period's AUC" is reported; nobody can serve that, so here the last one is. With fewer `epochs` and the same `rng`
update_base gives just the model that more of them pass through.

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
from asmg.base_training import BaseState, BaseTraining, ModelConfig, TrainingConfig, part_of
from asmg.batch import Epoch, PeriodData, excerpt
from asmg.checkpoint import Checkpoint, dump_adam, load_adam, tensors_of
from asmg.metrics import auc
from asmg.models import MatrixFactorizationConfig, Params, forget, grow, table_sizes
from asmg.training import DivergedError, Execution, Progress, RowUpdate, cross_entropy, finite, take
from asmg.transfer import Output, Transfer
from asmg.updaters.base import Updater

__all__ = ["BasePhase", "Sml", "SmlConfig", "SmlState", "TransferPhase"]


@dataclass(frozen=True, kw_only=True)
class SmlConfig:
    """How the transfer T is made and trained; the base model's part is TrainingConfig's (`lr`, `epochs`)."""

    output: Output = "residual"
    """What a transfer net emits: a correction of the trained model, at first none, or the model itself."""
    lr: float = 1e-3
    """Adam's step size for T."""
    batch_size: int = 256
    """Interactions a batch when T is trained."""
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
        """The authors' settings of the base model's training: lr 1e-2, in SML's pretraining 1e-3; SML-MF's 5 passes."""
        mf = isinstance(model, MatrixFactorizationConfig)
        settings = {"lr": 1e-2, "first_lr": 1e-2 if mf else 1e-3, "epochs": 5 if mf else 1}
        return TrainingConfig.reference(**{**settings, **changes})

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SmlState:
    """Everything that is kept between periods and stages."""

    base: BaseState
    """Θ_t with its optimizer; what was learned since starts from the assigned one."""
    weights: Params
    """ω, the transfer T."""
    adam: AdamState
    """T's optimizer."""
    chain: tuple[Params, ...] = ()
    """The T's of train_transfer that are to be applied to Θ_t one after the other, the last one being `weights`; empty
    between updates."""
    previous: Params | None = None
    """Θ'_t, of the size of Θ_t; None before the first period."""
    generated: Params | None = None
    """T(Θ'_t, Θ_t), what predicts; None before the first period."""


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
        self.base = BaseTraining(model, training or TrainingConfig(), execution or Execution())
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
        """See Updater. After the first period, which was learned without T, the two are the same."""
        return {} if state.generated is None else {"generated": state.generated, "incremental": state.base.params}

    def transfers(self, state: SmlState) -> bool:
        """Whether Θ_t has been trained through T, so that there is something to be learned of T."""
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
            # Of one pass there is no choice. A log of one class has no AUC: the first then, as of equals.
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
        """All that is as large as the tables."""
        if state.previous is None:
            base = self.base.committed(state.base)
            return replace(state, base=base, previous=base.params, generated=base.params)
        device = self.execution.torch_device
        assigned = self.transfer.generate(state.chain, state.previous, state.base.params, device=device)
        # A new row, if not touched, is the cold row of what was assigned, in both models.
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
        parts = {"updater": self.header(passes=passes, learned=learned), **self.base.dump(state.base)}
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
        expected = {"updater", "base", "optimizer", "transfer", "transfer_optimizer"}
        expected |= ({"previous", "generated"} if learned else set()) | ({"chain"} if passes else set())
        self.check_parts(parts, expected | ({"pending"} & set(parts)))
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
            base=self.base.load(parts),
            weights=weights,
            adam=adam,
            chain=tuple(chain),
            previous=previous,
            generated=generated,
        )


class TransferPhase:
    """Training of T on the rows that a period touches, with both models fixed."""

    def __init__(self, updater: Sml, state: SmlState, data: PeriodData) -> None:
        """Take the rows out; an id that is younger than the tables is the cold row."""
        assert state.previous is not None
        self.updater, self.model, self.transfer = updater, updater.model, updater.transfer
        self.device = updater.execution.torch_device
        (self.data,), rows = excerpt([self.model.reads(data)], self.model.tables, sizes=table_sizes(state.base.params))
        self.previous, self.trained = (
            {name: t.to(self.device) for name, t in take(params, rows).items()}
            for params in (state.previous, state.base.params)
        )
        self.weights = {name: w.to(self.device, copy=True) for name, w in state.weights.items()}
        moments = (
            {n: m.to(self.device, copy=True) for n, m in ms.items()} for ms in (state.adam.first, state.adam.second)
        )
        first, second = moments
        self.adam = Adam(self.weights, replace(state.adam, first=first, second=second), lr=updater.config.lr)

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
            finite(loss.item())
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            self.adam.step(dict(zip(leaves, gradients, strict=True)), {})
            if progress:
                progress((s + 1) / len(epoch))

    def auc(self) -> float | None:
        """That of T(Θ', Θ) on the period; None where it is of one class."""
        used = self.transfer.generate([self.weights], self.previous, self.trained)
        return auc(self.updater.base.predicted(used, self.data), self.data.label)

    def assign(self) -> None:
        """Θ := T(Θ', Θ)."""
        self.trained = self.transfer.generate([self.weights], self.previous, self.trained)

    def finish(self) -> tuple[Params, AdamState]:
        """A copy of ω and its optimizer as they are now, on the CPU; DivergedError where a weight is not finite."""
        try:
            self.transfer.check(self.weights)
        except ValueError as error:
            raise DivergedError(str(error)) from error
        cpu = torch.device("cpu")
        state = self.adam.state
        first, second = ({n: m.to(cpu, copy=True) for n, m in ms.items()} for ms in (state.first, state.second))
        weights = {n: w.to(cpu, copy=True) for n, w in self.weights.items()}
        return weights, replace(state, first=first, second=second)


class BasePhase:
    """Training of Θ through T on the rows that a period touches."""

    def __init__(self, updater: Sml, state: SmlState, data: PeriodData) -> None:
        """Take the rows out of the assigned model, which is also Θ' from now on."""
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
            finite(loss.item())
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            optimizer.step(dict(zip(leaves, gradients, strict=True)), local.rows)
            if progress:
                progress((s + 1) / len(epoch))
        optimizer.settle()

    def finish(self) -> RowUpdate:
        """The trained rows, to be put into the assigned tables; DivergedError where a number is not finite."""
        return self.session.finish()
