"""Export a model version as ONNX, with the rows of its users and items beside it: `asmg models export`."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from service.errors import ConfigurationError
from service.serving.onnx_graph import ExportedRows, export_rows, input_widths, onnx_model
from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind

__all__ = ["MODEL", "SNAPSHOT", "export_model", "write_model"]

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
SNAPSHOT = "snapshot"
"""Folder with the files of the snapshot, for `request_inputs`, where the model reads more than rows."""
LARGE_BYTES = 1024
"""Size from which on a tensor is in the file of weights: the other file can have 2 GB."""


async def export_model(database: Database, snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    """Write a model and its index of ids to a folder.

    Only ids that have a row now are in the index and the tables, so nobody who was deleted.

    Args:
        database: knows the ids.
        snapshot: the model.
        folder: new or empty.

    Returns:
        what `model.json` says.

    Raises:
        ConfigurationError: the package onnx is not installed, or the folder is not empty.
        NotReady: Postgres does not answer.
        OSError: a file cannot be written.
    """
    async with database.read() as session:
        users = (await session.entities.rows(EntityKind.USER)).ids
        items = (await session.entities.rows(EntityKind.ITEM)).ids
    return await asyncio.to_thread(write_model, snapshot, users, items, folder)


def write_model(snapshot: Snapshot, users: list[str], items: list[str], folder: Path) -> dict[str, Any]:
    """`export_model` with the ids of users and items given; the folder appears when all is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder}: expected a new or an empty folder")
    rows = {"users": export_rows(snapshot, "users", users), "items": export_rows(snapshot, "items", items)}
    model = onnx_model(snapshot, rows["users"], rows["items"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        from onnx import save_model

        save_model(
            model,
            made / MODEL,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=WEIGHTS,
            size_threshold=LARGE_BYTES,
        )
        for name, known in rows.items():
            _write_index(known, made / f"{name}.parquet")
        sources = snapshot.sources if input_widths(snapshot) else ()
        about: dict[str, Any] = {
            "model_version": snapshot.version,
            "period": snapshot.period,
            "model": snapshot.meta["model"],
            "numbers": input_widths(snapshot),
            "users": len(rows["users"].ids),
            "items": len(rows["items"].ids),
            "snapshot": [path.name for path in sources],
        }
        if sources:
            (made / SNAPSHOT).mkdir()
        for path in sources:
            shutil.copyfile(path, made / SNAPSHOT / path.name)
        (made / "model.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
        made.chmod(0o755)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return about


def _write_index(rows: ExportedRows, path: Path) -> None:
    numbers = pl.Series("row", range(1, len(rows.ids) + 1), pl.Int64)
    pl.DataFrame([pl.Series("id", rows.ids, pl.String), numbers]).write_parquet(path)
