"""`asmg bench scaling`: one period's update on tables with more and more ids that the traffic does not touch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asmg.batch import COLD_ROW, PeriodData
from asmg.progressive import stage_rng
from asmg.updaters.asmg import AsmgState
from benchmarks.learning.updaters import learned_state, warm_up
from benchmarks.learning.wider_tables import Places, spread
from benchmarks.learning.workload import StreamSizes, synthetic_workload
from benchmarks.machine import machine_facts, need_memory
from benchmarks.measuring import Samples, in_turn
from benchmarks.options import at_least
from benchmarks.printing import print_line, print_table, progress, seconds
from benchmarks.reports import check_writable, write_report
from benchmarks.update.against_reference import METHOD, build
from benchmarks.update.scaling_chart import Line, draw, require_matplotlib

STATE_BYTES = 1_000
"""Memory for each table row: the state (four models, Adam, 128 bytes of hidden state for each position), and the tables
that the last stage makes."""

TRAINING = ("train_generator", "update_base")


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What to measure; the help texts of `asmg bench scaling` say what each option means."""

    sizes: StreamSizes = field(default_factory=StreamSizes)
    """Sizes of the traffic; `idle` is not used."""
    factors: tuple[int, ...] = (1, 10, 100)
    """Sizes of the tables as multiples of what the traffic needs, ascending. The first is what the others are compared
    with."""
    repeats: int = 9
    threads: int = 1
    """Threads of torch. Compiled code has one; more help in the last stage only, and disturb where a core is busy."""
    seed: int = 0
    report: Path | None = None
    chart: Path | None = None

    def __post_init__(self) -> None:
        if not self.factors or list(self.factors) != sorted(set(self.factors)) or self.factors[0] < 1:
            raise ValueError(f"idle: expected distinct factors ≥ 1, ascending; received {self.factors}")
        at_least(1, repeats=self.repeats, threads=self.threads)
        at_least(0, seed=self.seed)


@dataclass(frozen=True)
class ScalingPoint:
    """The timings for one size of the tables."""

    factor: int
    table_rows: int
    stages: dict[str, Samples]

    @property
    def training(self) -> Samples:
        """Timings of both training stages together."""
        return self.stages[TRAINING[0]] + self.stages[TRAINING[1]]

    def to_json(self, first: "ScalingPoint") -> dict[str, Any]:
        """The timings as plain JSON values, compared with those of the smallest tables."""
        return {
            "factor": self.factor,
            "table_rows": self.table_rows,
            "training": self.training.to_json(),
            "training_change": self.training.median / first.training.median - 1,
            "training_cpu_change": self.training.cpu_median / first.training.cpu_median - 1,
            "training_change_of_fastest": min(self.training.seconds) / min(first.training.seconds) - 1,
            "stages": {name: samples.to_json() for name, samples in self.stages.items()},
        }


class UnequalResults(ValueError):
    """The same traffic gave different results on tables of different sizes."""


@dataclass(frozen=True)
class _Run:
    point: ScalingPoint
    data: PeriodData
    state: AsmgState


def measure_scaling(options: ScalingOptions) -> list[ScalingPoint]:
    """Time the stages of one update at each size of the tables, interleaved repeat by repeat.

    The traffic and the rows that it touches are the same at each size, so what is learned has to be the same to the
    last bit.

    Raises:
        UnequalResults: it was not.
    """
    sizes = replace(options.sizes, idle=1)
    need_memory("tables of these sizes", STATE_BYTES * sum(sizes.table_rows * factor for factor in options.factors))
    updater = build("default")
    progress("compiling, or loading machine code")
    warm_up(updater)
    progress("learning the periods before the measured one")
    traffic = synthetic_workload(sizes, options.seed)
    state: AsmgState = learned_state(updater, traffic.before, options.seed)
    runs = []
    for factor in options.factors:
        progress(f"making tables × {factor}")
        places = Places.draw(traffic.measured.sizes, factor, options.seed)
        periods = spread(traffic.periods, places)
        wide = replace(widened(state, places), data=tuple(periods[-1 - len(state.data) : -1]))
        point = ScalingPoint(factor, sizes.table_rows * factor, {stage: Samples() for stage in updater.stages})
        runs.append(_Run(point, periods[-1], wide))

    def timed(stage: str, run: _Run, state: AsmgState) -> AsmgState:
        rng = stage_rng(options.seed, 0, stage)
        return run.point.stages[stage].time(lambda: updater.run_stage(stage, state, run.data, rng=rng))

    for repeat in range(options.repeats):
        progress(f"repeat {repeat + 1} of {options.repeats}")
        trained = []
        for run in in_turn(runs, repeat):
            after = run.state
            for stage in updater.stages[:-1]:
                after = timed(stage, run, after)
            trained.append((run, after))
        _check_equal([after for _, after in trained])
        for run, after in trained:
            timed(updater.stages[-1], run, after)
    return [run.point for run in runs]


def widened(state: AsmgState, places: Places) -> AsmgState:
    """The state with its rows in larger tables, whose other rows are those of ids that were never seen."""

    def table(name: str, old: Tensor, fill: Tensor) -> Tensor:
        new = old.new_empty(places.sizes[name], *old.shape[1:])
        new[:] = fill
        return new.index_copy_(0, places.rows[name], old)

    def tables(old: Mapping[str, Tensor], fill: Tensor | None = None) -> dict[str, Tensor]:
        return {
            name: table(name, t, t[COLD_ROW] if fill is None else fill) if name in places.rows else t
            for name, t in old.items()
        }

    adam, zero = state.base.adam, torch.zeros(())
    adam = replace(
        adam,
        first=tables(adam.first, zero),
        second=tables(adam.second, zero),
        moved=tables(adam.moved, torch.tensor(adam.step, dtype=torch.int32)),
        restless={name: places.rows[name][rows] for name, rows in adam.restless.items()},
    )
    models = tuple(tables(params) for params in state.models)
    return replace(
        state,
        base=replace(state.base, params=models[-1], adam=adam),
        models=models,
        hidden=tables(state.hidden),
        generated=state.generated and tables(state.generated),
    )


def _check_equal(trained: Sequence[AsmgState]) -> None:
    first = trained[0]
    for other in trained[1:]:
        assert first.base.pending is not None and other.base.pending is not None, "the base model was trained"
        for one, two in ((first.weights, other.weights), (first.base.pending.params, other.base.pending.params)):
            if unequal := [name for name in one if not torch.equal(one[name], two[name])]:
                raise UnequalResults(f"{unequal[0]}: expected equal bits at every size of the tables; received others")


def run_scaling(options: ScalingOptions) -> int:
    """Measure, print, write. Returns the exit code."""
    check_writable(options.report)
    check_writable(options.chart)
    if options.chart:
        require_matplotlib(options.chart)
    torch.set_num_threads(options.threads)
    points = measure_scaling(options)
    _print(options, points)
    document = {
        "machine": machine_facts(),
        "method": METHOD,
        "repeats": options.repeats,
        "seed": options.seed,
        "rows": options.sizes.rows,
        "active_users": options.sizes.users,
        "active_items": options.sizes.items,
        "history": options.sizes.history,
        "points": [point.to_json(points[0]) for point in points],
    }
    write_report(options.report, document)
    if options.chart:
        draw_points(options.chart, options, points)
        print_line(f"chart: {options.chart}")
    return 0


def draw_points(file: Path, options: ScalingOptions, points: Sequence[ScalingPoint]) -> None:
    """Draw seconds of training and of writing whole tables over the size of the tables."""
    sizes = options.sizes
    draw(
        file,
        rows={point.table_rows: point.factor for point in points},
        training=Line("training: generator and base model", [p.training.median for p in points]),
        tables=Line("whole tables: commit and generation", [p.stages["generate"].median for p in points]),
        note=f"The same traffic: {sizes.rows:,} interactions of {sizes.users:,} users with {sizes.items:,} items. "
        f"Medians of {options.repeats}.",
    )


def _print(options: ScalingOptions, points: Sequence[ScalingPoint]) -> None:
    sizes = options.sizes
    print_line(
        f"One period of {METHOD}, default settings: {sizes.rows:,} interactions of {sizes.users:,} users with "
        f"{sizes.items:,} items, {sizes.history} earlier items each. The tables hold more and more ids that no batch "
        f"touches. Medians of {options.repeats} repeats, taken in turns."
    )
    first = points[0]
    rows = []
    for point in points:
        parts = [*point.stages.values()]
        change = f"{100 * (point.training.median / first.training.median - 1):+.1f} %"
        least = f"{100 * (min(point.training.seconds) / min(first.training.seconds) - 1):+.1f} %"
        rows.append(
            (f"× {point.factor}", f"{point.table_rows:,}", *(seconds(s.median) for s in parts[:-1]),
             seconds(point.training.median), seconds(point.training.cpu_median),
             "" if point is first else change, "" if point is first else least, seconds(parts[-1].median))
        )  # fmt: skip
    print_table(
        "seconds a period",
        ("tables", "rows", "generator", "base", "training", "CPU s", "change", "of fastest", "whole tables"),
        rows,
    )
    print_line(
        "training = generator + base, which learned the same at every size, to the last bit; change = of its median "
        "against the smallest tables, of fastest = of its fastest repeat; whole tables = commit and generation, which "
        "write every row."
    )
