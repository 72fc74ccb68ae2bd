"""`asmg bench serve`: the real service asked over HTTP, beside other servers of the same model, and during swaps."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from benchmarks.printing import print_line, print_machine
from benchmarks.reports import check_writable, write_report
from benchmarks.serving.contest import Contest
from benchmarks.serving.fields import OF_EACH
from benchmarks.serving.model import NEIGHBOURS
from benchmarks.serving.options import DEFAULT, FIELDS, NOOP, OURS, PLAIN, ServeOptions
from benchmarks.serving.results import print_cells, summaries
from benchmarks.serving.swap import measure_swap, need_room, print_swap
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest

PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "msgspec", "litserve", "bentoml", "ray")


def run_serve(options: ServeOptions) -> int:
    """Measure, print, write; every server and every file is gone when it returns.

    Returns:
        the exit code: 0, 1 where the real service could not be measured, 130 where it was interrupted.
    """
    check_writable(options.report)
    facts = machine_facts(PACKAGES)
    swap: dict[str, Any] | None = None
    with (
        StopRequest() as stop,
        tempfile.TemporaryDirectory(prefix="asmg-bench-", ignore_cleanup_errors=True) as place,
    ):
        try:
            if options.during_swap:
                need_room(options, Path(place))
            _print_head(options, facts)
            (cells_folder := Path(place, "c")).mkdir()
            contest = Contest(options, cells_folder, stop)
            contest.play()
            cells = summaries(contest.raw)
            print_cells(cells, options.rounds)
            for name, reason in contest.left_out.items():
                print_line(f"{name}: {reason}")
            if options.during_swap:
                (swap_folder := Path(place, "s")).mkdir()
                swap = measure_swap(options, swap_folder, stop)
                print_swap(swap)
        except Interrupted:
            print_line("interrupted; everything was stopped and removed")
            return INTERRUPTED
    write_report(
        options.report,
        {"cells": cells, "swap": swap, "machine": facts, "options": options.to_json(), "left_out": contest.left_out},
    )
    return 1 if OURS in contest.left_out else 0


def _print_head(options: ServeOptions, facts: dict[str, Any]) -> None:
    print_line(
        f"Embedding&MLP, dims 8, MLP 24-12-6-1: {options.sizes.users:,} users, {options.sizes.items:,} items, "
        f"histories of 30. Each cell: at most {options.requests:,} requests and {options.seconds:g} s, "
        f"{options.rounds} rounds."
    )
    uvicorn = facts["versions"].get("uvicorn")
    print_machine(facts, f"The load generator and the servers share the processors. uvicorn {uvicorn}.")
    if DEFAULT in options.names:
        print_line(
            f"{DEFAULT}: with statistics ({NEIGHBOURS} neighbours of an item) and dot products, as served by default; "
            "the other servers do without."
        )
    if FIELDS in options.names:
        print_line(
            f"{FIELDS}: {DEFAULT} with {options.fields} fields of the context in each request, and {OF_EACH} features "
            "of each user and item."
        )
    if {PLAIN, NOOP} & set(options.names):
        print_line(
            f"{PLAIN}: FastAPI and eager torch as a tutorial would write it, without key check and with the histories "
            f"in memory. {NOOP}: reads a request and answers ready bytes. "
            "Servers of one model give the same scores, checked."
        )
