"""One period's update beside the whole-table reference, in the same process and interleaved repeat by repeat.

Ours is timed whole: taking rows out of the tables, planning, shuffling, training. The reference gets its batches ready
made, is timed on a few of them, and is scaled to the period's count: each of its batches works through whole tables, so
all cost the same. Both have learned the same log before. The base model is the paper's, without statistics and dot
products, which the reference does not have.
"""

import gc
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from asmg.models import EmbeddingMLPConfig
from asmg.progressive import stage_rng
from asmg.training import Execution
from asmg.updaters import build_updater
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks.learning.updaters import learned_state
from benchmarks.learning.workload import Workload
from benchmarks.machine import need_memory
from benchmarks.measuring import Samples, faster_threads, torch_threads
from benchmarks.printing import progress
from benchmarks.update import whole_table
from benchmarks.update.agreement import Agreement, agreement
from benchmarks.update.translation import Reference, reference_batch

METHOD = "asmg-gru-multi"
"""The paper's proposed method, ours by default."""

REFERENCE_BYTES = 5_000
"""Memory of the reference for each table row: 4.1 kB in a training step of the generator (three steps of the GRU with
all that the backward pass needs of them), and the tables."""

Settings = Literal["paper", "default"]


@dataclass(frozen=True)
class Versus:
    """Timings of the same work done in three ways."""

    ours: Samples = field(default_factory=Samples)
    eager: Samples = field(default_factory=Samples)
    """Ours in eager torch instead of compiled code."""
    reference: Samples = field(default_factory=Samples)
    """The reference, scaled to all batches."""
    batches: int = 1
    """How many batches the reference would have in all."""

    @property
    def eager_ratio(self) -> float:
        """The same of ours in eager torch."""
        return self.reference.median / self.eager.median

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference ours is: a ratio of medians."""
        return self.reference.median / self.ours.median

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **self.ours.to_json(),
            **self.eager.to_json("eager_"),
            **self.reference.to_json("reference_"),
            "reference_of_batches": self.batches,
            "ratio": self.ratio,
            "eager_ratio": self.eager_ratio,
        }


@dataclass(frozen=True)
class Comparison:
    """How far apart ours and the reference are, and their timings by part of the update."""

    agreement: Agreement
    eager_agreement: Agreement
    base: Versus
    generator: Versus
    generate: Versus

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        parts = {name: getattr(self, name).to_json() for name in ("base", "generator", "generate")}
        return {**parts, "agreement": {"compiled": asdict(self.agreement), "eager": asdict(self.eager_agreement)}}


def build(settings: Settings, *, compiled: bool = True) -> Asmg:
    """METHOD on the CPU, where the reference runs."""
    execution = Execution(device="cpu", compiled=compiled)
    updater = build_updater(METHOD, EmbeddingMLPConfig(), reference=settings == "paper", execution=execution)
    assert isinstance(updater, Asmg)
    return updater


def compare(
    workload: Workload,
    *,
    settings: Settings,
    repeats: int,
    reference_batches: int,
    seed: int,
) -> Comparison:
    """Check that ours and the reference compute the same, then time both.

    Args:
        workload: its last period is measured.
        settings: of ours. "default" makes more passes, and then the reference does too; the check is made with the
            paper's settings in any case, which are those of the reference.
        repeats: how often everything is timed.
        reference_batches: how many batches the reference is timed on in each repeat.
        seed: of everything random.

    Raises:
        Disagreement: ours and the reference differ by more than rounding.
        ValueError: there is too little memory for the reference.
    """
    data = workload.measured
    need_memory("the whole-table reference", REFERENCE_BYTES * (data.users + data.items))
    progress("learning the periods before the measured one")
    paper = build("paper")
    state: AsmgState = learned_state(paper, workload.before, seed)
    progress("checking that ours and the reference compute the same")
    agreements = (agreement(paper, state, data), agreement(build("paper", compiled=False), state, data))
    reference = Reference.of(paper, state)
    work = _ReferenceWork(reference, state, workload, paper, reference_batches, seed)
    ours, eager, ours_state = paper, build("paper", compiled=False), state
    if settings == "default":
        ours, eager = build("default"), build("default", compiled=False)
        ours_state = learned_state(ours, workload.before, seed)
    passes = {"base": ours.base.config.epochs, "generator": ours.config.epochs}
    found = Comparison(
        *agreements,
        base=Versus(batches=work.base_batches * passes["base"]),
        generator=Versus(batches=work.generator_batches * passes["generator"]),
        generate=Versus(),
    )
    del paper, state, reference
    for repeat in range(1, repeats + 1):
        progress(f"against the reference, repeat {repeat} of {repeats}")
        trained = ours_state
        for name, stage in (("generator", "train_generator"), ("base", "update_base"), ("generate", "generate")):
            versus: Versus = getattr(found, name)
            before = trained

            def run(updater: Asmg, before: AsmgState = before, stage: str = stage) -> AsmgState:
                return updater.run_stage(stage, before, data, rng=stage_rng(seed, 0, stage))

            with torch_threads(faster_threads(lambda run=run: run(ours))):  # type: ignore[misc]
                trained = versus.ours.time(lambda run=run: run(ours))  # type: ignore[misc]
            with torch_threads(faster_threads(lambda stage=stage: work.run(stage, 1))):  # type: ignore[misc]
                work.time(stage, versus)
                versus.eager.time(lambda run=run: run(eager))  # type: ignore[misc]
            gc.collect()
    return found


class _ReferenceWork:
    """The reference with its batches."""

    def __init__(
        self, reference: Reference, state: AsmgState, workload: Workload, paper: Asmg, timed: int, seed: int
    ) -> None:
        self.reference, rng = reference, torch.Generator().manual_seed(seed)
        data, size = workload.measured, paper.config.batch_size
        self.base_batches = math.ceil(len(data) / paper.base.config.batch(len(data)))
        self.generator_batches = math.ceil(len(data) / size)
        self.timed = min(timed, self.base_batches)
        indices = torch.randperm(len(data), generator=rng).split(paper.base.config.batch(len(data)))
        self.base = [reference_batch(data, index) for index in indices[: self.timed]]
        parts = []
        for period in (*state.data, data):
            cut = torch.randperm(len(period), generator=rng).tensor_split(self.generator_batches)
            parts.append([reference_batch(period, index) for index in cut[: self.timed]])
        self.generator = list(zip(*parts, strict=True))

    def time(self, stage: str, versus: Versus) -> None:
        """Time some batches of a stage."""
        count = 1 if stage == "generate" else self.timed
        versus.reference.time(lambda: self.run(stage, count), scale=versus.batches / count)

    def run(self, stage: str, count: int) -> None:
        """Work through the first batches of a stage."""
        r = self.reference
        for n in range(count):
            if stage == "train_generator":
                whole_table.generator_step(r.weights, r.weights_adam, r.models, r.hidden, self.generator[n])
            elif stage == "update_base":
                whole_table.base_step(r.model, r.model_adam, self.base[n])
            else:
                with torch.no_grad():
                    whole_table.generated(r.weights, r.models, r.hidden)
