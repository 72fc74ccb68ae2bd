"""`asmg bench …` and `asmg chaos`: the commands that this package adds to the program `asmg` by its entry points.

A command imports what it runs when it is called: the training library takes seconds to import.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import names, whole_numbers
from service.cli.errors import plain_errors, unusable_files

__all__ = ["bench", "chaos"]

bench = typer.Typer(help="What updates and predictions cost on this machine.", no_args_is_help=True)

Users = Annotated[int | None, typer.Option(help="Users in the traffic of the synthetic stream. [20,000]")]
Items = Annotated[int | None, typer.Option(help="Items in its traffic. [5,000]")]
Rows = Annotated[int | None, typer.Option(help="Interactions in each of its periods. [50,000]")]
History = Annotated[int | None, typer.Option(help="Earlier items of each interaction, 30 at most. [10]")]
Repeats = Annotated[int, typer.Option(help="Repeats of each measurement; medians are printed.")]
Rounds = Annotated[int, typer.Option(help="Rounds in which all cells are measured; medians are printed.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Report = Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")]


@bench.command("cycle")
def bench_cycle_command(
    ids: Annotated[str, typer.Option(help="Numbers of ids, separated by commas; half of them are users.")] = (
        "10000,1000000"
    ),
    events: Annotated[int, typer.Option(help="Interactions of a period.")] = 1000,
    periods: Annotated[int, typer.Option(help="Periods for each number of ids; the first is not counted.")] = 4,
    first_learning: Annotated[
        str | None,
        typer.Option(help="Instead: numbers of new ids, each learned in the first period of a new installation."),
    ] = None,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Close periods of a real service with tables of any size: time until served, WAL, bytes stored, memory."""
    from benchmarks.cycle.run import CycleOptions, run_cycle

    with _running():
        options = CycleOptions(
            ids=whole_numbers("--ids", ids),
            events=events,
            periods=periods,
            first_learning=[] if first_learning is None else whole_numbers("--first-learning", first_learning),
            seed=seed,
            report=report,
        )
        code = run_cycle(options)
    raise typer.Exit(code)


@bench.command("guardrails")
def bench_guardrails_command(
    periods: Annotated[int, typer.Option(help="Periods of each stream; things go wrong from the eleventh on.")] = 22,
    events: Annotated[int, typer.Option(help="Interactions of a period.")] = 5000,
    streams: Annotated[int, typer.Option(help="Streams on which nothing goes wrong.")] = 10,
    first: Annotated[int, typer.Option(help="Seed of the first of these; the next ones follow.")] = 2,
    cases: Annotated[
        str | None, typer.Option(help="Of collapse, decay, canary and clean, separated by commas. [all]")
    ] = None,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Play a period of noise, a slow decay, a bad version and clean streams to a real service: what it notices."""
    from benchmarks.guardrails.run import CASES, GuardrailOptions, run_guardrails

    with _running():
        code = run_guardrails(
            GuardrailOptions(
                cases=names(cases) or CASES,
                periods=periods,
                events=events,
                streams=streams,
                first=first,
                seed=seed,
                report=report,
            )
        )
    raise typer.Exit(code)


@bench.command("update")
def bench_update_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of a log to learn: DIGINETICA or MovieLens 100k. [a synthetic stream]")
    ] = None,
    periods: Annotated[
        int | None, typer.Option(help="Equal periods that this log is cut into; the last is measured. [31]")
    ] = None,
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    idle: Annotated[int | None, typer.Option(help="Tables so many times as large as the traffic needs. [1]")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods to measure, separated by commas. [all]")] = None,
    repeats: Repeats = 5,
    reference_batches: Annotated[
        int, typer.Option(help="Batches that the reference is timed on, and scaled from.")
    ] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch, at most. [as many as it chooses]")] = None,
    seed: Seed = 0,
    settings: Annotated[str, typer.Option(help="Settings beside the reference: `paper` or `default`.")] = "paper",
    report: Report = None,
) -> None:
    """Time one period's update: against a plain whole-table implementation, and of every method."""
    from benchmarks.learning.workload import StreamSizes
    from benchmarks.update.run import UpdateOptions, run_update

    sizes = _given(users=users, items=items, rows=rows, history=history, idle=idle)
    with _running():
        if data is not None and sizes:
            raise ValueError(
                f"expected --data or the sizes of a stream; received both, --data and --{next(iter(sizes))}"
            )
        if data is None and periods is not None:
            raise ValueError("expected --periods with --data; a synthetic stream has as many as are needed")
        options = UpdateOptions(
            data=data,
            sizes=StreamSizes(**sizes),
            methods=names(methods),
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
    idle: Annotated[str, typer.Option(help="Tables so many times as large as the traffic needs.")] = "1,10,100",
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    repeats: Repeats = 9,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. [1]")] = None,
    seed: Seed = 0,
    report: Report = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw a chart into this file, .svg or .png; needs matplotlib.")
    ] = None,
) -> None:
    """Time one period's update on tables with more and more ids that no batch touches."""
    from benchmarks.learning.workload import StreamSizes
    from benchmarks.update.scaling import ScalingOptions, run_scaling

    with _running():
        options = ScalingOptions(
            sizes=StreamSizes(**_given(users=users, items=items, rows=rows, history=history)),
            factors=whole_numbers("idle", idle),
            repeats=repeats,
            seed=seed,
            report=report,
            chart=chart,
            **_given(threads=threads),
        )
        code = run_scaling(options)
    raise typer.Exit(code)


@bench.command("ranks")
def bench_ranks_command(
    ranks: Annotated[str, typer.Option(help="Processes that train together.")] = "1,2",
    batches: Annotated[str, typer.Option(help="Interactions of a batch, of the generator and of the base.")] = (
        "256,1024,4096"
    ),
    dim: Annotated[int | None, typer.Option(help="Width of the embeddings. [16]")] = None,
    ids: Annotated[int | None, typer.Option(help="Users of a training state that is read. [2,000,000]")] = None,
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    repeats: Repeats = 3,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Time the training of one period, and reading the rows that it needs, in one process and in several."""
    from benchmarks.learning.workload import StreamSizes
    from benchmarks.update.ranks import RanksOptions, run_ranks

    with _running():
        options = RanksOptions(
            ranks=whole_numbers("ranks", ranks),
            batches=whole_numbers("batches", batches),
            sizes=StreamSizes(**_given(users=users, items=items, rows=rows, history=history)),
            repeats=repeats,
            seed=seed,
            report=report,
            **_given(dim=dim, ids=ids),
        )
        code = run_ranks(options)
    raise typer.Exit(code)


@bench.command("serve")
def bench_serve_command(
    items: Annotated[str, typer.Option(help="Candidates of a request; numbers separated by commas.")] = "1,50,500",
    concurrency: Annotated[str, typer.Option(help="Connections, with one request in flight on each.")] = "1,16,64",
    workers: Annotated[str, typer.Option(help="Processes that answer requests.")] = "1,2",
    users: Annotated[int | None, typer.Option(help="Users of the model. [2,000]")] = None,
    catalogue: Annotated[int | None, typer.Option(help="Items of the model. [20,000]")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also measure the other servers, in turn.")] = False,
    variants: Annotated[str | None, typer.Option(help="Measure these servers only, separated by commas.")] = None,
    fields: Annotated[int | None, typer.Option(help="Context fields of a request, for a model with fields.")] = None,
    all_cells: Annotated[bool, typer.Option("--all-cells", help="Measure servers of others in all cells too.")] = False,
    requests: Annotated[int, typer.Option(help="Requests of a closed loop, at most.")] = 2_000,
    seconds: Annotated[float, typer.Option(help="Seconds of a loop, at most; an open loop lasts 3 s.")] = 10.0,
    rounds: Rounds = 5,
    warm_up: Annotated[int, typer.Option(help="Requests sent before those that are measured.")] = 300,
    open_loop: Annotated[
        float, typer.Option(help="Rate of the open loop, as a share of the capacity; 0 for none.")
    ] = 0.7,
    rate: Annotated[float | None, typer.Option(help="Rate of the open loop, in requests a second.")] = None,
    during_swap: Annotated[
        bool, typer.Option("--during-swap", help="Also publish versions under an open loop.")
    ] = False,
    versions: Annotated[int, typer.Option(help="How many versions are published.")] = 20,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Let the api fetch versions, as from a worker elsewhere.")
    ] = False,
    deltas: Annotated[
        int, typer.Option(help="Versions that add a delta before the base is written anew; 0: each is a base.")
    ] = 0,
    rows: Annotated[int, typer.Option(help="Table rows of a version, half users and half items.")] = 10_000_000,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Send requests to the real service, on this host: requests a second, latencies, CPU time and memory.

    With --compare beside FastAPI with eager torch, LitServe, BentoML, Ray Serve and a no-op. Peers that need the extra
    `peers` are measured with 50 items, 16 connections and 1 worker only, unless --all-cells is given.
    """
    from benchmarks.serving.options import ServeOptions
    from benchmarks.serving.requests import ServingSizes
    from benchmarks.serving.run import run_serve

    with _running():
        options = ServeOptions(
            sizes=ServingSizes(**_given(users=users, items=catalogue)),
            items=whole_numbers("items", items),
            concurrency=whole_numbers("concurrency", concurrency),
            workers=whole_numbers("workers", workers),
            compare=compare,
            variants=names(variants),
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
            deltas=deltas,
            rows=rows,
            seed=seed,
            report=report,
        )
        code = run_serve(options)
    raise typer.Exit(code)


@bench.command("ingest")
def bench_ingest_command(
    batches: Annotated[str, typer.Option(help="Events of a call; numbers separated by commas.")] = "1,100,1000",
    concurrency: Annotated[str, typer.Option(help="Connections, with one call in flight on each.")] = "1,16",
    duplicates: Annotated[str, typer.Option(help="Percentage of the events that were sent before.")] = "0,50",
    events: Annotated[int, typer.Option(help="Events of a measurement; 1,000 calls at most.")] = 60_000,
    rounds: Rounds = 5,
    workers: Annotated[int, typer.Option(help="Api processes.")] = 1,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Store events over HTTP, beside a bare COPY of the same rows into the same Postgres, on this host."""
    from benchmarks.ingest import IngestOptions, run_ingest

    with _running():
        options = IngestOptions(
            batches=whole_numbers("batches", batches),
            concurrency=whole_numbers("concurrency", concurrency),
            duplicates=whole_numbers("duplicates", duplicates),
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
    periods: Annotated[int, typer.Option(help="Periods that are logged, closed and learned.")] = 200,
    events: Annotated[int, typer.Option(help="Events in each of them.")] = 200,
    seed: Seed = 0,
    report: Report = None,
) -> None:
    """Run a service through many small periods; fails unless disk, memory and close time stay flat."""
    from benchmarks.soak.run import SoakOptions, run_soak

    with _running():
        code = run_soak(SoakOptions(periods=periods, events=events, seed=seed, report=report))
    raise typer.Exit(code)


def chaos(
    minutes: Annotated[float, typer.Option(help="Minutes over which the closes are spread.")] = 10.0,
    closes: Annotated[int, typer.Option(min=1, help="Periods that are sent and closed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    api_hosts: Annotated[int, typer.Option(min=1, help="Api hosts; several of them refuse to be behind.")] = 1,
    objects: Annotated[bool, typer.Option(help="Keep artifacts in an object store, a folder.")] = False,
    report: Report = None,
) -> None:
    """Kill and pause the processes of a service under load; fails unless every promise held."""
    from benchmarks.chaos.run import ChaosOptions, run_chaos

    with _running():
        code = run_chaos(
            ChaosOptions(minutes=minutes, closes=closes, seed=seed, api_hosts=api_hosts, objects=objects, report=report)
        )
    raise typer.Exit(code)


@contextmanager
def _running() -> Iterator[None]:
    """Turn errors that the user can set right into one line; leave out the log lines about servers that start."""
    with plain_errors(), unusable_files():
        logging.getLogger().setLevel(logging.WARNING)
        yield


def _given(**values: int | None) -> dict[str, int]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
