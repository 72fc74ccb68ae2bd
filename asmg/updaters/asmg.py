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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional
from typing_extensions import override

from asmg.batch import InteractionBatch, PeriodData, localise
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.generator import DENSE, GeneratorConfig, GRUGenerator, HiddenState, read_rows
from asmg.metrics import logloss
from asmg.models import EmbeddingMLP, EmbeddingMLPConfig, Params
from asmg.training import Adam, AdamState, Progress, finite, predict_logits
from asmg.updaters.base import Updater
from asmg.updaters.iu import BaseState, IncrementalUpdate, TrainingConfig, dump_adam, dump_data, load_adam, load_data

__all__ = ["AsmgConfig", "AsmgGru", "AsmgState"]


@dataclass(frozen=True, kw_only=True)
class AsmgConfig:
    """How the generator is trained."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The generator's shape."""
    window: int = 3
    """k, the number of most recent models that it reads."""
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

    def __post_init__(self) -> None:
        if not (self.window > 0 and self.lr > 0 and self.batch_size > 0 and self.epochs > 0):
            raise ValueError(f"asmg: expected positive window, lr, batch_size, epochs; received {self}")
        if self.max_epochs < self.epochs or self.min_steps < 0:
            raise ValueError(f"asmg: expected max_epochs ≥ epochs and min_steps ≥ 0; received {self}")
        if self.loss_weights not in ("linear", "uniform", "last"):
            raise ValueError(f"loss_weights: expected linear, uniform or last; received {self.loss_weights!r}")
        if not self.blends or list(self.blends) != sorted(set(self.blends)) or min(self.blends) < 0:
            raise ValueError(f"blends: expected distinct fractions ≥ 0, ascending; received {self.blends}")
        if not 0 <= self.evidence_decay <= 1:
            raise ValueError(f"evidence_decay: expected a number in [0, 1]; received {self.evidence_decay}")

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


class AsmgGru(Updater[AsmgState]):
    """ASMG with the GRU meta generator on Embedding&MLP."""

    name: ClassVar[str] = "asmg-gru-multi"
    stages: ClassVar[tuple[str, ...]] = ("train_generator", "update_base", "generate")

    def __init__(
        self,
        model: EmbeddingMLPConfig,
        config: AsmgConfig | None = None,
        training: TrainingConfig | None = None,
    ) -> None:
        self.base = IncrementalUpdate(model, training)
        self.model: EmbeddingMLP = self.base.model
        self.config = config or AsmgConfig()
        self.generator = GRUGenerator(self.config.generator, self.model)

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
    def run_stage(
        self, stage: str, state: AsmgState, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> AsmgState:
        if stage == "train_generator":
            return self._train_generator(state, data, rng, progress)
        if stage == "update_base":
            base = self.base.run_stage("update_base", state.base, data, rng=rng, progress=progress)
            models = (*state.models, base.params)[-self.config.window :]
            return replace(state, base=base, models=models)
        if stage == "generate":
            generated = self.generator.generate(state.weights, state.models, state.hidden)
            self.model.check(generated)
            return replace(state, generated=generated)
        raise ValueError(f"stage: expected one of {self.stages}; received {stage!r}")

    @override
    def serving_models(self, state: AsmgState) -> dict[str, Params]:
        if state.generated is None:
            return {}
        return {"generated": self.blended(state, self.trust(state))} | self.base.serving_models(state.base)

    def trust(self, state: AsmgState) -> float:
        """α, the fraction that did best so far; the smallest of equals, hence 0 as long as there is no evidence."""
        return min(zip(state.evidence, self.config.blends, strict=True))[1]

    def blended(self, state: AsmgState, fraction: float) -> Params:
        """Θ_t + fraction·(Θ*_t - Θ_t)."""
        if state.generated is None:
            raise ValueError("state: expected one that has learned a period; received the initial one")
        return {name: torch.lerp(p, state.generated[name], fraction) for name, p in state.base.params.items()}

    def _weigh(self, state: AsmgState, data: PeriodData) -> tuple[float, ...]:
        """The evidence with this period's losses, taken before anything is trained on it."""
        if len(self.config.blends) == 1:
            return state.evidence
        decay = self.config.evidence_decay
        return tuple(
            decay * old + logloss(predict_logits(self.model, self.blended(state, fraction), data), data.label)
            for old, fraction in zip(state.evidence, self.config.blends, strict=True)
        )

    def _train_generator(
        self, state: AsmgState, data: PeriodData, rng: torch.Generator, progress: Progress | None
    ) -> AsmgState:
        kept = (*state.data, data)[-max(1, self.config.window - 1) :] if self.config.window > 1 else ()
        if not state.models:
            return replace(state, data=kept)
        targets = (*state.data, data)[-len(state.models) :]
        evidence = self._weigh(state, data)
        weights = {name: w.clone() for name, w in state.weights.items()}
        optimizer = Adam(weights, state.adam.grown({}), lr=self.config.lr)
        epochs = self.epochs(len(data))
        for epoch in range(epochs):
            self._epoch(optimizer, state, targets, rng, progress, epoch, epochs)
        self.generator.check(weights)
        hidden = state.hidden
        if self.config.carry_hidden and len(state.models) == self.config.window:
            hidden = self.generator.advance(weights, state.models[0], state.hidden)
        return replace(state, weights=weights, adam=optimizer.state, hidden=hidden, data=kept, evidence=evidence)

    def _epoch(
        self,
        optimizer: Adam,
        state: AsmgState,
        targets: tuple[PeriodData, ...],
        rng: torch.Generator,
        progress: Progress | None,
        epoch: int,
        epochs: int,
    ) -> None:
        """One pass: batch n holds the n-th part of every target period, each scored by the output for its period."""
        loss_weights = self.loss_weights(len(targets))
        steps = math.ceil(len(targets[-1]) / self.config.batch_size)
        sizes = {table: targets[-1].sizes[table] for table in self.model.tables}
        average = {name: w.clone() for name, w in optimizer.params.items()}
        for n, batches in enumerate(_concurrent_batches(targets, steps, rng)):
            used = [(j, b) for j, b in enumerate(batches) if loss_weights[j] > 0 and len(b.user)]
            local = localise([b for _, b in used], sizes, targets[-1].item_categories)
            leaves = {name: w.detach().requires_grad_() for name, w in optimizer.params.items()}
            outputs = {}
            for group in self.generator.groups:
                rows = local.rows.get(group)
                hidden = state.hidden[group] if rows is None else read_rows(state.hidden[group], rows)
                inputs = self.generator.inputs(state.models, group, rows)
                outputs[group], _ = self.generator.run(leaves, group, inputs, hidden)
            terms = []
            for (j, _), batch in zip(used, local.batches, strict=True):
                params = {group: outputs[group][j] for group in outputs if group != DENSE}
                logits = self.model.logits(params | self.generator.dense(outputs[DENSE][j]), batch, local.features)
                terms.append(loss_weights[j] * functional.binary_cross_entropy_with_logits(logits, batch.label))
            loss = torch.stack(terms).sum()
            finite(loss)
            optimizer.step(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)), {})
            for name, mean in average.items():
                mean.lerp_(optimizer.params[name], 1 / (n + 1))
            if progress:
                progress((epoch + (n + 1) / steps) / epochs)
        if self.config.average and epoch == epochs - 1:
            for name, mean in average.items():
                optimizer.params[name].copy_(mean)

    def epochs(self, events: int) -> int:
        """Passes over a window whose newest period has so many interactions."""
        steps = math.ceil(events / self.config.batch_size)
        return max(self.config.epochs, min(self.config.max_epochs, math.ceil(self.config.min_steps / steps)))

    def loss_weights(self, length: int) -> list[float]:
        """λ for a window of `length` targets, oldest first; they sum to 1 (slides: λ_j = j / Σ j')."""
        if self.config.loss_weights == "last":
            return [0.0] * (length - 1) + [1.0]
        if self.config.loss_weights == "uniform":
            return [1 / length] * length
        return [j / (length * (length + 1) / 2) for j in range(1, length + 1)]

    @override
    def dump(self, state: AsmgState) -> dict[str, Checkpoint]:
        meta: dict[str, Any] = {
            "updater": self.name,
            "config": self.config.to_json(),
            "models": len(state.models),
            "data": len(state.data),
            "evidence": list(state.evidence),
        }
        parts = self.base.dump(state.base)
        parts["generator"] = Checkpoint("generator", meta, state.weights)
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
        if "generator" not in parts:
            raise CheckpointError(f"{self.name}: expected a part generator; received {sorted(parts)}")
        generator = parts["generator"]
        meta = {"updater": self.name, "config": self.config.to_json()}
        received = {name: generator.meta.get(name) for name in meta}
        if received != meta:
            raise CheckpointError(f"generator: expected {meta}; received {received}")
        older_models, periods = range(generator.meta["models"] - 1, 0, -1), range(generator.meta["data"] - 1, -1, -1)
        expected = {"base", "optimizer", "generator_optimizer", "hidden"}
        expected |= {f"model.{age}" for age in older_models} | {f"data.{age}" for age in periods}
        if missing := expected - set(parts):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(parts)}")
        base = self.base.load({name: parts[name] for name in ("base", "optimizer")})
        older = [dict(parts[f"model.{age}"].tensors) for age in older_models]
        weights = dict(generator.tensors)
        self.generator.check(weights)
        generated = parts.get("generated")
        return AsmgState(
            base=base,
            models=(*older, base.params) if generator.meta["models"] else (),
            weights=weights,
            adam=load_adam(parts["generator_optimizer"]),
            hidden=dict(parts["hidden"].tensors),
            data=tuple(load_data(parts[f"data.{age}"]) for age in periods),
            evidence=tuple(generator.meta["evidence"]),
            generated=dict(generated.tensors) if generated is not None else None,
        )


def _concurrent_batches(
    targets: tuple[PeriodData, ...], steps: int, rng: torch.Generator
) -> Iterator[list[InteractionBatch]]:
    """Every period shuffled on its own and cut into `steps` nearly equal batches, consumed in lock-step."""
    orders = [torch.randperm(len(data), generator=rng).tensor_split(steps) for data in targets]
    for indices in zip(*orders, strict=True):
        yield [data.batch(index) for data, index in zip(targets, indices, strict=True)]
