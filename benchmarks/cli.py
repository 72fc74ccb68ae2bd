"""`asmg bench …` and `asmg chaos`: the commands that this package adds to the program `asmg`, by its entry points."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import plain_errors, unusable_files

__all__ = ["bench", "chaos"]

bench = typer.Typer(help="What updates and predictions cost on this machine.", no_args_is_help=True)

Users = Annotated[int | None, typer.Option(help="Of a synthetic stream: users that its traffic knows. [20,000]")]
Items = Annotated[int | None, typer.Option(help="Items that its traffic knows. [5,000]")]
Rows = Annotated[int | None, typer.Option(help="Interactions a period. [50,000]")]
History = Annotated[int | None, typer.Option(help="Earlier items of each interaction, 30 at most. [10]")]
Repeats = Annotated[int, typer.Option(help="Of every measurement; medians are printed.")]
BenchSeed = Annotated[int, typer.Option(help="Of everything random.")]
BenchReport = Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")]


@bench.command("update")
def bench_update_command(
    data: Annotated[
        Path | None, typer.Option(help="The log in this folder (DIGINETICA or MovieLens 100k), not a synthetic stream.")
    ] = None,
    periods: Annotated[
        int | None, typer.Option(help="Of equal row counts, that this log is cut into; the last is measured. [31]")
    ] = None,
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    idle: Annotated[int | None, typer.Option(help="Tables so many times as large as that, 1, 10 or 100. [1]")] = None,
    methods: Annotated[str | None, typer.Option(help="Separated by commas; all by default.")] = None,
    repeats: Repeats = 5,
    reference_batches: Annotated[
        int, typer.Option(help="That the whole-table reference is timed on; scaled to all of the period.")
    ] = 5,
    threads: Annotated[int | None, typer.Option(help="Of torch, at most; by default as many as it takes.")] = None,
    seed: BenchSeed = 0,
    settings: Annotated[
        str, typer.Option(help="What we train with against the reference: as the `paper`, or our `default`.")
    ] = "paper",
    report: BenchReport = None,
) -> None:
    """Time one period's update: against a plain whole-table implementation, and of every method."""
    from benchmarks.update import UpdateOptions, run_update  # with the training library, which takes seconds to import
    from benchmarks.workload import StreamSizes

    sizes = _given(users=users, items=items, rows=rows, history=history, idle=idle)
    with plain_errors(), unusable_files():
        if data is not None and sizes:
            raise ValueError(
                f"expected --data or the sizes of a stream; received both, --data and --{next(iter(sizes))}"
            )
        if data is None and periods is not None:
            raise ValueError("expected --periods with --data; a synthetic stream has as many as are needed")
        options = UpdateOptions(
            data=data,
            sizes=StreamSizes(**sizes),
            methods=None if methods is None else tuple(name.strip() for name in methods.split(",")),
            repeats=repeats,
            reference_batches=reference_batches,
            threads=threads,
            seed=seed,
            settings=settings,  # type: ignore[arg-type] # checked by UpdateOptions
            report=report,
            **_given(periods=periods),
        )
        code = run_update(options)
    raise typer.Exit(code)


@bench.command("scaling")
def bench_scaling_command(
    idle: Annotated[
        str, typer.Option(help="How many times as large as the traffic needs the tables are.")
    ] = "1,10,100",
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    repeats: Repeats = 9,
    threads: Annotated[int | None, typer.Option(help="Of torch. [1]")] = None,
    seed: BenchSeed = 0,
    report: BenchReport = None,
    chart: Annotated[Path | None, typer.Option(help="Draw it into this file, .svg or .png; needs matplotlib.")] = None,
) -> None:
    """Time one period's update on tables with more and more ids that no batch touches."""
    from benchmarks.scaling import ScalingOptions, run_scaling
    from benchmarks.workload import StreamSizes

    with plain_errors(), unusable_files():
        options = ScalingOptions(
            sizes=StreamSizes(**_given(users=users, items=items, rows=rows, history=history)),
            factors=_numbers("idle", idle),
            repeats=repeats,
            seed=seed,
            report=report,
            chart=chart,
            **_given(threads=threads),
        )
        code = run_scaling(options)
    raise typer.Exit(code)


@bench.command("serve")
def bench_serve_command(
    items: Annotated[str, typer.Option(help="Candidates of a request, numbers separated by commas.")] = "1,50,500",
    concurrency: Annotated[str, typer.Option(help="Connections, with one request in flight on each.")] = "1,16,64",
    workers: Annotated[str, typer.Option(help="Processes that answer.")] = "1,2",
    users: Annotated[int | None, typer.Option(help="Of the model. [2,000]")] = None,
    catalogue: Annotated[int | None, typer.Option(help="Items of the model. [20,000]")] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Beside plain FastAPI, LitServe, BentoML, Ray Serve and a no-op, interleaved."),
    ] = False,
    variants: Annotated[str | None, typer.Option(help="These alone, separated by commas.")] = None,
    fields: Annotated[
        int | None,
        typer.Option(
            help="Of the context of a request, beside 5 of users and items each: the default model with them."
        ),
    ] = None,
    all_cells: Annotated[
        bool,
        typer.Option(
            "--all-cells", help="The other servers in all cells, not only with 50 items, 16 connections, 1 worker."
        ),
    ] = False,
    requests: Annotated[int, typer.Option(help="Of each closed loop, at most; an open one lasts 3 s.")] = 2_000,
    seconds: Annotated[float, typer.Option(help="Of each loop, at most.")] = 10.0,
    rounds: Annotated[int, typer.Option(help="All cells are measured so often; medians are printed.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Requests before those that are measured.")] = 300,
    open_loop: Annotated[
        float, typer.Option(help="Share of the measured capacity that an open loop asks for; 0 for none.")
    ] = 0.7,
    rate: Annotated[float | None, typer.Option(help="Requests a second of the open loop, in place of a share.")] = None,
    during_swap: Annotated[
        bool, typer.Option("--during-swap", help="Also publish versions while an open loop asks.")
    ] = False,
    versions: Annotated[int, typer.Option(help="So many of them.")] = 20,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="They have to be fetched, as where the worker is on another host.")
    ] = False,
    rows: Annotated[int, typer.Option(help="Of the tables of each of them, half users and half items.")] = 10_000_000,
    seed: BenchSeed = 0,
    report: BenchReport = None,
) -> None:
    """Ask the real service over HTTP, on this host alone: requests a second, latencies, CPU and memory."""
    from benchmarks.serving.options import ServeOptions  # with torch, which takes seconds to import
    from benchmarks.serving.serve import run_serve
    from benchmarks.serving.workload import ServingSizes

    sizes = {"users": users, "items": catalogue}
    with plain_errors(), unusable_files():
        options = ServeOptions(
            sizes=ServingSizes(**_given(**sizes)),
            items=_numbers("items", items),
            concurrency=_numbers("concurrency", concurrency),
            workers=_numbers("workers", workers),
            compare=compare,
            variants=None if variants is None else tuple(name.strip() for name in variants.split(",")),
            fields=fields,
            all_cells=all_cells,
            requests=requests,
            seconds=seconds,
            rounds=rounds,
            warm_up=warm_up,
            open_loop=open_loop,
            rate=rate,
            during_swap=during_swap,
            versions=versions,
            fetch=fetch,
            rows=rows,
            seed=seed,
            report=report,
        )
        code = run_serve(options)
    raise typer.Exit(code)


@bench.command("ingest")
def bench_ingest_command(
    batches: Annotated[str, typer.Option(help="Events of a call, numbers separated by commas.")] = "1,100,1000",
    concurrency: Annotated[str, typer.Option(help="Connections, with one call in flight on each.")] = "1,16",
    duplicates: Annotated[str, typer.Option(help="Percent of the events that were sent before.")] = "0,50",
    events: Annotated[int, typer.Option(help="Of each measurement; 1,000 calls at most.")] = 60_000,
    rounds: Annotated[int, typer.Option(help="All cells are measured so often; medians are printed.")] = 5,
    workers: Annotated[int, typer.Option(help="Api processes.")] = 1,
    seed: BenchSeed = 0,
    report: BenchReport = None,
) -> None:
    """Store events over HTTP, beside a bare COPY of the same rows into the same Postgres; on this host alone."""
    from benchmarks.ingest import IngestOptions, run_ingest

    with plain_errors(), unusable_files():
        options = IngestOptions(
            batches=_numbers("batches", batches),
            concurrency=_numbers("concurrency", concurrency),
            duplicates=_numbers("duplicates", duplicates),
            events=events,
            rounds=rounds,
            workers=workers,
            seed=seed,
            report=report,
        )
        code = run_ingest(options)
    raise typer.Exit(code)


@bench.command("soak")
def bench_soak_command(
    periods: Annotated[int, typer.Option(help="That are logged, closed and learned.")] = 200,
    events: Annotated[int, typer.Option(help="In each of them.")] = 200,
    seed: BenchSeed = 0,
    report: BenchReport = None,
) -> None:
    """Live through many small periods in a temporary folder; fails unless disk, memory and close time stay flat."""
    from benchmarks.soak.run import SoakOptions, run_soak

    with plain_errors(), unusable_files():
        code = run_soak(SoakOptions(periods=periods, events=events, seed=seed, report=report))
    raise typer.Exit(code)


def chaos(
    minutes: Annotated[float, typer.Option(help="Over which the closes are spread.")] = 10.0,
    closes: Annotated[int, typer.Option(min=1, help="Periods that are sent and closed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")] = None,
) -> None:
    """Kill and pause the parts of a service in a temporary folder under load; fails unless every promise held."""
    from benchmarks.chaos.run import ChaosOptions, run_chaos  # with what only this command needs

    with plain_errors(), unusable_files():
        code = run_chaos(ChaosOptions(minutes=minutes, closes=closes, seed=seed, report=report))
    raise typer.Exit(code)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"{name}: expected whole numbers separated by commas; received {text!r}")
    return tuple(int(part) for part in text.split(","))


def _given(**values: int | None) -> dict[str, int]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
