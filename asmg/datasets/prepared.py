"""A prepared log: written by `asmg experiment prepare`, read by `asmg experiment run`.

A folder with

    log.parquet      user, item (numbers from 0 by first appearance), label, timestamp (ms since 1970); in time order
    users.parquet    id; row n is user number n
    items.parquet    id and, if the source has them, categories (a list of text)
    features.toml    the fields (`asmg.features`); missing if the log has none
    card.json        what was read, by which rule, and what was dropped (`asmg.datasets.card`)

The values of a field are a column `field.NAME`: text, a list of text, or a float (null if missing). It is in
users.parquet or items.parquet or, if the source has a value per interaction, in log.parquet.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.card import Card, read_card
from asmg.datasets.damage import damaged_parquet
from asmg.datasets.field_columns import By, FieldColumn
from asmg.features import Schema, SchemaError
from asmg.log_format import LogFormatError

__all__ = ["PreparedLog", "check_new_folder", "read_prepared", "sha256", "write_prepared"]

_FEATURES = "features.toml"

_SCHEMA = {"user": pl.UInt32, "item": pl.UInt32, "label": pl.UInt8, "timestamp": pl.Int64}


@dataclass(frozen=True, eq=False)
class PreparedLog:
    """n interactions in time order."""

    card: Card
    user: npt.NDArray[np.uint32]
    """[n], numbers by first appearance."""
    item: npt.NDArray[np.uint32]
    """[n], numbers by first appearance."""
    label: npt.NDArray[np.uint8]
    """[n], 0 or 1."""
    timestamps_ms: npt.NDArray[np.int64]
    """[n], milliseconds since 1970, never decreasing."""
    categories: tuple[str, ...] = ()
    """Names of the categories."""
    item_categories: npt.NDArray[np.int32] | None = None
    """[items, C], numbers within `categories`, padded with -1; None without categories."""
    schema: Schema | None = None
    """The fields; None if the log has none, not even hour and weekday."""
    fields: Mapping[str, FieldColumn] = field(default_factory=dict)
    """Name → values of each declared field; hour and weekday are not stored."""

    def by_row(self, name: str) -> FieldColumn:
        """The values of a field, one per interaction."""
        column = self.fields[name]
        numbers = {"user": self.user, "item": self.item}
        return column if column.by == "row" else replace(column.take(numbers[column.by]), by="row")


def check_new_folder(folder: Path) -> None:
    """Raise ValueError if `folder` exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out: expected a new or an empty folder; {folder} holds something already")


def write_prepared(
    folder: Path,
    log: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    card: Mapping[str, Any],
    *,
    schema: Schema | None = None,
    fields: Mapping[str, FieldColumn] | None = None,
) -> Card:
    """Write a prepared log; the folder appears when it is complete.

    Args:
        folder: a new or empty one.
        log, users, items: the tables of the module's description, without the columns of fields.
        card: the values of the Card, without `log_sha256` and `features`.
        schema: the fields; None for a log without any.
        fields: name → values of each declared field.

    Raises:
        ValueError: the folder holds something.
    """
    check_new_folder(folder)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        log = log.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())
        for name, by, frame in (("log", "row", log), ("users", "user", users), ("items", "item", items)):
            columns = [column.to_series() for column in (fields or {}).values() if column.by == by]
            frame.with_columns(columns).write_parquet(partial / f"{name}.parquet")
        if schema is not None:
            (partial / _FEATURES).write_text(schema.to_toml(), encoding="utf-8")
        features = None if schema is None else schema.to_json()
        whole = Card(**card, log_sha256=sha256(partial / "log.parquet"), features=features)
        (partial / "card.json").write_text(json.dumps(whole.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return whole


def read_prepared(folder: Path) -> PreparedLog:
    """Read a prepared log and check it against its card.

    Raises:
        LogFormatError: a file is missing or damaged, or does not agree with the card.
    """
    card = read_card(folder)
    log = _read(folder / "log.parquet", list(_SCHEMA.items()))
    users = _read(folder / "users.parquet", [("id", pl.String)])
    items = _read(folder / "items.parquet", [("id", pl.String)])
    if (digest := sha256(folder / "log.parquet")) != card.log_sha256:
        raise LogFormatError(folder / "log.parquet", f"the file with sha256 {card.log_sha256}", digest)
    for name, frame, count in (("log", log, card.rows), ("users", users, card.users), ("items", items, card.items)):
        if frame.height != count:
            raise LogFormatError(folder / f"{name}.parquet", f"{count} rows as the card says", str(frame.height))
    user, item, label, timestamps = (log[name].to_numpy() for name in _SCHEMA)
    for name, numbers, count in (("user", user, card.users), ("item", item, card.items)):
        if len(numbers) and int(numbers.max()) >= count:
            raise LogFormatError(
                folder / "log.parquet", f"numbers under {count}", str(int(numbers.max())), column=name
            )  # fmt: skip
    if len(label) and int(label.max()) > 1:
        raise LogFormatError(folder / "log.parquet", "0 or 1", str(int(label.max())), column="label")
    if (positives := int(label.sum(dtype=np.int64))) != card.positives:
        raise LogFormatError(folder / "log.parquet", f"{card.positives} positives as the card says", str(positives))
    if bool((np.diff(timestamps) < 0).any()):
        row = int(np.flatnonzero(np.diff(timestamps) < 0)[0]) + 2
        raise LogFormatError(
            folder / "log.parquet",
            "times that never decrease",
            "an earlier one",
            column="timestamp",
            line=row,
            unit="row",
        )
    schema = _read_schema(folder, card)
    columns = _read_fields(folder, schema, {"row": log, "user": users, "item": items})
    if "categories" not in items.columns:
        return PreparedLog(card, user, item, label, timestamps, schema=schema, fields=columns)
    if items.schema["categories"] != pl.List(pl.String):
        raise LogFormatError(
            folder / "items.parquet", "lists of text", str(items.schema["categories"]), column="categories"
        )
    names, matrix = _category_matrix(items["categories"])
    if len(names) != card.categories:
        raise LogFormatError(
            folder / "items.parquet", f"{card.categories} categories as the card says", str(len(names))
        )
    return PreparedLog(card, user, item, label, timestamps, names, matrix, schema, columns)


def _read_schema(folder: Path, card: Card) -> Schema | None:
    """The schema in a folder, which must equal that of the card."""
    file = folder / _FEATURES
    if card.features is None and not file.is_file():
        return None
    if not file.is_file():
        raise LogFormatError(file, "the fields that the card names", "no such file")
    try:
        schema = Schema.read(file)
    except SchemaError as error:
        raise LogFormatError(file, "a schema of fields", error.faults[0].removeprefix(f"{file}: ")) from error
    if schema.to_json() != card.features:
        hint = "other fields take another `asmg experiment prepare`"
        raise LogFormatError(file, "the fields that the card names", "others", hint=hint)
    return schema


def _read_fields(folder: Path, schema: Schema | None, frames: Mapping[By, pl.DataFrame]) -> dict[str, FieldColumn]:
    found: dict[str, FieldColumn] = {}
    names: dict[By, str] = {"row": "log", "user": "users", "item": "items"}
    for declared in () if schema is None else schema.fields:
        column = f"field.{declared.name}"
        at: By | None = next((by for by, frame in frames.items() if column in frame.columns), None)
        if at is None or at not in ("row", declared.of):
            places = "log.parquet" if declared.of == "context" else f"log.parquet or {declared.of}s.parquet"
            raise LogFormatError(folder, f"a column {column!r} in {places}", "none")
        try:
            found[declared.name] = FieldColumn.from_series(declared, frames[at][column], at)
        except ValueError as error:
            file = folder / f"{names[at]}.parquet"
            raise LogFormatError(file, f"values of the field {declared.name}", str(error), column=column) from error
    return found


def sha256(file: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with file.open("rb") as binary:
        return hashlib.file_digest(binary, "sha256").hexdigest()


def _read(file: Path, columns: list[tuple[str, Any]]) -> pl.DataFrame:
    if not file.is_file():
        raise LogFormatError(file, "a file of a prepared log", "no such file")
    try:
        frame = pl.read_parquet(file, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged_parquet(file, error) from error
    for name, kind in columns:
        found = frame.schema.get(name)
        if found != kind or frame[name].null_count():
            raise LogFormatError(file, f"a column of {kind} without nulls", str(found or "none"), column=name)
    return frame


def _category_matrix(lists: pl.Series) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Names in the order of first appearance, and their numbers [items, C] padded with -1."""
    lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    values = lists.explode().drop_nulls()
    names = values.unique(maintain_order=True)
    matrix = np.full((len(lists), max(1, int(lengths.max(initial=0)))), -1, np.int32)
    numbers = values.replace_strict(names, pl.Series(range(len(names)), dtype=pl.Int32)).to_numpy()
    row = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    matrix[row, place] = numbers
    return tuple(names.to_list()), matrix
