"""Medians of the rounds of `asmg bench serve`, and their tables: ratios first."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.printing import print_line, print_table, times
from benchmarks.serving.contest import CLOSED, OPEN, Key
from benchmarks.serving.options import DEFAULT, FIELDS, NOOP, OURS, PLAIN, VARIANTS, Cell

Summary = dict[str, Any]

LESS = {DEFAULT: OURS, FIELDS: DEFAULT}
"""Variant of the service → the variant with the same model but for its statistics, or its fields."""

MEDIANS = (
    "rps",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "max_ms",
    "cpu_us",
    "memory_mb",
    "rate",
    "waited_p99_ms",
    "generator_late_p99_ms",
    "generator_cpu_us",
    "stores_cpu_us",
)


def summaries(raw: Mapping[Key, Sequence[Mapping[str, Any]]]) -> list[Summary]:
    """Of each cell the medians of its rounds and the sum of its failures."""
    found = []
    for (variant, cell, loop), rounds in raw.items():
        summary: Summary = {
            "variant": variant,
            "n": cell.n,
            "concurrency": cell.concurrency,
            "workers": cell.workers,
            "loop": loop,
        }
        for name in MEDIANS:
            values = [entry[name] for entry in rounds if entry.get(name) is not None]
            summary[name] = median(values) if values else None
        summary["failed"] = sum(entry["failed"] for entry in rounds)
        summary["rounds"] = [dict(entry) for entry in rounds]
        found.append(summary)
    order = [*VARIANTS]
    return sorted(found, key=lambda s: (s["workers"], s["n"], s["concurrency"], s["loop"], order.index(s["variant"])))


def print_cells(cells: Sequence[Summary], rounds: int) -> None:
    """Print ratios where there is something to compare with, then the figures themselves."""
    closed = [cell for cell in cells if cell["loop"] == CLOSED]
    for name in (OURS, DEFAULT, FIELDS):
        _print_ratios(closed, name)
    _print_figures(closed, f"Closed loop, medians of {rounds} rounds")
    _print_figures([cell for cell in cells if cell["loop"] == OPEN], "Open loop", rate=True)
    stores = [cell["stores_cpu_us"] for cell in closed if cell.get("stores_cpu_us") is not None]
    if stores:
        print_line(
            f"{OURS}: key check, validation, history look-up and metrics are on; Postgres and Redis took "
            f"{min(stores):,.0f} to {max(stores):,.0f} µs of CPU a request beside it. CPU and memory are those of all "
            "processes of a server; memory is proportional where the system tells (shared pages count once)."
        )


def _print_ratios(cells: Sequence[Summary], name: str) -> None:
    """Print a variant of the service against the other servers, and its CPU time against that of a smaller model."""
    by_cell: dict[Cell, dict[str, Summary]] = {}
    for one in cells:
        by_cell.setdefault(Cell(one["n"], one["concurrency"], one["workers"]), {})[one["variant"]] = one
    rows = []
    for cell, found in by_cell.items():
        ours = found.get(name)
        if ours is None or len(found) == 1:
            continue
        peers = [one for other, one in found.items() if VARIANTS[other].package is not None]
        best = max(peers, key=lambda peer: float(peer["rps"]), default=None)
        share = _ratio(ours, found.get(NOOP), "rps")
        rows.append(
            (
                f"{cell.n}",
                f"{cell.concurrency}",
                f"{cell.workers}",
                times(_ratio(ours, found.get(PLAIN), "rps")),
                times(_ratio(found.get(PLAIN), ours, "cpu_us")),
                times(_ratio(ours, best, "rps")),
                "" if best is None else best["variant"],
                times(min((r for peer in peers if (r := _ratio(peer, ours, "cpu_us"))), default=None)),
                "" if share is None else f"{100 * share:.0f} %",
                *([times(_ratio(ours, found.get(LESS[name]), "cpu_us"))] if name in LESS else []),
            )
        )
    if any(any(row[3:]) for row in rows):
        print_table(
            f"{name} against the others: times the requests a second, times less CPU",
            (
                *("items", "conns", "workers", "plain", "its CPU", "best peer", "which", "least CPU", "of no-op"),
                *([f"CPU of {LESS[name]}"] if name in LESS else []),
            ),
            rows,
            words=0,
        )


def _print_figures(cells: Sequence[Summary], title: str, *, rate: bool = False) -> None:
    if not cells:
        return
    rows = [
        (
            *(str(cell[name]) for name in ("variant", "n", "concurrency", "workers")),
            *([f"{cell['rate']:,.0f}"] if rate else []),
            f"{cell['rps']:,.0f}",
            *(_ms(cell[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
            *(f"{cell[name]:,.0f}" for name in ("cpu_us", "memory_mb", "failed")),
        )
        for cell in cells
    ]
    columns = ["", "items", "conns", "workers", *(["asked/s"] if rate else []), "req/s", "p50 ms", "p95", "p99", "max"]
    print_table(title, (*columns, "CPU µs", "MB", "failed"), rows)


def _ratio(above: Summary | None, below: Summary | None, name: str) -> float | None:
    if above is None or below is None or not above[name] or not below[name]:
        return None
    return float(above[name]) / float(below[name])


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.0f}"
