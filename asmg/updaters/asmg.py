"""ASMG-GRU (the paper's proposed method and its variants): Θ*_t = M_ω(Θ_{t-k+1:t}, h_{t-k}).

One update, when the data D_{t+1} of a period has arrived:

1. train_generator: ω_{t+1} = argmin_ω Σ_i λ_i L(M_ω(Θ_{t-k+1:i}, h_{t-k}) | D_{i+1}), i = t-k+1 … t, from ω_t. The k
   periods are learned together (the paper's "Training Strategy 2"), starting from a carried hidden state ("Training
   Strategy 1"), which then moves on by one model.
2. update_base: Θ_{t+1} by IU. The chain of incremental models never reads a generated model.
3. generate: Θ*_{t+1}, for whole tables or for the rows that the period's training read (`AsmgConfig.untouched`).

Three additions protect predictions from a generator that has learned little; `AsmgConfig.reference` is without them:

* Θ* is Θ_t plus a correction that starts at zero (`asmg.generator`).
* ω is the average of its values after each step of a pass (Polyak): Adam's last value at this step size is noisy.
* The served model is Θ_t + α·(Θ*_t - Θ_t), α being a fraction that was better than α = 0 (IU) on past periods before
  anything was trained on them (`asmg.updaters.trust`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from asmg.adam import AdamState
from asmg.base_state import BASE_PARTS, BaseState, dump_base, load_base
from asmg.base_training import BaseTraining
from asmg.batch import COLD_ROW, PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError, dump_adam, dump_data, load_adam, load_data
from asmg.generator import Generator, GRUGenerator, HiddenState, LinearConfig, LinearGenerator
from asmg.generator_training import GeneratorTraining
from asmg.models import ModelConfig, Params, forget, placed, read_rows
from asmg.rounding import rounded, rounded_moments
from asmg.training import Execution, Progress, TrainingConfig, narrow, part_of, take
from asmg.updaters.asmg_config import AsmgConfig
from asmg.updaters.base import ServedParts, Updater
from asmg.updaters.trust import Gain, blend

__all__ = ["Asmg", "AsmgState"]


@dataclass(frozen=True)
class AsmgState:
    """The state between periods."""

    base: BaseState
    """The incremental model Θ_t and its optimizer."""
    models: tuple[Params, ...]
    """The last k incremental models, oldest first; the last one is `base.params`."""
    weights: Params
    """ω_t, the generator's weights."""
    adam: AdamState
    """The generator's optimizer."""
    hidden: HiddenState
    """h, the generator's hidden state before the oldest of `models`."""
    data: tuple[PeriodData, ...]
    """The data of the last k - 1 periods, oldest first; with the next period, the targets of a full window."""
    evidence: tuple[Gain, ...]
    """The evidence for each of the configuration's `blends`."""
    generated: Params | None
    """Θ*_t as generated (α = 1); None before the first period."""


class Asmg(Updater[AsmgState]):
    """ASMG on any base model, with the GRU or the linear generator.

    Args:
        model: configuration of the base model.
        config: settings of ASMG; by default `AsmgConfig()`.
        training: settings of the base model's training.
        execution: where to compute.
        name: of the variant, as `asmg.updaters.UPDATERS` has it.
    """

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
        self.base = BaseTraining(model, training, execution)
        self.model, self.execution = self.base.model, self.base.execution
        shape = self.config.generator
        self.generator: Generator = (
            LinearGenerator(shape, self.model) if isinstance(shape, LinearConfig) else GRUGenerator(shape, self.model)
        )

    @override
    def initial(self, rng: torch.Generator) -> AsmgState:
        """See Updater. The base model is drawn before the generator and does not depend on it."""
        return self._with_fresh_generator(self.base.initial(rng), rng)

    def _with_fresh_generator(self, base: BaseState, rng: torch.Generator) -> AsmgState:
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
        """See Updater. With `skip_first` the given model is not part of the sequence."""
        state = replace(self._with_fresh_generator(base, rng), models=(base.params,), generated=base.params)
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
            return self._generate(state, rng)
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

    @override
    def served_parts(self, state: AsmgState) -> dict[str, ServedParts]:
        lasting = self.config.untouched != "plain"
        made = {"generated": ServedParts("base", "generated", self.trust(state), lasting), "incremental": ServedParts()}
        return {} if state.generated is None else made

    @property
    @override
    def rewrites_tables(self) -> bool:
        return self.config.untouched == "generate"

    def trust(self, state: AsmgState) -> float:
        """α, the fraction with the largest certain gain; the smallest fraction if no gain is above zero."""
        gains = [gain.certain(self.config.caution) for gain in state.evidence]
        best = max(range(len(gains)), key=lambda i: gains[i])
        return self.config.blends[best if gains[best] > 0 else 0]

    def blended(self, state: AsmgState, fraction: float) -> Params:
        """Θ_t + fraction·(Θ*_t - Θ_t).

        Raises:
            ValueError: the state is the initial one.
        """
        if state.generated is None:
            raise ValueError("state: expected one that has learned a period; received the initial one")
        return blend(state.base.params, state.generated, fraction)

    def loss_weights(self, length: int) -> list[float]:
        """The weights λ of a window of `length` targets, oldest first; they sum to 1 (authors' slides: λ_j = j / Σ
        j').
        """
        if self.config.loss_weights == "last":
            return [0.0] * (length - 1) + [1.0]
        if self.config.loss_weights == "uniform":
            return [1 / length] * length
        return [j / (length * (length + 1) / 2) for j in range(1, length + 1)]

    def _evidence_with(self, state: AsmgState, data: PeriodData) -> tuple[Gain, ...]:
        """The evidence with this period's added, measured before anything is trained on it."""
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
            return replace(state, data=self._data_for_next_window(state, data))
        evidence = self._evidence_with(state, data)
        state = replace(state, evidence=evidence)
        if self.config.full_window and self.config.window is not None and len(state.models) != self.config.window:
            return replace(state, data=self._data_for_next_window(state, data))
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
        batch_size, epochs = self.config.batch_size, self.config.epochs
        for epoch in range(epochs):
            average = self.config.average and epoch == epochs - 1
            session.epoch(batch_size=batch_size, rng=rng, average=average, progress=part_of(progress, epoch, epochs))
        weights, exact = session.finish()
        adam = rounded_moments(exact, self.config.moment_bits, rng)
        return replace(state, weights=weights, adam=adam, data=self._data_for_next_window(state, data))

    def _data_for_next_window(self, state: AsmgState, data: PeriodData) -> tuple[PeriodData, ...]:
        """The data that the next window needs: of one period fewer than it has models."""
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
        """See Updater. Also scores the model that ω_t generates from the sequence with the rehearsed base model."""
        found = self.base.rehearsed(state.base, data, held_out, rng, progress)
        models: dict[str, Params] = {"incremental": found.params}
        if state.models and found.rows is not None:
            rows = found.rows
            small = replace(
                state,
                models=tuple(take(m, rows) for m in state.models),
                hidden=_rows_of(state.hidden, rows),
                generated=None if state.generated is None else take(state.generated, rows),
            )
            generated, _, _ = self._generate_touched(small, (*small.models, found.params), found.touched, rng)
            models["generated"] = blend(found.params, generated, self.trust(state))
        return {name: self.base.predicted(params, found.held_out) for name, params in models.items()}

    def _generate(self, state: AsmgState, rng: torch.Generator) -> AsmgState:
        """Write all that is as large as the tables: Θ_{t+1}, the hidden state before the next window, and Θ*_{t+1}."""
        base = self.base.committed(state.base)
        assert state.base.pending is not None, "committed has checked it"
        models = (*state.models, base.params)
        if self.config.skip_first and base.periods == 1:
            models = ()
        if not models:
            return replace(state, base=base, generated=base.params)
        generated, hidden, leaving = self._generate_touched(state, models, state.base.pending.rows, rng)
        self.model.check(generated)
        models = models[1:] if leaving else models
        return replace(state, base=base, models=models, hidden=hidden, generated=generated)

    def _generate_touched(
        self, state: AsmgState, models: Sequence[Params], rows: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[Params, HiddenState, bool]:
        """Generate from the sequence `models`, which is the state's and a new model, as `AsmgConfig.untouched` says.

        Args:
            state: before the new model.
            models: oldest first.
            rows: table name → int64 [n], the rows that the new model's training read, the cold row among them.
            rng: rounds the hidden states.

        Returns:
            see `_generate_from`.
        """
        keep = self.config.untouched
        if keep == "generate" or state.generated is None:
            return self._generate_from(state.weights, models, state.hidden, rng)
        small = [take(model, rows) for model in models]
        found, moved, leaving = self._generate_from(state.weights, small, _rows_of(state.hidden, rows), rng)
        newest, others = models[-1], models[-1] if keep == "plain" else state.generated
        generated = {
            n: placed(others[n], rows[n], p, size=len(newest[n]), fill=others[n][COLD_ROW]) if n in rows else p
            for n, p in found.items()
        }
        if not (leaving and self.config.carry_hidden):
            return generated, state.hidden, leaving
        hidden = {}
        for group, states in state.hidden.items():
            if group not in rows:
                hidden[group] = moved[group]
                continue
            size = max(len(states), len(models[0][group]))
            inside = rows[group] < size
            hidden[group] = placed(states, rows[group][inside], moved[group][inside], size=size, fill=states[COLD_ROW])
        return generated, hidden, leaving

    def _generate_from(
        self, weights: Params, models: Sequence[Params], hidden: HiddenState, rng: torch.Generator
    ) -> tuple[Params, HiddenState, bool]:
        """Generate from a sequence that got longer by one model.

        Returns:
            Θ*, the hidden state before the next window, and whether the oldest model leaves the window.
        """
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
        return generated, rounded(hidden, self.config.hidden_bits, rng), leaving

    @override
    def signature(self) -> dict[str, Any]:
        config = self.config.to_json()
        return super().signature() | {name: config[name] for name in ("generator", "window", "blends")}

    @override
    def dump(self, state: AsmgState) -> dict[str, Checkpoint]:
        header = {"models": len(state.models), "data": len(state.data), "evidence": [list(g) for g in state.evidence]}
        parts = {"updater": self.header(**header), **dump_base(self.model, state.base)}
        parts["generator"] = Checkpoint("generator", {}, state.weights)
        parts["generator_optimizer"] = dump_adam(state.adam)
        parts["hidden"] = Checkpoint("hidden", {}, state.hidden)
        # Parts are numbered by age in the window.
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
        expected = {"updater", *BASE_PARTS, "generator", "generator_optimizer", "hidden"}
        expected |= {f"model.{age}" for age in older} | {f"data.{age}" for age in periods}
        self.check_parts(parts, expected, optional={"pending", "generated"})
        base = load_base(self.model, parts)
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


def _rows_of(hidden: HiddenState, rows: Mapping[str, Tensor]) -> HiddenState:
    """The hidden state of these rows (table name → int64 [n]); other groups as they are."""
    return {group: read_rows(h, rows[group]) if group in rows else h for group, h in hidden.items()}
