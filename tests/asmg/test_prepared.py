"""Prepared logs on disk, and the command that makes them: what is damaged or half done is never taken for a log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from asmg.datasets import prepared
from asmg.datasets.card import FORMAT_VERSION, Card, SourceFile, read_card
from asmg.datasets.prepared import check_new_folder, read_prepared, sha256, write_prepared
from asmg.log_format import LogFormatError
from service.cli import app

LOG = pl.DataFrame({"user": [0, 1, 0], "item": [0, 1, 2], "label": [1, 0, 1], "timestamp": [5, 5, 7]})
USERS = pl.DataFrame({"id": ["u", "v"]})
ITEMS = pl.DataFrame({"id": ["a", "b", "c"], "categories": [["x"], [], ["y", "x", "é"]]})
CARD: dict[str, Any] = {
    "dataset": "log", "rows": 3, "positives": 2, "users": 2, "items": 3, "categories": 3,
    "first": "1970-01-01T00:00:00.005Z", "last": "1970-01-01T00:00:00.007Z", "rule": ("all", "of é"), "seed": None,
    "negatives_per_positive": 0, "without_negative": 0, "rows_read": 4, "dropped": {"bad rows": 1},
    "sources": (SourceFile(file="a/log.csv", bytes=12, sha256="00"),), "duplicates_kept": 0, "out_of_order": 1,
    "asmg_version": "0",
}  # fmt: skip


def write(folder: Path, log: pl.DataFrame = LOG, items: pl.DataFrame = ITEMS, **more: Any) -> Path:
    write_prepared(folder, log, USERS, items, CARD | more)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(LogFormatError) as raised:
        read_prepared(folder)
    return str(raised.value).replace(f"{folder}/", "")


# --- round trip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    card = write_prepared(tmp_path / "new" / "log", LOG, USERS, ITEMS, CARD)  # the folder's folder is made, too
    found = read_prepared(tmp_path / "new" / "log")
    assert found.card == card == read_card(tmp_path / "new" / "log")
    assert card == Card(**CARD, log_sha256=sha256(tmp_path / "new" / "log" / "log.parquet"))
    columns = (found.user, found.item, found.label, found.timestamps_ms)
    assert [column.tolist() for column in columns] == [LOG[name].to_list() for name in LOG.columns]
    assert [column.dtype for column in columns] == [np.uint32, np.uint32, np.uint8, np.int64]
    assert found.categories == ("x", "y", "é")
    assert found.item_categories is not None and found.item_categories.dtype == np.int32
    assert found.item_categories.tolist() == [[0, -1, -1], [-1, -1, -1], [1, 0, 2]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log"]


def test_items_without_categories(tmp_path: Path) -> None:
    found = read_prepared(write(tmp_path / "log", items=ITEMS.select("id"), categories=0))
    assert (found.categories, found.item_categories) == ((), None)


def test_a_card_as_json(tmp_path: Path) -> None:
    write(tmp_path / "log")
    values = json.loads((tmp_path / "log" / "card.json").read_text(encoding="utf-8"))
    assert values == read_card(tmp_path / "log").to_json()
    assert values["format_version"] == FORMAT_VERSION == 1
    assert values["sources"] == [{"file": "a/log.csv", "bytes": 12, "sha256": "00"}]
    assert Card.from_json(values) == read_card(tmp_path / "log")


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    assert len(read_prepared(write(tmp_path / "log[1]*")).user) == 3


# --- where it is written


def test_folders_that_hold_something(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "none")
    check_new_folder(tmp_path / "empty")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=r"out: expected a new or an empty folder; .* holds something already"):
            check_new_folder(taken)
        with pytest.raises(ValueError, match="holds something already"):
            write(taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    assert len(read_prepared(write(tmp_path / "log")).user) == 3
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path("."))
    assert len(read_prepared(tmp_path / "here").user) == 3


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_of_what_failed(tmp_path: Path, existed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "log"
    if existed:
        folder.mkdir()
    with pytest.raises(TypeError):
        write(folder, unknown=1)
    with pytest.raises(pl.exceptions.PolarsError):
        write(folder, log=LOG.with_columns(user=pl.lit(-1)))  # no number of a user

    def full(path: Path) -> str:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "sha256", full)
        with pytest.raises(OSError, match="No space left"):
            write(folder)
    assert [path.name for path in tmp_path.iterdir()] == (["log"] if existed else [])
    assert not existed or not list(folder.iterdir())
    assert len(read_prepared(write(folder)).user) == 3


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".log.partial").mkdir()
    (tmp_path / ".log.partial" / "rubbish").touch()
    write(tmp_path / "log")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert not (tmp_path / "log" / "rubbish").exists()


# --- damage


@pytest.mark.parametrize("name", ["card.json", "log.parquet", "users.parquet", "items.parquet"])
def test_missing_and_damaged_files(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "log") / name
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff\xfe", b"[]", b"{}"):
        file.write_bytes(damaged)
        assert refused(tmp_path / "log").startswith(f"{name}: expected ")
    file.unlink()
    assert refused(tmp_path / "log").startswith(f"{name}: expected ")
    assert "no such file" in refused(tmp_path / "log")


CARD_EXPECTED = (
    "card.json: expected the card of a log that `asmg experiment prepare` has written; received another content"
)


@pytest.mark.parametrize(("change", "said"), [
    (lambda card: card | {"format_version": 2}, "(format_version 1; received 2)"),
    (lambda card: {name: value for name, value in card.items() if name != "format_version"}, "received None)"),
    (lambda card: {name: value for name, value in card.items() if name != "items"}, "received more or fewer: items)"),
    (lambda card: card | {"extra": 1}, "(the fields of a card; received more or fewer: extra)"),
    (lambda card: card | {"sources": [{"file": "x"}]}, ""),
    (lambda card: card | {"sources": None}, ""),
    (lambda card: list(card), ""),
])  # fmt: skip
def test_cards_of_another_kind(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    file = write(tmp_path / "log") / "card.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    message = refused(tmp_path / "log")
    assert message.startswith(CARD_EXPECTED) and said in message


@pytest.mark.parametrize(("field", "value", "said"), [
    ("rows", 4, "log.parquet: expected 4 rows as the card says; received 3"),
    ("users", 3, "users.parquet: expected 3 rows as the card says; received 2"),
    ("items", 2, "items.parquet: expected 2 rows as the card says; received 3"),
    ("positives", 3, "log.parquet: expected 3 positives as the card says; received 2"),
    ("categories", 2, "items.parquet: expected 2 categories as the card says; received 3"),
    ("log_sha256", "f00", "log.parquet: expected the file with sha256 f00; received "),
])  # fmt: skip
def test_a_card_that_does_not_agree(tmp_path: Path, field: str, value: Any, said: str) -> None:
    file = write(tmp_path / "log") / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    assert refused(tmp_path / "log").startswith(said)


def test_a_log_that_was_changed(tmp_path: Path) -> None:
    write(tmp_path / "log")
    other = write(tmp_path / "other", log=LOG.with_columns(label=pl.Series([1, 1, 0])))
    (other / "log.parquet").replace(tmp_path / "log" / "log.parquet")
    assert refused(tmp_path / "log").startswith("log.parquet: expected the file with sha256 ")


@pytest.mark.parametrize(("log", "said"), [
    (LOG.with_columns(user=pl.Series([0, 2, 0])), "log.parquet, column 'user': expected numbers under 2; received 2"),
    (LOG.with_columns(item=pl.Series([0, 3, 0])), "log.parquet, column 'item': expected numbers under 3; received 3"),
    (LOG.with_columns(label=pl.Series([0, 2, 0])), "log.parquet, column 'label': expected 0 or 1; received 2"),
    (LOG.with_columns(timestamp=pl.Series([5, 6, 4])),
     "log.parquet, row 3, column 'timestamp': expected times that never decrease; received an earlier one"),
])  # fmt: skip
def test_numbers_that_cannot_be(tmp_path: Path, log: pl.DataFrame, said: str) -> None:
    assert refused(write(tmp_path / "log", log=log)) == said  # whoever wrote them, with a digest that is right


@pytest.mark.parametrize(("file", "change", "said"), [
    ("log", pl.col("user").cast(pl.Int64), "log.parquet, column 'user': expected a column of UInt32 without nulls"),
    ("log", pl.lit(None, pl.UInt8).alias("label"), "log.parquet, column 'label': expected a column of UInt8 without"),
    ("users", pl.lit(5).alias("id"), "users.parquet, column 'id': expected a column of String without nulls"),
    ("items", pl.lit(None, pl.String).alias("id"), "items.parquet, column 'id': expected a column of String without"),
    ("items", pl.lit("x").alias("categories"), "items.parquet, column 'categories': expected lists of text"),
])  # fmt: skip
def test_columns_of_another_kind(tmp_path: Path, file: str, change: pl.Expr, said: str) -> None:
    path = write(tmp_path / "log") / f"{file}.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(change).write_parquet(path)
    assert refused(tmp_path / "log").startswith(said)
    frame.select(pl.lit(1).alias("x")).write_parquet(path)
    assert "received none" in refused(tmp_path / "log")


# --- the command line


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["experiment", "prepare", *map(str, arguments)])


CLICKS = "user_id,item_id,label,timestamp\nu,a,1,1400000000\nv,a,0,1400000001\nu,b,1,1400000000\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.csv"
    path.write_text(CLICKS)
    return path


def test_the_command_prepares_a_log(tmp_path: Path, raw: Path) -> None:
    raw.write_text(CLICKS + "u,b,1,1400000000\nw,a,x,1400000003\n")
    result = command("log", "--raw", raw, "--out", tmp_path / "out", "--malformed", "drop")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "log: 3 rows, 2 of them positives; 2 users, 2 items, 0 categories; 2014-05-13T16:53:20.000Z to "
        "2014-05-13T16:53:21.000Z",
        "  left out: 1 rows whose label is not 0 or 1",
        "  left out: 1 rows that repeat an earlier one",
        "  fields of the context: hour (categorical), weekday (categorical)",
        f"  {tmp_path / 'out' / 'card.json'}",
    ]
    assert read_prepared(tmp_path / "out").card.rows_read == 5


def test_the_options_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "u|i|t|g|y\n".replace("|", ",") + "1,5,2014-05-13,x|y,0\n2,6,2014-05-13T01:00,,1\n3,7,2014-05-14,z,1\n"
    )
    columns = ["--user-column", "u", "--item-column", "i", "--timestamp-column", "t", "--timestamp-format", "utc"]
    columns += ["--categories-column", "g", "--label-column", "y"]
    result = command("log", "--raw", path, "--out", tmp_path / "labels", *columns)
    assert result.exit_code == 0, result.output
    found = read_prepared(tmp_path / "labels")
    assert found.label.tolist() == [0, 1, 1]
    assert (found.categories, found.card.seed) == (("x", "y", "z"), None)
    more = ["--positives-only", "--negatives", "2", "--seed", "7"]
    result = command("log", "--raw", path, "--out", tmp_path / "positives", *columns, *more)
    assert result.exit_code == 0, result.output
    found = read_prepared(tmp_path / "positives")
    assert found.label.tolist() == [1, 0, 0] * 3
    assert (found.card.seed, found.card.negatives_per_positive) == (7, 2)


def test_what_a_spreadsheet_writes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id; item_id; stars;when\r\nu;a;4.5;29-01-2021 08:00\r\n"
        "nan;a;4;29-01-2021 08:00\r\nv;a;3;29-01-2021 08:01\r\n"
    )
    options = ["--label-column", "stars", "--positive-from", "4", "--timestamp-column", "when", "--malformed", "drop"]
    options += ["--timestamp-format", "%d-%m-%Y %H:%M", "--timezone", "Europe/Berlin"]
    result = command("log", "--raw", path, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    found = read_prepared(tmp_path / "out")
    assert found.label.tolist() == [1, 0]
    assert (found.card.first, found.card.last) == ("2021-01-29T07:00:00.000Z", "2021-01-29T07:01:00.000Z")
    assert sum(found.card.dropped.values()) == 1


LABELS_OF_RATINGS = "--positive-from 4 makes labels of ratings, 1 from 4 on"


def said_in_one_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)  # and no trace
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("asmg: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    return lines[0]


def test_mistakes_that_end_the_command_with_1(tmp_path: Path, raw: Path) -> None:
    names = "tmall, sobazaar, ml-25m, ml-latest, ml-1m, ml-100k, diginetica, yoochoose, kuairand, amazon, "
    names += "avazu, criteo, taobao-ad, mind, log"
    said = said_in_one_line(command("netflix", "--raw", raw, "--out", tmp_path / "out"), 1)
    assert said == f"asmg: name: expected one of {names}; received 'netflix'"
    said = said_in_one_line(command("log", "--raw", raw, "--out", tmp_path), 1)
    assert said == f"asmg: out: expected a new or an empty folder; {tmp_path} holds something already"
    said = said_in_one_line(command("log", "--raw", raw, "--out", tmp_path / "out", "--malformed", "ignore"), 1)
    assert said == "asmg: malformed: expected error or drop; received 'ignore'"
    said = said_in_one_line(command("log", "--raw", raw, "--out", tmp_path / "out", "--seed", "-1"), 1)
    assert said == "asmg: seed: expected at least 0; received -1"
    said = said_in_one_line(command("log", "--raw", raw, "--out", tmp_path / "out", "--item-column", "user_id"), 1)
    assert said.startswith("asmg: columns: expected a column of its own for each")
    assert [path.name for path in tmp_path.iterdir()] == ["clicks.csv"]


def test_files_that_end_the_command_with_2(tmp_path: Path, raw: Path) -> None:
    out = ["--out", tmp_path / "out"]
    missing = tmp_path / "missing"
    assert str(missing) in said_in_one_line(command("log", "--raw", missing, *out), 2)
    assert str(missing) in said_in_one_line(command("tmall", "--raw", missing, *out), 2)
    said = said_in_one_line(command("tmall", "--raw", tmp_path, *out), 2)
    assert said == f"asmg: {tmp_path}: expected a file user_log_format1.csv (or .gz) in it; received none"
    said = said_in_one_line(command("log", "--raw", tmp_path, *out), 2)
    assert said == f"asmg: {tmp_path}: expected a CSV or Parquet file; received a folder"
    raw.write_text(CLICKS + "u,c,2,1400000000\n")
    said = said_in_one_line(command("log", "--raw", raw, *out), 2)
    assert said == f"asmg: {raw}, line 5, column 'label': expected 0 or 1; received '2'; {LABELS_OF_RATINGS}"
    said = said_in_one_line(command("log", "--raw", raw, *out, "--user-column", "who"), 2)
    assert said == f"asmg: {raw}, line 1: expected a column 'who'; received user_id, item_id, label, timestamp"
    assert [path.name for path in tmp_path.iterdir()] == ["clicks.csv"]
