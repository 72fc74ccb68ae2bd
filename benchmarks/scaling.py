"""How an update's cost grows with tables that the traffic does not know: the same stream, with ever more idle ids."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asmg.models import EmbeddingMLPConfig
from asmg.progressive import stage_rng
from asmg.updaters import build_updater
from benchmarks.chart import draw, require_matplotlib
from benchmarks.one_method import warm_up
from benchmarks.printing import Printer, seconds
from benchmarks.timing import Samples, machine_facts
from benchmarks.workload import StreamSizes, Workload, need_memory, prepared, synthetic_workload
from benchmarks.yardstick import METHOD

__all__ = ["ScalingOptions", "ScalingPoint", "measure_scaling", "run_scaling"]

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
    repeats: int = 5
    threads: int | None = None
    """torch's; None leaves them as they are."""
    seed: int = 0
    report: Path | None = None
    chart: Path | None = None
    """An image, in the format that the ending of its name says."""

    def __post_init__(self) -> None:
        if not self.factors or list(self.factors) != sorted(set(self.factors)) or self.factors[0] < 1:
            raise ValueError(f"idle: expected distinct factors ≥ 1, ascending; received {self.factors}")
        for name in ("repeats", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
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
            "stages": {name: samples.to_json() for name, samples in self.stages.items()},
        }


def measure_scaling(options: ScalingOptions, say: Callable[[str], None]) -> list[ScalingPoint]:
    """Time the stages of one update at each size of the tables, interleaved repeat by repeat."""
    sizes = [replace(options.sizes, idle=factor) for factor in options.factors]
    need_memory("tables of these sizes", STATE_BYTES * sum(s.table_rows for s in sizes))
    updater = build_updater(METHOD, EmbeddingMLPConfig())
    say("compiling, or loading machine code")
    warm_up(updater)
    runs: list[tuple[ScalingPoint, Workload, Any]] = []
    for s in sizes:
        say(f"learning the periods before the measured one, tables × {s.idle}")
        workload = synthetic_workload(s, options.seed)
        point = ScalingPoint(s.idle, s.table_rows, {stage: Samples() for stage in updater.stages})
        runs.append((point, workload, prepared(updater, workload, options.seed)))

    def timed(stage: str, run: tuple[ScalingPoint, Workload, Any], state: Any) -> Any:
        point, workload, _ = run
        rng = stage_rng(options.seed, 0, stage)
        return point.stages[stage].time(lambda: updater.run_stage(stage, state, workload.measured, rng=rng))

    for repeat in range(options.repeats):
        say(f"repeat {repeat + 1} of {options.repeats}")
        turn = repeat % len(runs)
        trained = []
        for run in (*runs[turn:], *runs[:turn]):  # everyone is first at times
            state = run[2]
            for stage in updater.stages[:-1]:
                state = timed(stage, run, state)
            trained.append((run, state))
        for run, state in trained:
            timed(updater.stages[-1], run, state)
    return [point for point, _, _ in runs]


def run_scaling(options: ScalingOptions) -> int:
    """`asmg bench scaling`: measure, print, write. Returns the exit code."""
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
        cpu = f"{100 * (point.training.cpu_median / first.training.cpu_median - 1):+.1f} %"
        rows.append(
            (f"× {point.factor}", f"{point.table_rows:,}", *(seconds(s.median) for s in parts[:-1]),
             seconds(point.training.median), seconds(point.training.cpu_median),
             "" if point is first else change, "" if point is first else cpu, seconds(parts[-1].median))
        )  # fmt: skip
    printer.table(
        "seconds a period",
        ("tables", "rows", "generator", "base", "training", "CPU s", "change", "of CPU s", "whole tables"),
        rows,
    )
    printer.line("training = generator + base; whole tables = commit and generation, which write every row.")
