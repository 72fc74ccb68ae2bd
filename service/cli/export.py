"""`asmg export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings, use_database
from service.processes.installation import installation
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest
from service.storage.postgres.database import Database

if TYPE_CHECKING:
    from service.use_cases.export import Destination

__all__ = ["export_command"]

ALL = "interactions,impressions"


def export_command(
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION", help="A folder, or a place in an object store, such as s3://BUCKET/PREFIX."
        ),
    ],
    first: Annotated[int, typer.Option("--from", min=1, help="First period.")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Last period; without it, the newest.")] = None,
    tables: Annotated[str, typer.Option("--tables", help="What to export, separated by commas.")] = ALL,
    again: Annotated[bool, typer.Option("--again", help="Write files anew that are there already.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Write the logs of periods that were learned or skipped as Parquet files; the service may keep running."""
    from service.use_cases.export import SCRATCH_FOLDER, export_period

    names = [name.strip() for name in tables.split(",")]

    async def export(database: Database, scratch: Path) -> None:
        async with database.read() as session:
            numbers = await session.exports.numbers(first, last)
        files = 0
        for number in numbers:
            written = await export_period(database, place, scratch, number, names, again=again)
            if written is None:
                print(f"asmg: period {number}: its log has just been dropped", flush=True)
                continue
            rows = ", ".join(f"{count:,} {name}" for name, count in written.items()) or "all files are there already"
            print(f"asmg: period {number}: {rows}", flush=True)
            files += len(written)
        print(f"asmg: {files} new files of {len(numbers)} periods are in {destination}")

    with plain_errors(), unusable_files(), StopRequest() as stop:
        if not names or not set(names) <= set(ALL.split(",")):
            raise ValueError(f"--tables: expected some of {ALL}; received {tables}")
        place = _destination(destination)
        try:
            with installation(load_settings(data_dir=data_dir)) as settings:
                stop.run(
                    lambda: use_database(
                        settings, lambda database: export(database, settings.data_dir / SCRATCH_FOLDER)
                    )
                )
        except Interrupted:
            print("asmg: interrupted; what is written is whole, and the same command goes on")
            raise typer.Exit(INTERRUPTED) from None


def _destination(destination: str) -> "Destination":
    from service.addresses import check_artifacts_url
    from service.storage.artifacts.objects import Objects
    from service.use_cases.export import Folder

    if "://" not in destination:
        return Folder(Path(destination))
    check_artifacts_url(destination)
    return Objects(destination, name="DESTINATION")
