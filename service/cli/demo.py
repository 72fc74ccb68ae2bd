"""`asmg demo`."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import plain_errors, unusable_files

__all__ = ["demo_command"]


def demo_command(
    periods: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of periods; by default 8 of the synthetic stream, all of DIGINETICA, 31 of MovieLens.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Replay the log in this folder (DIGINETICA or MovieLens 100k), not the synthetic stream."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")] = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the last period instead of staying up.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of api processes.")] = 2,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the service; if it is in use, a free one is taken.")
    ] = 8000,
) -> None:
    """Watch a service learn from period to period without dropping a request; it lives in a temporary folder."""
    from service.demo.run import DemoOptions, run_demo  # with the training library, which takes seconds to import

    options = DemoOptions(periods=periods, data=data, report=report, exit=leave, seed=seed, workers=workers, port=port)
    with plain_errors(), unusable_files():
        code = run_demo(options)
    raise typer.Exit(code)
