"""Runs the worker until a signal stops it: in `asmg worker`, and in the child of `asmg serve` or `asmg import`."""

import asyncio
import logging
import signal
import sys
from contextlib import ExitStack

from service.processes.garbage import collect_no_garbage
from service.processes.listening import listen
from service.processes.traces import traced_process
from service.settings import Settings
from service.tasks import end_tasks, start_for_caller
from service.telemetry.port import metrics_port
from service.telemetry.worker_metrics import WorkerMetrics

__all__ = ["run_worker"]

logger = logging.getLogger(__name__)


def run_worker(settings: Settings) -> None:
    """Run the worker of an installation until SIGINT or SIGTERM; of the ranks that `torchrun` starts, this one.

    Rank 0 shows its metrics on `worker_metrics_port`, if there is one, and traces, if the variables of OpenTelemetry
    say so.

    Ends the process with exit code 1 when another rank is lost, so that `torchrun` starts all of them again.

    Raises:
        ConfigurationError: the worker cannot work with these settings, or its metrics port is taken.
    """
    settings.read_features()
    with collect_no_garbage():  # the training library takes seconds
        from asmg.ranks import RankLost, Ranks, device_of_rank, joined
        from service.worker import follow, run

    metrics = WorkerMetrics()

    async def until_signal(ranks: Ranks) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        work, stopped = start_for_caller(run(settings, ranks, metrics)), start_for_caller(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work  # raises what the worker raised
        finally:
            await end_tasks(work, stopped)

    try:
        with joined(device_of_rank(settings.device), settings.rank_timeout_seconds) as ranks:
            if ranks.rank:
                follow(settings, ranks)
            else:
                with traced_process("asmg-worker"), ExitStack() as stack:
                    if (port := settings.worker_metrics_port) is not None:
                        stack.enter_context(metrics_port(listen(settings.metrics_host, port), metrics.render))
                    asyncio.run(until_signal(ranks))
    except RankLost as lost:
        logger.error("this rank ends: %s", lost)
        sys.exit(1)
