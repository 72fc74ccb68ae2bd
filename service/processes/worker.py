"""Runs the worker until a signal stops it: in `asmg worker`, and in the child of `asmg serve` or `asmg import`."""

import asyncio
import signal

from service.settings import Settings
from service.tasks import end_tasks, start_for_caller

__all__ = ["run_worker"]


def run_worker(settings: Settings) -> None:
    """Run the worker of an installation until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the worker cannot work with these settings.
    """
    settings.read_features()
    from service.worker import run  # with the training library, which takes seconds to import

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        work, stopped = start_for_caller(run(settings)), start_for_caller(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work  # raises what the worker raised
        finally:
            await end_tasks(work, stopped)

    asyncio.run(until_signal())
