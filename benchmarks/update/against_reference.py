"""One period's update against the whole-table reference, in the same process and interleaved repeat by repeat.

Ours is timed whole: taking rows out of the tables, planning, shuffling, training. The reference is given its batches
ready made, is timed on a few of them, and is scaled to the period's count; its cost is the same for every batch, since
each works through whole tables. Both have learned the same log before. The base model is the paper's, without
statistics and dot products, which the reference does not have.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from asmg.models import EmbeddingMLPConfig
from asmg.progressive import stage_rng
from asmg.training import Execution
from asmg.updaters import build_updater
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks import whole_table
from benchmarks.timing import Samples, faster_threads, torch_threads
from benchmarks.translation import Agreement, Reference, agreement, reference_batch
from benchmarks.workload import Workload, need_memory, prepared

METHOD = "asmg-gru-multi"
"""The paper's proposed method, ours by default."""

REFERENCE_BYTES = 5_000
"""Memory that the reference takes for each table row: 4.1 kB in a step of the generator (three steps of the GRU with
all that the backward pass needs of them), and the tables."""

Settings = Literal["paper", "default"]


@dataclass(frozen=True)
class Versus:
    """The same work, done three ways."""

    ours: Samples = field(default_factory=Samples)
    eager: Samples = field(default_factory=Samples)
    """Ours in eager torch instead of machine code."""
    reference: Samples = field(default_factory=Samples)
    """The reference, scaled to all batches."""
    batches: int = 1
    """Of the reference, in all."""

    @property
    def ratio(self) -> float:
        """By how many times ours is faster than the reference: a ratio of medians."""
        return self.reference.median / self.ours.median

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **self.ours.to_json(),
            **self.eager.to_json("eager_"),
            **self.reference.to_json("reference_"),
            "reference_of_batches": self.batches,
            "ratio": self.ratio,
            "eager_ratio": self.reference.median / self.eager.median,
        }


@dataclass(frozen=True)
class Yardstick:
    """What was measured."""

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


def measure(
    workload: Workload,
    *,
    settings: Settings,
    repeats: int,
    reference_batches: int,
    seed: int,
    say: Callable[[str], None],
) -> Yardstick:
    """Check that ours and the reference compute the same, then time both.

    Args:
        settings: what ours trains with. "default" makes more passes, and so does the reference then; the check is of
            the paper's settings, which are the reference's, in either case.
        repeats: of everything.
        reference_batches: how many batches the reference is timed on in each repeat.
        say: told what is going on.

    Raises:
        Disagreement: ours and the reference differ by more than rounding.
        ValueError: there is too little memory for the reference.
    """
    data = workload.measured
    need_memory("the whole-table reference", REFERENCE_BYTES * (data.users + data.items))
    say("learning the periods before the measured one")
    paper = build("paper")
    state: AsmgState = prepared(paper, workload, seed)
    say("checking that ours and the reference compute the same")
    agreements = (agreement(paper, state, data), agreement(build("paper", compiled=False), state, data))
    reference = Reference.of(paper, state)
    contestants = _Reference(reference, state, workload, paper, reference_batches, seed)
    ours, eager, ours_state = paper, build("paper", compiled=False), state
    if settings == "default":
        ours, eager = build("default"), build("default", compiled=False)
        ours_state = prepared(ours, workload, seed)
    passes = {"base": ours.base.config.epochs, "generator": ours.config.epochs}
    found = Yardstick(
        *agreements,
        base=Versus(batches=contestants.base_batches * passes["base"]),
        generator=Versus(batches=contestants.generator_batches * passes["generator"]),
        generate=Versus(),
    )
    del paper, state, reference
    for repeat in range(1, repeats + 1):
        say(f"yardstick, repeat {repeat} of {repeats}")
        trained = ours_state
        for name, stage in (("generator", "train_generator"), ("base", "update_base"), ("generate", "generate")):
            versus: Versus = getattr(found, name)
            before = trained

            def run(updater: Asmg, before: AsmgState = before, stage: str = stage) -> AsmgState:
                return updater.run_stage(stage, before, data, rng=stage_rng(seed, 0, stage))

            with torch_threads(faster_threads(lambda run=run: run(ours))):  # type: ignore[misc]
                trained = versus.ours.time(lambda run=run: run(ours))  # type: ignore[misc]
            with torch_threads(faster_threads(lambda stage=stage: contestants.run(stage, 1))):  # type: ignore[misc]
                contestants.time(stage, versus)
                versus.eager.time(lambda run=run: run(eager))  # type: ignore[misc]
            gc.collect()
    return found


class _Reference:
    """The reference's side, and its batches."""

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
        """The first batches of a stage."""
        r = self.reference
        for n in range(count):
            if stage == "train_generator":
                whole_table.generator_step(r.weights, r.weights_adam, r.models, r.hidden, self.generator[n])
            elif stage == "update_base":
                whole_table.base_step(r.model, r.model_adam, self.base[n])
            else:
                with torch.no_grad():
                    whole_table.generated(r.weights, r.models, r.hidden)
