"""`asmg models …`."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli.canary import canary
from service.cli.console import make_console
from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings, use_database, with_database
from service.limits import MAX_REASON_LENGTH
from service.processes.installation import installation
from service.settings import Settings
from service.storage.postgres.database import Database
from service.use_cases.audit import command_line
from service.use_cases.model_status import list_models
from service.use_cases.pins import set_pinned

__all__ = ["models"]

models = typer.Typer(help="Model versions: list them, pin those to keep, and export one.", no_args_is_help=True)
models.add_typer(canary, name="canary")

Number = Annotated[int, typer.Argument(metavar="VERSION", help="Number of the version, see `asmg models list`.")]
Reason = Annotated[str, typer.Option("--reason", help="Reason that the audit log keeps.")]


@models.command("list")
def list_models_command(
    limit: Annotated[int, typer.Option(min=1, help="Largest number of versions, the newest.")] = 50,
    before: Annotated[int | None, typer.Option(min=0, help="Only versions below this one.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List model versions, whether they can still be served, and why old ones are kept."""
    with plain_errors():
        page = with_database(data_dir, lambda database: list_models(database, limit=limit, before=before))
        table = Table("version", "period", "kind", "parent", "created", "snapshot", "kept as")
        for model in page.models:
            numbers = (
                model.version,
                model.period,
                model.kind,
                "" if model.parent_version is None else model.parent_version,
            )
            snapshot = "stored" if model.digest else "gone"
            table.add_row(*map(str, numbers), f"{model.created_at:%Y-%m-%d %H:%M}", snapshot, ", ".join(model.kept))
        make_console().print(table)


@models.command("pin")
def pin_command(version: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Keep the artifacts of a version, however old it gets."""
    _set_pinned(version, True, reason, data_dir)


@models.command("unpin")
def unpin_command(version: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Let the retention rules apply to a version again, from the next update on."""
    _set_pinned(version, False, reason, data_dir)


@models.command("export")
def export_command(
    version: Number,
    folder: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="New or empty folder.")],
    data_dir: DataDir = None,
) -> None:
    """Write the model of a version as ONNX, with the rows of its users and items as Parquet files."""
    with plain_errors(), unusable_files(), installation(load_settings(data_dir=data_dir)) as settings:
        about = asyncio.run(use_database(settings, lambda database: _export(database, settings, version, folder)))
        print(f"asmg: {folder} holds version {version} with {about['users']:,} users and {about['items']:,} items")


async def _export(database: Database, settings: Settings, version: int, folder: Path) -> dict[str, Any]:
    from service.storage.artifacts.objects import configured_objects
    from service.storage.artifacts.store import ArtifactStore
    from service.storage.redis.connection import connect
    from service.use_cases.chosen_version import ChosenVersions
    from service.use_cases.export_model import export_model

    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    try:
        artifacts = ArtifactStore(database, redis, configured_objects(settings))
        versions = ChosenVersions(database, artifacts, lambda: (), settings.serving_dir / "chosen")
        return await export_model(database, await versions.snapshot(version), folder)
    finally:
        await redis.aclose()


def _set_pinned(version: int, pinned: bool, reason: str, data_dir: Path | None) -> None:
    with plain_errors():
        if not 1 <= len(reason) <= MAX_REASON_LENGTH:
            raise ValueError(f"reason: expected 1 to {MAX_REASON_LENGTH} characters; received {len(reason)}")

        def pin(database: Database) -> Awaitable[bool]:
            return set_pinned(database, version, pinned=pinned, reason=reason, actor=command_line())

        changed = with_database(data_dir, pin)
        print(f"asmg: version {version} {'is' if changed else 'was'} {'pinned' if pinned else 'not pinned'}")
