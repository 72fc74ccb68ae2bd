"""`asmg worker`."""

from typing import Annotated

import typer

from service.cli.errors import plain_errors
from service.cli.installation import DataDir, load_settings
from service.heartbeat import check_workers
from service.processes.installation import installation, require_objects, require_redis
from service.processes.worker import run_worker

__all__ = ["worker_command"]


def worker_command(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Start nothing; exit with 1 unless a worker runs on this host and makes progress."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Update the model on each closed period; of several workers one is active and the others wait."""
    if check:
        with plain_errors():
            settings = load_settings(data_dir=data_dir)
            age = check_workers(settings.worker_dir, settings.worker_stall_seconds)
            print(f"asmg: the worker got further {age:.1f} s ago")
        return
    with plain_errors(), installation(load_settings(data_dir=data_dir)) as settings:
        require_redis(settings)
        require_objects(settings)
        run_worker(settings)
