"""ASMG-GRU (the paper's proposed method and its variants): Θ*_t = M_ω(Θ_{t-k+1:t}, h_{t-k}).

One update, when the data D_{t+1} of a period has arrived:

1. train_generator: ω_{t+1} = argmin_ω Σ_i λ_i L(M_ω(Θ_{t-k+1:i}, h_{t-k}) | D_{i+1}), i = t-k+1 … t, from ω_t. The k
   periods are learned concurrently ("Training Strategy 2") from a carried hidden state ("Training Strategy 1"), which
   then moves on.
2. update_base: Θ_{t+1} by IU; the chain of incremental models never sees a generated one.
3. generate: Θ*_{t+1} over whole tables.

Two additions keep a generator that has seen little from doing harm; both can be switched off for the paper's method:

* ω is the average of the iterates of a pass (Polyak), since the last iterate of Adam at this step size is noisy.
* Θ*_t is trusted as far as it has earned: what is served is Θ_t + α·(Θ*_t - Θ_t), α being the best of a few fractions
  on the periods so far, each scored before anything was trained on it. α = 0 is IU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from asmg import kernels
from asmg.batch import Epoch, PeriodData, excerpt
from asmg.checkpoint import Checkpoint, dump_adam, dump_data, load_adam, load_data
from asmg.generator import (
    DENSE,
    Generator,
    GeneratorConfig,
    GRUGenerator,
    HiddenState,
    LinearConfig,
    LinearGenerator,
    from_lanes,
    to_lanes,
)
from asmg.metrics import logloss
from asmg.models import Params, read_rows, table_sizes
from asmg.training import (
    CHUNK,
    Adam,
    AdamState,
    DivergedError,
    Execution,
    Progress,
    finite,
    narrow,
    predict_logits,
)
from asmg.updaters.base import Updater
from asmg.updaters.iu import BaseState, BaseTraining, ModelConfig, TrainingConfig, part_of

__all__ = ["Asmg", "AsmgConfig", "AsmgState"]


@dataclass(frozen=True, kw_only=True)
class AsmgConfig:
    """How the generator is trained."""

    generator: GeneratorConfig | LinearConfig = field(default_factory=GeneratorConfig)
    """The generator's shape, and which one it is."""
    window: int | None = 3
    """k, the number of most recent models that it reads; None for all (full)."""
    loss_weights: Literal["linear", "uniform", "last"] = "linear"
    """λ: linear = j / Σj (multi), uniform = 1/k (unif), last = the newest period alone (single)."""
    carry_hidden: bool = True
    """Whether the window starts from the hidden state after the models before it; else from zeros (zero)."""
    lr: float = 1e-2
    """Adam's step size for ω."""
    batch_size: int = 256
    """Interactions a batch of the newest period; the others are cut into as many batches."""
    epochs: int = 2
    """Passes over the window's data, at least."""
    max_epochs: int = 4
    """Passes at most, over a period so small that `min_steps` would ask for more."""
    min_steps: int = 300
    """Optimizer steps that a period should get: a small one is passed over more often."""
    average: bool = True
    """Whether ω becomes the average of the iterates of the last pass instead of the last iterate."""
    blends: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The fractions α that compete, ascending; (1.0,) trusts the generator blindly."""
    evidence_decay: float = 0.8
    """What a period-old loss of a fraction still counts."""
    full_window: bool = False
    """Whether training waits until there are k models."""
    skip_first: bool = False
    """Whether the first model, that of pretraining, stays out of the sequence."""

    def __post_init__(self) -> None:
        if not ((self.window is None or self.window > 0) and self.lr > 0 and self.batch_size > 0 and self.epochs > 0):
            raise ValueError(f"asmg: expected positive window, lr, batch_size, epochs; received {self}")
        if self.max_epochs < self.epochs or self.min_steps < 0:
            raise ValueError(f"asmg: expected max_epochs ≥ epochs and min_steps ≥ 0; received {self}")
        if self.loss_weights not in ("linear", "uniform", "last"):
            raise ValueError(f"loss_weights: expected linear, uniform or last; received {self.loss_weights!r}")
        if not self.blends or list(self.blends) != sorted(set(self.blends)) or min(self.blends) < 0:
            raise ValueError(f"blends: expected distinct fractions ≥ 0, ascending; received {self.blends}")
        if not 0 <= self.evidence_decay <= 1:
            raise ValueError(f"evidence_decay: expected a number in [0, 1]; received {self.evidence_decay}")

        if isinstance(self.generator, LinearConfig) and self.generator.window != self.window:
            raise ValueError(f"window: expected the generator's, {self.generator.window}; received {self.window}")

    @classmethod
    def reference(cls, **changes: Any) -> "AsmgConfig":
        """The authors' settings (methods.md, sections 6 and 7)."""
        settings: dict[str, Any] = {
            "generator": GeneratorConfig(output="direct"),
            "epochs": 1,
            "max_epochs": 1,
            "min_steps": 0,
            "average": False,
            "blends": (1.0,),
            "full_window": True,
            "skip_first": True,
        }
        return cls(**{**settings, **changes})

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self) | {"blends": list(self.blends)}


@dataclass(frozen=True)
class AsmgState:
    """Everything that is kept between periods."""

    base: BaseState
    """The incremental model Θ_t and its optimizer."""
    models: tuple[Params, ...]
    """The last k incremental models, oldest first; the last one is `base.params`."""
    weights: Params
    """ω_t."""
    adam: AdamState
    """The generator's optimizer."""
    hidden: HiddenState
    """h, the state before the oldest of `models`."""
    data: tuple[PeriodData, ...]
    """The last k-1 periods' data, oldest first: with the next one the targets of a full window."""
    evidence: tuple[float, ...]
    """For each of the config's `blends` the decayed sum of its losses so far, each from before training."""
    generated: Params | None
    """Θ*_t as the generator emits it (α = 1), None before the first period."""


class Asmg(Updater[AsmgState]):
    """ASMG on any base model, with the GRU or the linear generator."""

    stages: ClassVar[tuple[str, ...]] = ("train_generator", "update_base", "generate")

    def __init__(
        self,
        model: ModelConfig,
        config: AsmgConfig | None = None,
        training: TrainingConfig | None = None,
        execution: Execution | None = None,
        *,
        name: str = "asmg-gru-multi",
    ) -> None:
        self.name, self.config = name, config or AsmgConfig()
        self.base = BaseTraining(model, training or TrainingConfig(), execution or Execution())
        self.model, self.execution = self.base.model, self.base.execution
        shape = self.config.generator
        self.generator: Generator = (
            LinearGenerator(shape, self.model) if isinstance(shape, LinearConfig) else GRUGenerator(shape, self.model)
        )

    @override
    def initial(self, rng: torch.Generator) -> AsmgState:
        weights = self.generator.initial(rng)
        return AsmgState(
            base=self.base.initial(rng),
            models=(),
            weights=weights,
            adam=AdamState.zeros(weights),
            hidden=self.generator.initial_hidden(),
            data=(),
            evidence=(0.0,) * len(self.config.blends),
            generated=None,
        )

    @override
    def pretrained(self, periods: Sequence[PeriodData], validation: PeriodData, *, rng: torch.Generator) -> AsmgState:
        """See Updater. Where `skip_first`, the pretrained model is not part of the sequence."""
        base = self.base.pretrained(periods, validation, rng)
        state = replace(self.initial(rng), base=base, models=(base.params,), generated=base.params)
        return replace(state, models=()) if self.config.skip_first else state

    @override
    def run_stage(
        self, stage: str, state: AsmgState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> AsmgState:
        if stage == "train_generator":
            return self._train_generator(state, data, rng, progress)
        if stage == "update_base":
            return replace(state, base=self.base.train(state.base, data, rng, progress))
        if stage == "generate":
            return self._generate(state)
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    @override
    def serving_models(self, state: AsmgState) -> dict[str, Params]:
        if state.generated is None:
            return {}
        return {"generated": self.blended(state, self.trust(state)), "incremental": state.base.params}

    def trust(self, state: AsmgState) -> float:
        """α, the fraction that did best so far; the smallest of equals, hence 0 as long as there is no evidence."""
        return min(zip(state.evidence, self.config.blends, strict=True))[1]

    def blended(self, state: AsmgState, fraction: float) -> Params:
        """Θ_t + fraction·(Θ*_t - Θ_t)."""
        if state.generated is None:
            raise ValueError("state: expected one that has learned a period; received the initial one")
        return blend(state.base.params, state.generated, fraction)

    def loss_weights(self, length: int) -> list[float]:
        """λ for a window of `length` targets, oldest first; they sum to 1 (slides: λ_j = j / Σ j')."""
        if self.config.loss_weights == "last":
            return [0.0] * (length - 1) + [1.0]
        if self.config.loss_weights == "uniform":
            return [1 / length] * length
        return [j / (length * (length + 1) / 2) for j in range(1, length + 1)]

    def epochs(self, events: int) -> int:
        """Passes over a window whose newest period has so many interactions."""
        steps = math.ceil(events / self.config.batch_size)
        return max(self.config.epochs, min(self.config.max_epochs, math.ceil(self.config.min_steps / steps)))

    def _full(self, models: Sequence[Params]) -> bool:
        return len(models) == self.config.window

    def _weigh(self, state: AsmgState, data: PeriodData) -> tuple[float, ...]:
        """The evidence with this period's losses, taken before anything is trained on it."""
        if len(self.config.blends) == 1 or state.generated is None:
            return state.evidence
        (plain, generated), small = narrow(self.model, [state.base.params, state.generated], data)
        losses = [
            logloss(predict_logits(self.model, blend(plain, generated, fraction), small), small.label)
            for fraction in self.config.blends
        ]
        return tuple(self.config.evidence_decay * old + loss for old, loss in zip(state.evidence, losses, strict=True))

    def _train_generator(
        self, state: AsmgState, data: PeriodData, rng: torch.Generator, progress: Progress | None
    ) -> AsmgState:
        if state.base.periods and (missing := set(self.model.tables) - set(data.sizes)):
            raise ValueError(f"data: expected rows for the tables {self.model.tables}; received none for {missing}")
        if not state.models:
            return replace(state, data=self._kept(state, data))
        evidence = self._weigh(state, data)
        state = replace(state, evidence=evidence)
        if self.config.full_window and self.config.window is not None and not self._full(state.models):
            return replace(state, data=self._kept(state, data))
        targets = (*state.data, data)[-len(state.models) :]
        session = GeneratorTraining(self, state, targets)
        epochs = self.epochs(len(data))
        for epoch in range(epochs):
            session.epoch(rng, part_of(progress, epoch, epochs), average=self.config.average and epoch == epochs - 1)
        weights, adam = session.finish()
        return replace(state, weights=weights, adam=adam, data=self._kept(state, data))

    def _kept(self, state: AsmgState, data: PeriodData) -> tuple[PeriodData, ...]:
        """The data that the next window needs: of one period fewer than it has models (and none before the first)."""
        models = len(state.models) + 1  # with the one that is about to be learned
        if not state.models and self.config.skip_first and state.base.periods == 0:
            models = 0
        if self.config.window is not None:
            models = min(models, self.config.window)
        return (*state.data, data)[-(models - 1) :] if models > 1 else ()

    def _generate(self, state: AsmgState) -> AsmgState:
        """The tables of Θ_{t+1}, the state before the next window, and Θ*_{t+1}: all that is as large as the tables."""
        base = self.base.committed(state.base)
        models = (*state.models, base.params)
        if self.config.skip_first and base.periods == 1:
            models = ()
        if not models:
            return replace(state, base=base, generated=base.params)
        leaving = self.config.window is not None and len(models) > self.config.window
        advance = leaving and self.config.carry_hidden
        read = models if advance or not leaving else models[1:]
        generated, hidden = self.generator.generate(
            state.weights,
            read,
            state.hidden,
            advance=int(advance),
            compiled=self.execution.compiled,
            device=self.execution.torch_device,
        )
        self.model.check(generated)
        models = models[1:] if leaving else models
        return replace(state, base=base, models=models, hidden=hidden, generated=generated)

    @override
    def signature(self) -> dict[str, Any]:
        config = self.config.to_json()
        return super().signature() | {name: config[name] for name in ("generator", "window", "blends")}

    @override
    def dump(self, state: AsmgState) -> dict[str, Checkpoint]:
        header = {"models": len(state.models), "data": len(state.data), "evidence": list(state.evidence)}
        parts = {"updater": self.header(**header), **self.base.dump(state.base)}
        parts["generator"] = Checkpoint("generator", {}, state.weights)
        parts["generator_optimizer"] = dump_adam(state.adam)
        parts["hidden"] = Checkpoint("hidden", {}, state.hidden)
        # Parts are counted from the newest, so the same model keeps its bytes while it moves through the window.
        for age, params in enumerate(reversed(state.models[:-1]), start=1):
            parts[f"model.{age}"] = Checkpoint("model", {"model": self.model.config.to_json()}, params)
        for age, data in enumerate(reversed(state.data)):
            parts[f"data.{age}"] = dump_data(data)
        if state.generated is not None:
            parts["generated"] = Checkpoint("model", {"model": self.model.config.to_json()}, state.generated)
        return parts

    @override
    def load(self, parts: Mapping[str, Checkpoint]) -> AsmgState:
        meta = self.check_header(parts)
        older, periods = range(meta["models"] - 1, 0, -1), range(meta["data"] - 1, -1, -1)
        expected = {"updater", "base", "optimizer", "generator", "generator_optimizer", "hidden"}
        expected |= {f"model.{age}" for age in older} | {f"data.{age}" for age in periods}
        self.check_parts(parts, expected | ({"pending", "generated"} & set(parts)))
        base = self.base.load(parts)
        weights = dict(parts["generator"].tensors)
        self.generator.check(weights)
        models = tuple(dict(parts[f"model.{age}"].tensors) for age in older)
        return AsmgState(
            base=base,
            models=(*models, base.params) if meta["models"] else (),
            weights=weights,
            adam=load_adam(parts["generator_optimizer"]),
            hidden=dict(parts["hidden"].tensors),
            data=tuple(load_data(parts[f"data.{age}"]) for age in periods),
            evidence=tuple(meta["evidence"]),
            generated=dict(parts["generated"].tensors) if "generated" in parts else None,
        )


def blend(plain: Mapping[str, Tensor], generated: Mapping[str, Tensor], fraction: float) -> Params:
    """Plain + fraction·(generated - plain)."""
    return {name: torch.lerp(p, generated[name], fraction) for name, p in plain.items()}


class GeneratorTraining:
    """Training of ω on a window: the rows that its logs touch, taken out of the models once."""

    def __init__(self, updater: Asmg, state: AsmgState, targets: Sequence[PeriodData]) -> None:
        """Take them out; output j of the generator is scored on the j-th of `targets`."""
        self.updater, self.generator, self.model = updater, updater.generator, updater.model
        self.execution, self.lr, self.models = updater.execution, updater.config.lr, state.models
        if not self.model.reads_history:
            targets = [data.without_history() for data in targets]
        self.small, self.rows = excerpt(targets, self.model.tables, sizes=table_sizes(state.models[-1]))
        weights = updater.loss_weights(len(targets))
        # Newest first, as an Epoch has it: the older outputs need fewer rows, the first ones of a step.
        self.used = [j for j in reversed(range(len(targets))) if weights[j] > 0]
        self.loss_weights = [weights[j] for j in self.used]
        device = self.execution.torch_device
        self.inputs, self.hidden = {}, {}
        for group in self.generator.groups:
            rows = self.rows.get(group)
            self.inputs[group] = torch.stack(self.generator.inputs(state.models, group, rows), 1).to(device)
            hidden = state.hidden[group] if rows is None else read_rows(state.hidden[group], rows)
            self.hidden[group] = hidden.to(device)
        self.weights = {name: w.to(device, copy=True) for name, w in state.weights.items()}
        adam = state.adam.clone()
        first, second = ({n: m.to(device) for n, m in moments.items()} for moments in (adam.first, adam.second))
        self.adam = Adam(self.weights, replace(adam, first=first, second=second), lr=self.lr)

    def epoch(self, rng: torch.Generator, progress: Progress | None, *, average: bool) -> None:
        """One pass: batch n holds the n-th part of every target period, each scored by the output for its period.

        With `average` ω becomes the mean of the iterates of this pass.
        """
        steps = math.ceil(len(self.small[-1]) / self.updater.config.batch_size)
        orders = [torch.randperm(len(data), generator=rng).tensor_split(steps) for data in self.small]
        epoch = Epoch([self.small[j] for j in self.used], [orders[j] for j in self.used])
        compiled = self.execution.uses_kernels(self.model) and isinstance(self.generator, GRUGenerator)
        (self._compiled if compiled else self._eager)(epoch, progress, average)

    def finish(self) -> tuple[Params, AdamState]:
        """ω and its optimizer, on the CPU; raises DivergedError where a weight is not finite."""
        try:
            self.generator.check(self.weights)
        except ValueError as error:
            raise DivergedError(str(error)) from error
        state = self.adam.state
        first, second = ({n: m.cpu() for n, m in moments.items()} for moments in (state.first, state.second))
        return {n: w.cpu() for n, w in self.weights.items()}, replace(state, first=first, second=second)

    def _eager(self, epoch: Epoch, progress: Progress | None, average: bool) -> None:
        target = epoch.label.to(self.execution.torch_device)
        mean = {name: w.clone() for name, w in self.weights.items()}
        for n in range(len(epoch)):
            local = epoch.local(n, target)
            leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
            outputs = {}
            for group in self.generator.groups:
                rows = local.rows.get(group)
                inputs, hidden = self.inputs[group], self.hidden[group]
                if rows is not None:
                    inputs, hidden = inputs[rows], hidden[rows]
                outputs[group], _ = self.generator.run(leaves, group, list(inputs.unbind(1)), hidden)
            terms = []
            for j, weight, batch in zip(self.used, self.loss_weights, local.batches, strict=True):
                if not len(batch.user):
                    continue
                params = {group: outputs[group][j] for group in outputs if group != DENSE}
                params |= self.generator.dense(outputs[DENSE][j]) if DENSE in outputs else {}
                logits = self.model.logits(params, batch, local.features)
                terms.append(weight * functional.binary_cross_entropy_with_logits(logits, batch.label))
            loss = torch.stack(terms).sum()
            finite(loss.item())
            self.adam.step(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)), {})
            for name, w in mean.items():
                w.lerp_(self.weights[name], 1 / (n + 1))
            if progress:
                progress((n + 1) / len(epoch))
        if average:
            for name, w in mean.items():
                self.weights[name].copy_(w)

    def _compiled(self, epoch: Epoch, progress: Progress | None, average: bool) -> None:
        groups, tables = self.generator.groups, list(self.rows)
        d = self.hidden[DENSE].shape[2]

        def flatten(values: Params) -> np.ndarray:
            """All groups, each as `to_lanes` has it."""
            return torch.cat([to_lanes(values, group).reshape(-1) for group in groups]).numpy()

        flat, moments = flatten(self.weights), (flatten(self.adam.first), flatten(self.adam.second))
        mean = flat.copy() if average else np.empty(0, np.float32)
        sizes = {group: to_lanes(self.weights, group).shape for group in groups}
        starts = dict(zip(groups, np.cumsum([0, *(math.prod(s) for s in sizes.values())]).tolist(), strict=False))
        views = {g: flat[starts[g] : starts[g] + math.prod(s)].reshape(s) for g, s in sizes.items()}
        if "category" not in views:  # the kernel reads three tables
            views["category"] = np.empty((len(views["user"]), 0), np.float32)
        inputs, states = [], []
        for table in ("user", "item", "category"):
            x = self.inputs[table] if table in tables else torch.zeros(1, *self.inputs["user"].shape[1:])
            h = self.hidden[table] if table in tables else torch.zeros(1, *self.hidden["user"].shape[1:])
            inputs.append(x.reshape(len(x), -1).contiguous().numpy())
            states.append(h.reshape(len(h), -1).contiguous().numpy())
        dense_input = self.inputs[DENSE][0].contiguous().numpy()
        dense_state = self.hidden[DENSE].transpose(1, 2).contiguous().numpy()
        losses = np.zeros(len(epoch))
        for start in range(0, len(epoch), CHUNK):
            stop = min(start + CHUNK, len(epoch))
            kernels.generator_steps(
                epoch.plan, start, stop, epoch.label.numpy(),
                np.array(self.loss_weights), np.array(self.used),
                tuple(inputs), tuple(states), dense_input, dense_state, self.generator.residual,  # type: ignore[attr-defined]
                (views["user"], views["item"], views["category"], views[DENSE]), flat, moments, mean,
                np.array(self.model.widths), self.adam.steps, self.lr, *self.adam.betas, self.adam.eps, losses,  # type: ignore[attr-defined]
            )  # fmt: skip
            for loss in losses[start:stop]:
                finite(float(loss))
            self.adam.steps += stop - start
            if progress:
                progress(stop / len(epoch))
        for target, numbers in (
            (self.weights, mean if average else flat), (self.adam.first, moments[0]), (self.adam.second, moments[1])
        ):  # fmt: skip
            for group, shape in sizes.items():
                lanes = numbers[starts[group] : starts[group] + math.prod(shape)].reshape(shape)
                for name, w in from_lanes(torch.from_numpy(lanes), group, d).items():
                    target[name].copy_(w)
