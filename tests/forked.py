"""Where processes of tests come from that need not start from nothing."""

import multiprocessing

__all__ = ["FORKED"]

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "service.cli.program",
        "service.cli.import_log.run",
        "service.demo.run",
        "service.processes.worker",
        "service.worker",
        "asmg.experiments.worker",
        "tests.asmg.cases",
        "tests.asmg.ranks",
        "tests.warm",
    ]
)
"""Starts processes that have imported the service and the library when they begin, which takes seconds otherwise. There
is one such server in a process, so this list is the only one."""
