"""`asmg bench update`: what one period's update costs, beside a plain whole-table implementation and by method."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from asmg.updaters import UPDATERS
from benchmarks.learning.updaters import warm_up
from benchmarks.learning.workload import BEFORE, StreamSizes, Workload, folder_workload, synthetic_workload
from benchmarks.machine import machine_facts
from benchmarks.options import at_least, some_of
from benchmarks.printing import print_line, print_machine, print_table, progress, seconds, times
from benchmarks.reports import check_writable, write_report
from benchmarks.update.against_reference import METHOD, Comparison, Settings, Versus, build, compare
from benchmarks.update.one_method import measure_apart

PARTS = {"base": "base update", "generator": "generator training", "generate": "whole tables"}


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """What to measure; the help texts of `asmg bench update` say what each option means."""

    data: Path | None = None
    periods: int = 31
    sizes: StreamSizes = field(default_factory=StreamSizes)
    methods: tuple[str, ...] | None = None
    repeats: int = 5
    reference_batches: int = 5
    threads: int | None = None
    seed: int = 0
    settings: Settings = "paper"
    report: Path | None = None

    def __post_init__(self) -> None:
        at_least(1, periods=self.periods, repeats=self.repeats)
        at_least(1, reference_batches=self.reference_batches, threads=self.threads)
        at_least(0, seed=self.seed)
        if self.settings not in get_args(Settings):
            raise ValueError(f"settings: expected paper or default; received {self.settings!r}")
        some_of(tuple(UPDATERS), methods=self.methods)


def run_update(options: UpdateOptions) -> int:
    """Measure, print, write. Returns the exit code: 1 where a method failed."""
    check_writable(options.report)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts = machine_facts()
    progress("reading the log" if options.data else "making the stream")
    if options.data:
        workload = folder_workload(options.data, options.periods, options.seed)
    else:
        workload = synthetic_workload(options.sizes, options.seed)
    progress("compiling, or loading machine code")
    started = time.perf_counter()
    for settings in get_args(Settings):
        warm_up(build(settings))
    warm = time.perf_counter() - started
    comparison = compare(
        workload,
        settings=options.settings,
        repeats=options.repeats,
        reference_batches=options.reference_batches,
        seed=options.seed,
    )
    _print_comparison(options, workload, comparison, facts, warm)
    methods = _measure_methods(options, workload, facts["torch_threads"])
    _print_methods(options, methods)
    memory = methods[METHOD].get("memory")
    if memory:
        _print_memory(memory)
    for name, found in methods.items():
        if "error" in found:
            print_line(f"{name} failed: {found['error']}")
    document = {
        "data": workload.to_json() | ({} if options.data else {"idle": options.sizes.idle}),
        "settings": options.settings,
        "repeats": options.repeats,
        "reference_batches": options.reference_batches,
        "seed": options.seed,
        "machine": facts,
        "warm_up_seconds": warm,
        **comparison.to_json(),
        "methods": methods,
        "peak_mb": memory and memory["peak_mb"],
        "memory": memory,
    }
    write_report(options.report, document)
    return 1 if any("error" in found for found in methods.values()) else 0


def _measure_methods(options: UpdateOptions, workload: Workload, threads: int) -> dict[str, dict[str, Any]]:
    """The figures by method; METHOD is always among them, if only for its memory."""
    names = tuple(UPDATERS) if options.methods is None else options.methods
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*names, METHOD)):
        progress(f"{name}, in a process of its own")
        repeats = options.repeats if name in names else 0
        try:
            found[name] = measure_apart(name, workload, repeats=repeats, seed=options.seed, threads=threads)
        except ValueError as error:
            found[name] = {"error": str(error)}
    return found


def _print_comparison(
    options: UpdateOptions,
    workload: Workload,
    found: Comparison,
    facts: dict[str, Any],
    warm: float,
) -> None:
    sizes = workload.to_json()
    print_line(
        f"{sizes['name']}, {sizes['measured']}: {sizes['rows']:,} interactions of {sizes['active_users']:,} users with "
        f"{sizes['active_items']:,} items, {sizes['mean_history']:.1f} earlier items each; tables of "
        f"{sizes['users']:,} users and {sizes['items']:,} items."
    )
    print_machine(facts, f"Compiling or loading machine code took {warm:.1f} s and is not in the figures.")
    settings = "the paper's settings" if options.settings == "paper" else "our default settings"
    rows = [
        (PARTS[name], label, seconds(samples.median), seconds(samples.cpu_median), ratio)
        for name in PARTS
        for label, samples, ratio in _contestants(getattr(found, name))
    ]
    print_table(
        f"Against whole tables: {METHOD}, {settings}, medians of {options.repeats} repeats",
        ("of one period", "by", "seconds", "CPU s", "faster than the reference"),
        rows,
        words=2,
    )
    timed = min(options.reference_batches, found.base.batches, found.generator.batches)
    print_line(
        f"reference: benchmarks/update/whole_table.py, dense Adam and every table row in every batch; timed on {timed} "
        f"batches each repeat and scaled to the period's {found.base.batches} (base) and {found.generator.batches} "
        f"(generator). Everything ran with {_threads(facts['torch_threads'])}."
    )
    worst = found.agreement
    print_line(
        f"checked: {worst.steps} steps from the same start on the same batches differ by {worst.base_loss:.0e} and "
        f"{worst.generator_loss:.0e} of the loss, {worst.base_weights:.0e} and {worst.generator_weights:.0e} of "
        f"Adam's step, {worst.generated:.0e} in the generated tables."
    )


def _threads(most: int) -> str:
    return "one thread" if most == 1 else f"1 or {most} threads, whichever was faster just before"


def _contestants(versus: Versus) -> Sequence[tuple[str, Any, str]]:
    return (
        ("ours", versus.ours, times(versus.ratio)),
        ("ours, eager torch", versus.eager, times(versus.eager_ratio)),
        ("reference", versus.reference, ""),
    )


def _print_methods(options: UpdateOptions, methods: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, found in methods.items():
        stages = [*found.get("stages", {}).items()]
        if stages:
            stages.append(("all", found["update"]))
        for n, (stage, timing) in enumerate(stages):
            peak = f"{found['memory']['peak_mb']:,.0f}" if stage == "all" else ""
            rows.append(
                (name if n == 0 else "", stage, seconds(timing["seconds"]), seconds(timing["cpu_seconds"]),
                 f"{timing['rows_per_second']:,.0f}", peak)
            )  # fmt: skip
    print_table(
        f"Every method, default settings, medians of {options.repeats} repeats",
        ("method", "stage", "seconds", "CPU s", "rows/s", "peak MB above the tables"),
        rows,
        words=2,
    )
    print_line(
        "rows/s: interactions of the period; where whole tables are written, their rows. prepare and count: the "
        "statistics of the period, and counting it. A method that looks back further than "
        f"{BEFORE} periods finds no more here."
    )


def _print_memory(memory: dict[str, Any]) -> None:
    print_line(
        f"peak memory of the whole update by {METHOD}: {memory['peak_mb']:,.0f} MB above the tables. In a process of "
        f"its own {memory['rss_before_mb']:,.0f} MB were resident before, with the state and the program, and "
        f"{memory['peak_rss_mb']:,.0f} MB at the peak, of which {memory['new_tables_mb']:,.0f} MB are the new state's "
        f"tables ({memory['how']})."
    )
