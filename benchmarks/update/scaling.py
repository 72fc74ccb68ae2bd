"""How an update's cost grows with tables that the traffic does not know: the same stream, with ever more idle ids."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asmg.batch import COLD_ROW, PeriodData
from asmg.progressive import stage_rng
from asmg.updaters.asmg import AsmgState
from benchmarks.chart import draw, require_matplotlib
from benchmarks.one_method import warm_up
from benchmarks.printing import Printer, check_writable, seconds
from benchmarks.timing import Samples, machine_facts
from benchmarks.workload import Places, StreamSizes, need_memory, prepared, spread, synthetic_workload
from benchmarks.yardstick import METHOD, build

STATE_BYTES = 1_000
"""Memory for each table row: the state (four models, Adam, the hidden state of 128 bytes in each position), and during
the last stage the tables that take its place."""

TRAINING = ("train_generator", "update_base")


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What `asmg bench scaling` measures."""

    sizes: StreamSizes = field(default_factory=StreamSizes)
    """Of the traffic; `idle` has no say."""
    factors: tuple[int, ...] = (1, 10, 100)
    """How many times as large as the traffic needs them the tables are, ascending; the first is what the others are
    compared with."""
    repeats: int = 9
    threads: int = 1
    """torch's. The machine code has one; others help in the last stage only, and disturb where a core is busy."""
    seed: int = 0
    report: Path | None = None
    chart: Path | None = None
    """An image, in the format that the ending of its name says."""

    def __post_init__(self) -> None:
        if not self.factors or list(self.factors) != sorted(set(self.factors)) or self.factors[0] < 1:
            raise ValueError(f"idle: expected distinct factors ≥ 1, ascending; received {self.factors}")
        for name in ("repeats", "threads"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1; received {value}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0; received {self.seed}")


@dataclass(frozen=True)
class ScalingPoint:
    """What one size of the tables costs."""

    factor: int
    table_rows: int
    stages: dict[str, Samples]

    @property
    def training(self) -> Samples:
        """All that learns."""
        return self.stages[TRAINING[0]] + self.stages[TRAINING[1]]

    def to_json(self, first: "ScalingPoint") -> dict[str, Any]:
        """As plain JSON values, compared with the smallest tables."""
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
    """The same traffic taught different things on tables of different sizes."""


@dataclass(frozen=True)
class _Run:
    point: ScalingPoint
    data: PeriodData
    state: AsmgState


def measure_scaling(options: ScalingOptions, say: Callable[[str], None]) -> list[ScalingPoint]:
    """Time the stages of one update at each size of the tables, interleaved repeat by repeat.

    The traffic and the numbers in the rows that it knows are the same at each size, and so must be, to the last bit,
    what is learned.

    Raises:
        UnequalResults: it was not.
    """
    sizes = replace(options.sizes, idle=1)
    need_memory("tables of these sizes", STATE_BYTES * sum(sizes.table_rows * factor for factor in options.factors))
    updater = build("default")
    say("compiling, or loading machine code")
    warm_up(updater)
    say("learning the periods before the measured one")
    traffic = synthetic_workload(sizes, options.seed)
    state: AsmgState = prepared(updater, traffic, options.seed)
    runs = []
    for factor in options.factors:
        say(f"making tables × {factor}")
        places = Places.draw(traffic.measured.sizes, factor, options.seed)
        periods = spread(traffic, places).periods
        wide = replace(widened(state, places), data=tuple(periods[-1 - len(state.data) : -1]))
        point = ScalingPoint(factor, sizes.table_rows * factor, {stage: Samples() for stage in updater.stages})
        runs.append(_Run(point, periods[-1], wide))

    def timed(stage: str, run: _Run, state: AsmgState) -> AsmgState:
        rng = stage_rng(options.seed, 0, stage)
        return run.point.stages[stage].time(lambda: updater.run_stage(stage, state, run.data, rng=rng))

    for repeat in range(options.repeats):
        say(f"repeat {repeat + 1} of {options.repeats}")
        turn = repeat % len(runs)
        trained = []
        for run in (*runs[turn:], *runs[:turn]):  # everyone is first at times
            after = run.state
            for stage in updater.stages[:-1]:
                after = timed(stage, run, after)
            trained.append((run, after))
        _check_equal([after for _, after in trained])
        for run, after in trained:
            timed(updater.stages[-1], run, after)
    return [run.point for run in runs]


def widened(state: AsmgState, places: Places) -> AsmgState:
    """The state with its rows in larger tables, where all other rows are what an id is that nobody has met."""

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
    """`asmg bench scaling`: measure, print, write. Returns the exit code."""
    check_writable(options.report)
    check_writable(options.chart)
    if options.chart:
        require_matplotlib(options.chart)
    printer = Printer(options.threads)
    with printer.busy() as say:
        points = measure_scaling(options, say)
    found = {
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
    _print(printer, options, points)
    if options.report:
        options.report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.chart:
        draw(options.chart, points, options)
        printer.line(f"chart: {options.chart}")
    return 0


def _print(printer: Printer, options: ScalingOptions, points: Sequence[ScalingPoint]) -> None:
    sizes = options.sizes
    printer.line(
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
    printer.table(
        "seconds a period",
        ("tables", "rows", "generator", "base", "training", "CPU s", "change", "of fastest", "whole tables"),
        rows,
    )
    printer.line(
        "training = generator + base, which learned the same at every size, to the last bit; change = of its median "
        "against the smallest tables, of fastest = of its fastest repeat; whole tables = commit and generation, which "
        "write every row."
    )
