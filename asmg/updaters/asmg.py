"""ASMG-GRU (the paper's proposed method and its variants): Θ*_t = M_ω(Θ_{t-k+1:t}, h_{t-k}).

One update, when the data D_{t+1} of a period has arrived:

1. train_generator: ω_{t+1} = argmin_ω Σ_i λ_i L(M_ω(Θ_{t-k+1:i}, h_{t-k}) | D_{i+1}), i = t-k+1 … t, from ω_t. The k
   periods are learned concurrently ("Training Strategy 2") from a carried hidden state ("Training Strategy 1"), which
   then moves on.
2. update_base: Θ_{t+1} by IU; the chain of incremental models never sees a generated one.
3. generate: Θ*_{t+1} over whole tables.

Some additions keep a generator that has seen little from doing harm; `AsmgConfig.reference` is without them:

* Θ* is Θ_t plus a correction that begins with zero (`asmg.generator`).
* ω is the average of the iterates of a pass (Polyak), since the last iterate of Adam at this step size is noisy.
* Θ*_t is trusted as far as it has earned: what is served is Θ_t + α·(Θ*_t - Θ_t). A few fractions α compete on the
  periods so far, each scored before anything was trained on it, and the one with the largest gain over α = 0, which is
  IU, wins; a gain counts for what is left of it `caution` standard errors below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from asmg.adam import AdamState
from asmg.base_training import BaseState, BaseTraining, ModelConfig, TrainingConfig, part_of
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError, dump_adam, dump_data, load_adam, load_data
from asmg.generator import (
    Generator,
    GeneratorConfig,
    GRUGenerator,
    HiddenState,
    LinearConfig,
    LinearGenerator,
)
from asmg.generator_training import GeneratorTraining
from asmg.models import Params, forget, read_rows
from asmg.training import Execution, Progress, narrow, take
from asmg.updaters.base import Updater

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
    lr: float = 3e-2
    """Adam's step size for ω."""
    dense_share: float = 1.0
    """Share of `lr` by which the weights of the MLP's GRUs move, of which each scalar has a set of its own."""
    batch_size: int = 256
    """Interactions a batch of the newest period; the others are cut into as many batches."""
    epochs: int = 1
    """Passes over the window's data."""
    average: bool = True
    """Whether ω becomes the average of the iterates of the last pass instead of the last iterate."""
    blends: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The fractions α that compete, ascending; (1.0,) trusts the generator blindly."""
    evidence_decay: float = 0.9
    """What a period-old gain of a fraction still counts."""
    caution: float = 1.0
    """Standard errors by which a gain has to exceed zero before it counts."""
    full_window: bool = False
    """Whether training waits until there are k models."""
    skip_first: bool = False
    """Whether the first model, that of pretraining, stays out of the sequence."""

    def __post_init__(self) -> None:
        if not ((self.window is None or self.window > 0) and self.lr > 0 and self.batch_size > 0 and self.epochs > 0):
            raise ValueError(f"asmg: expected positive window, lr, batch_size, epochs; received {self}")
        if not 0 < self.dense_share <= 1:
            raise ValueError(f"dense_share: expected a number in (0, 1]; received {self.dense_share}")
        if self.loss_weights not in ("linear", "uniform", "last"):
            raise ValueError(f"loss_weights: expected linear, uniform or last; received {self.loss_weights!r}")
        if not self.blends or list(self.blends) != sorted(set(self.blends)) or min(self.blends) < 0:
            raise ValueError(f"blends: expected distinct fractions ≥ 0, ascending; received {self.blends}")
        if self.caution < 0:
            raise ValueError(f"caution: expected a number ≥ 0; received {self.caution}")
        if not 0 <= self.evidence_decay <= 1:
            raise ValueError(f"evidence_decay: expected a number in [0, 1]; received {self.evidence_decay}")

        if isinstance(self.generator, LinearConfig):
            if self.generator.window != self.window:
                raise ValueError(f"window: expected the generator's, {self.generator.window}; received {self.window}")
            if self.carry_hidden:
                raise ValueError("carry_hidden: expected False with the linear generator; received True")

    @classmethod
    def reference(cls, **changes: Any) -> "AsmgConfig":
        """The authors' settings (methods.md, sections 6 and 7)."""
        settings: dict[str, Any] = {
            "generator": GeneratorConfig(output="direct"),
            "lr": 1e-2,
            "average": False,
            "blends": (1.0,),
            "full_window": True,
            "skip_first": True,
        }
        return cls(**{**settings, **changes})

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self) | {"blends": list(self.blends)}


class Gain(NamedTuple):
    """By how much a fraction did better than α = 0 so far, on logs that nothing had been trained on."""

    total: float = 0.0
    """Σ of the reductions of the interactions' losses, older periods decayed."""
    squares: float = 0.0
    """Σ of their squares, likewise: the variance of `total`."""

    def after(self, reduction: Tensor, decay: float) -> "Gain":
        """With one more period, of which `reduction` are the interactions' [N]."""
        return Gain(
            decay * self.total + float(reduction.sum()),
            decay**2 * self.squares + float((reduction**2).sum()),
        )

    def certain(self, caution: float) -> float:
        """The part of it that is certain."""
        return self.total - caution * math.sqrt(self.squares)


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
    evidence: tuple[Gain, ...]
    """Of each of the config's `blends`."""
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
        """See Updater. The base model is drawn first: it is the same whatever the generator is."""
        return self._begun(self.base.initial(rng), rng)

    def _begun(self, base: BaseState, rng: torch.Generator) -> AsmgState:
        """A state with a fresh generator."""
        weights = self.generator.initial(rng)
        return AsmgState(
            base=base,
            models=(),
            weights=weights,
            adam=AdamState.zeros(weights),
            hidden=self.generator.initial_hidden(),
            data=(),
            evidence=(Gain(),) * len(self.config.blends),
            generated=None,
        )

    @override
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> AsmgState:
        """See Updater. Where `skip_first`, the given model is not part of the sequence."""
        state = replace(self._begun(base, rng), models=(base.params,), generated=base.params)
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
    def forgotten(self, state: AsmgState, rows: Mapping[str, Tensor]) -> AsmgState:
        base = self.base.forgotten(state.base, rows)
        return replace(
            state,
            base=base,
            models=(*(forget(m, rows) for m in state.models[:-1]), base.params) if state.models else (),
            hidden=forget(state.hidden, rows),
            data=tuple(data.forgotten(rows) for data in state.data),
            generated=None if state.generated is None else forget(state.generated, rows),
        )

    @override
    def serving_models(self, state: AsmgState) -> dict[str, Params]:
        if state.generated is None:
            return {}
        return {"generated": self.blended(state, self.trust(state)), "incremental": state.base.params}

    def trust(self, state: AsmgState) -> float:
        """α, the fraction with the largest certain gain; the smallest as long as none has any."""
        gains = [gain.certain(self.config.caution) for gain in state.evidence]
        best = max(range(len(gains)), key=lambda i: gains[i])
        return self.config.blends[best if gains[best] > 0 else 0]

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

    def _full(self, models: Sequence[Params]) -> bool:
        return len(models) == self.config.window

    def _weigh(self, state: AsmgState, data: PeriodData) -> tuple[Gain, ...]:
        """The evidence with this period's, taken before anything is trained on it."""
        if len(self.config.blends) == 1 or state.generated is None:
            return state.evidence
        (plain, generated), small = narrow(self.model, [state.base.params, state.generated], data)

        def losses(params: Params) -> Tensor:
            logits = self.base.predicted(params, small).double()
            return functional.binary_cross_entropy_with_logits(logits, small.label.double(), reduction="none")

        base = losses(plain)
        return tuple(
            gain.after(base - losses(blend(plain, generated, fraction)), self.config.evidence_decay)
            for gain, fraction in zip(state.evidence, self.config.blends, strict=True)
        )

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
        session = GeneratorTraining(
            self.generator,
            state.weights,
            state.adam,
            state.models,
            state.hidden,
            targets,
            loss_weights=self.loss_weights(len(targets)),
            lr=self.config.lr,
            dense_share=self.config.dense_share,
            execution=self.execution,
        )
        epochs = self.config.epochs
        for epoch in range(epochs):
            session.epoch(
                batch_size=self.config.batch_size,
                rng=rng,
                average=self.config.average and epoch == epochs - 1,
                progress=part_of(progress, epoch, epochs),
            )
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

    @override
    def rehearse(
        self,
        state: AsmgState,
        data: PeriodData,
        held_out: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """See Updater. Beside it what ω_t, which has not seen this period, makes of the sequence that ends with it."""
        found = self.base.rehearsed(state.base, data, held_out, rng, progress)
        models: dict[str, Params] = {"incremental": found.params}
        if state.models and found.rows is not None:
            rows = found.rows
            hidden = {group: read_rows(h, rows[group]) if group in rows else h for group, h in state.hidden.items()}
            generated, _, _ = self._read(state.weights, [*(take(m, rows) for m in state.models), found.params], hidden)
            models["generated"] = blend(found.params, generated, self.trust(state))
        return {name: self.base.predicted(params, found.held_out) for name, params in models.items()}

    def _generate(self, state: AsmgState) -> AsmgState:
        """The tables of Θ_{t+1}, the state before the next window, and Θ*_{t+1}: all that is as large as the tables."""
        base = self.base.committed(state.base)
        models = (*state.models, base.params)
        if self.config.skip_first and base.periods == 1:
            models = ()
        if not models:
            return replace(state, base=base, generated=base.params)
        generated, hidden, leaving = self._read(state.weights, models, state.hidden)
        self.model.check(generated)
        models = models[1:] if leaving else models
        return replace(state, base=base, models=models, hidden=hidden, generated=generated)

    def _read(self, weights: Params, models: Sequence[Params], hidden: HiddenState) -> tuple[Params, HiddenState, bool]:
        """Θ* of a sequence that got longer by one, the state before the next, and whether the oldest model leaves."""
        leaving = self.config.window is not None and len(models) > self.config.window
        advance = leaving and self.config.carry_hidden
        read = models if advance or not leaving else models[1:]
        generated, hidden = self.generator.generate(
            weights,
            read,
            hidden,
            advance=int(advance),
            compiled=self.execution.compiled,
            device=self.execution.torch_device,
        )
        return generated, hidden, leaving

    @override
    def signature(self) -> dict[str, Any]:
        config = self.config.to_json()
        return super().signature() | {name: config[name] for name in ("generator", "window", "blends")}

    @override
    def dump(self, state: AsmgState) -> dict[str, Checkpoint]:
        header = {"models": len(state.models), "data": len(state.data), "evidence": [list(g) for g in state.evidence]}
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
        if base.periods and "generated" not in parts:
            raise CheckpointError(
                f"{self.name}: expected the part generated of a state that has learned; received none"
            )
        weights = dict(parts["generator"].tensors)
        self.generator.check(weights)
        adam = load_adam(parts["generator_optimizer"])
        adam.check(weights)
        hidden = dict(parts["hidden"].tensors)
        self.generator.check_hidden(hidden)
        models = tuple(dict(parts[f"model.{age}"].tensors) for age in older)
        generated = dict(parts["generated"].tensors) if "generated" in parts else None
        for params in (*models, *([] if generated is None else [generated])):
            self.model.check(params)
        return AsmgState(
            base=base,
            models=(*models, base.params) if meta["models"] else (),
            weights=weights,
            adam=adam,
            hidden=hidden,
            data=tuple(load_data(parts[f"data.{age}"]) for age in periods),
            evidence=tuple(Gain(*gain) for gain in meta["evidence"]),
            generated=generated,
        )


def blend(plain: Mapping[str, Tensor], generated: Mapping[str, Tensor], fraction: float) -> Params:
    """Plain + fraction·(generated - plain)."""
    return {name: torch.lerp(p, generated[name], fraction) for name, p in plain.items()}
