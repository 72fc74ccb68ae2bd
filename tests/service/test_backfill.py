"""`asmg import`: a log becomes periods, once, however often it is interrupted; and bad files are said to be bad."""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from asmg.datasets import ColumnMap, CutBy, LogFormatError, LogOptions, cut, read_log, sample_negatives
from asmg.datasets.generic import find_form
from asmg.datasets.scan import Malformed, Scan
from asmg.datasets.synthetic import DriftConfig, drift_stream
from asmg.features import DEFAULT, Field, Schema
from service.cli.import_log.options import ImportOptions
from service.cli.import_log.plan import ImportPlan
from service.cli.import_log.run import run_import
from service.cli.import_log.sorted_log import LoggedInteraction, SortedLog
from service.cli.import_log.sorting import sort_log
from service.cli.import_log.temporary_database import open_database
from service.errors import ServiceError
from service.settings import Settings
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction, PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases.watch import watch_period
from tests.conftest import Servers, create_database, database_dsn, drop_database, flush
from tests.service.copied import copied
from tests.service.programs import asmg, start, wait_for

PERIODS, EVENTS = 2, 11_000


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Two hours of clicks."""
    columns: dict[str, list[Any]] = {name: [] for name in ("user", "item_id", "label", "at", "categories", "hour")}
    known: dict[str, tuple[str, ...]] = {}
    config = DriftConfig(users=60, items=40, events=EVENTS, categories=4)
    for period in islice(drift_stream(config, seed=5), PERIODS):
        known.update(period.new_items)
        columns["user"] += period.user_ids
        columns["item_id"] += period.item_ids
        columns["label"] += period.labels.tolist()
        columns["at"] += period.timestamps_ms.tolist()
        columns["categories"] += ["|".join(known[item]) for item in period.item_ids]
        columns["hour"] += [period.number] * len(period.user_ids)
    return pl.DataFrame(columns)


COLUMNS = ["--user-column", "user", "--timestamp-column", "at"]

TABLES = {
    "periods": "number, status, events, idempotency_key, version ORDER BY number",
    "interactions": "event_id, period, user_id, item_id, label, occurred_at ORDER BY period, occurred_at, event_id",
    "items": "item_id, categories ORDER BY item_id",
    "entity_rows": "kind, id, row, first_period ORDER BY kind, row",
    "model_versions": "version, period, kind, parent_version, serving_digest, scores, gate ORDER BY version",
    "evaluations": "period, model, version, events, auc, logloss, calibration ORDER BY period, model",
}


async def everything(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that an import leaves behind, in the order in which it came, except for times and how often it was tried."""
    database = Database(dsn, pool_size=1)
    try:
        async with database.read() as session:
            rows = {}
            for name, rest in TABLES.items():
                columns, _, order = rest.partition(" ORDER BY ")
                query = text(f"SELECT {columns} FROM {name} ORDER BY {order}")
                rows[name] = [tuple(row) for row in await session.connection.execute(query)]
            return rows
    finally:
        await database.close()


def import_until(said: str, number: int, folder: Path, *arguments: str, **changes: str) -> None:
    """Run an import and send it a signal as soon as it has printed something, and half a second later."""
    out = folder / f"{number}.out"
    process = start(out, folder / f"{number}.err", "import", *arguments, **changes)

    def printed() -> bool:
        found = out.exists() and re.search(said, out.read_text(), re.MULTILINE)
        return bool(found) or not process.is_alive()

    wait_for(printed)
    time.sleep(0.5)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == (130 if number == signal.SIGINT else -number), out.read_text()
    if number == signal.SIGINT:
        assert "the same command goes on from here" in out.read_text()


SHOP = Schema((
    Field("device", "context", "categorical"), Field("tags", "context", "multi", 2),
    Field("age", "user", "categorical"),
    Field("price", "item", "numeric"), Field("brand", "item", "categorical"), Field("page", "context", "categorical"),
))  # fmt: skip
"""Of which no column is the page."""

SHOP_LOG = """user_id;item_id;timestamp;Device;tags;age;price;brand
u1;i1;1700000000;web;a|b;30;1.5;x
u2;i1;1700000001;app;;;1.5;x
u1;i2;1700000002;;;30;;
u1;i1;1700000003;web;b;31;2.5;
u1;i1;1700000004;web;;;2.5;
"""


def test_fields_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context with each interaction and its negatives; of users and items what a row tells anew."""
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 60)
    path = tmp_path / "log.csv"
    path.write_text(SHOP_LOG)
    log = LogOptions(features=SHOP, some_features=True, context={"device": "Device"}, delimiter=";")
    sorted_log = sort_file(path, "count", log)
    whole = range(len(sorted_log))
    contexts = ['{"device":"web","tags":["a","b"]}', '{"device":"app"}', None, '{"device":"web","tags":["b"]}',
                '{"device":"web"}']  # fmt: skip
    found = [(row.label, row.context) for row in sorted_log.interactions(whole)]
    # u1 has had both items, u2 not: one negative.
    assert found == [(1, contexts[0]), (1, contexts[1]), (0, contexts[1]), *((1, context) for context in contexts[2:])]
    assert list(sorted_log.feature_changes("user", whole)) == [
        ("u1", 1_700_000_000_000, '{"age":"30"}'), ("u1", 1_700_000_003_000, '{"age":"31"}'),
        ("u1", 1_700_000_004_000, "{}"),
    ]  # fmt: skip
    of_items = [("i1", 1_700_000_000_000, '{"brand":"x","price":1.5}'), ("i1", 1_700_000_003_000, '{"price":2.5}')]
    assert list(sorted_log.feature_changes("item", whole)) == of_items
    assert list(sorted_log.feature_changes("item", range(3, 6))) == of_items[1:]
    assert list(sorted_log.feature_changes("user", range(1, 3))) == []
    plan = ImportPlan("d", sorted_log, sorted_log.cut("count", 9))
    assert [version.at.timestamp() for version in plan.features("user", range(6))] == [1.7e9, 1.7e9 + 3, 1.7e9 + 4]
    plain = sort_file(path, "count", LogOptions(delimiter=";"))
    assert {row.context for row in plain.interactions(range(9))} == {None}
    assert not list(plain.feature_changes("user", range(9)))


def test_fields_that_are_too_large(tmp_path: Path) -> None:
    schema = Schema(tuple(Field(f"f{n}", "context", "multi", 32) for n in range(2)))
    header, values = "user_id,item_id,timestamp,f0,f1\n", "|".join(f"{n:0150}" for n in range(30))
    path = tmp_path / "log.csv"
    path.write_text(f"{header}u,i,1700000000,{values},{values}\n")
    with pytest.raises(
        LogFormatError, match=r"expected at most 8192 bytes of the fields of the context; received 9\d+"
    ):
        sort_file(path, "day", LogOptions(features=schema, some_features=True))


@pytest.mark.slow
async def test_fields_are_imported(database: Database, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(SHOP_LOG)
    (tmp_path / "features.toml").write_text(SHOP.to_toml())
    there = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    arguments = [str(tmp_path / "log.csv"), "--by", "count", "--size", "3", "--context", "device=Device"]
    refused = asmg("import", *arguments, code=1, **there)
    said = "asmg: context: expected a field of the context that the schema has (it has none); received device"
    assert refused.stderr.splitlines() == [said]
    asmg("import", *arguments, **there, ASMG_FEATURES=str(tmp_path / "features.toml"))
    async with database.read() as session:
        contexts = {}
        for period in (1, 2):
            log = await session.interactions.log(period)
            async for page in session.interactions.contexts(period):
                for place, values in zip(page.places.tolist(), page.values, strict=True):
                    contexts[int(log.timestamps_ms[place]), int(log.labels[place])] = values
        users, items = await session.features.of("user", "u1"), await session.features.of("item", "i1")
        assert len(await session.features.of("item", "i2")) == 0
    at = 1_700_000_000_000
    assert contexts == {
        (at, 1): {"device": "web", "tags": ["a", "b"]}, (at + 1000, 1): {"device": "app"},
        (at + 1000, 0): {"device": "app"}, (at + 3000, 1): {"device": "web", "tags": ["b"]},
        (at + 4000, 1): {"device": "web"},
    }  # fmt: skip
    assert (users.times_ms - at).tolist() == [0, 3000, 4000]
    assert users.features == [{"age": "30"}, {"age": "31"}, {}]
    assert (items.times_ms - at).tolist() == [0, 3000]
    assert items.features == [{"price": 1.5, "brand": "x"}, {"price": 2.5}]


@pytest.mark.slow
async def test_interrupted_and_resumed_it_ends_the_same(
    servers: Servers,
    migrated_template: str,
    postgres_dsn: str,
    redis_url: str,
    frame: pl.DataFrame,
    tmp_path: Path,
) -> None:
    frame.write_csv(tmp_path / "log.csv")
    arguments = [str(tmp_path / "log.csv"), *COLUMNS, "--by", "periods", "--size", str(PERIODS)]

    def place(dsn: str, folder: str) -> dict[str, str]:
        return {"ASMG_POSTGRES_DSN": dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / folder)}

    straight = asmg("import", *arguments, **place(postgres_dsn, "a")).stdout
    expected = await everything(postgres_dsn)
    assert [row[1:3] for row in expected["periods"]] == [("updated", EVENTS)] * PERIODS + [("open", None)]
    assert [row[0] for row in expected["model_versions"]] == [0, 1, 2]

    name = f"{migrated_template}_resumed"
    create_database(servers, name, migrated_template)
    flush(redis_url)
    try:
        other = database_dsn(servers, name)
        there = place(other, "b")
        import_until("^import ", signal.SIGINT, tmp_path, *arguments, **there)
        import_until(r"v1 generated$", signal.SIGKILL, tmp_path, *arguments, **there)
        resumed = asmg("import", *arguments, **there).stdout
        found = await everything(other)
    finally:
        drop_database(servers, name)
    assert found == expected
    scores = [[line for line in out.splitlines() if re.search(r" v\d generated$", line)] for out in (straight, resumed)]
    assert len(scores[0]) == PERIODS
    assert scores[0] == scores[1]


@pytest.mark.slow
async def test_positives_of_a_parquet_file_with_servers_of_its_own(frame: pl.DataFrame, tmp_path: Path) -> None:
    clicks = frame.filter(pl.col("label") == 1).drop("label").with_columns(pl.col("at").cast(pl.Datetime("ms", "UTC")))
    clicks = clicks.with_columns(pl.col("categories").str.split("|")).group_by("hour", maintain_order=True).head(500)
    clicks.write_parquet(tmp_path / "clicks.parquet")
    with tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as folder:
        arguments = [str(tmp_path / "clicks.parquet"), *COLUMNS, "--period-column", "hour", "--negatives", "2"]
        result = asmg("import", *arguments, "--data-dir", folder)
        with EmbeddedServers(Path(folder)) as embedded:
            found = await everything(embedded.postgres_dsn)
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120
    # Two negatives each, less those of users who know all but few of the 40 items: none here.
    assert [row[2] for row in found["periods"]] == [1_500] * PERIODS + [None]
    clicked = {(row[2], row[3]) for row in found["interactions"] if row[4] == 1}
    assert clicked == set(clicks.select("user", "item_id").iter_rows())
    assert not clicked & {(row[2], row[3]) for row in found["interactions"] if row[4] == 0}
    assert dict(found["items"]) == {
        item: categories for item, categories in clicks.select("item_id", "categories").iter_rows()
    }


@pytest.mark.slow
async def test_events_of_others_in_the_open_period(
    database: Database, postgres_dsn: str, redis_url: str, frame: pl.DataFrame, tmp_path: Path
) -> None:
    async with database.unit_of_work() as work:
        await work.interactions.insert(
            1, EventBatch.of([Interaction("e1", "u", "i", 1, datetime(2024, 5, 1, tzinfo=UTC))])
        )
        await work.commit()
    frame.head(600).write_csv(tmp_path / "log.csv")
    there = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    arguments = [str(tmp_path / "log.csv"), *COLUMNS, "--by", "count", "--size", "400"]
    refused = asmg("import", *arguments, code=1, **there)
    assert "asmg: the open period 1 holds 1 interactions that are not of this import" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    async with database.read() as session:
        assert await session.interactions.count(1) == 1
        assert len(await session.items.catalogue()) == 0
    asmg("import", *arguments, "--append", **there)
    async with database.read() as session:
        assert [period.events for period in await session.periods.list(5)] == [None, 200, 401]
    # There is nothing left to do, and nothing is done.
    before = await everything(postgres_dsn)
    asmg("import", *arguments, **there)
    assert await everything(postgres_dsn) == before


async def test_watching_a_finished_period_ends(database: Database, redis: Redis) -> None:
    async with database.unit_of_work() as work:
        await work.periods.set_status(1, PeriodStatus.UPDATED)
        await work.commit()
    for _ in range(30):  # it lost the cancellation of its listener, and hung, in about every second try
        async with asyncio.timeout(5):
            documents = [document async for document in watch_period(database, Notices(redis), 1)]
        assert [document.status for document in documents] == [PeriodStatus.UPDATED]


def options(folder: Path, content: str | bytes = "", name: str = "log.csv", **changes: Any) -> ImportOptions:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ImportOptions(file=path, **changes)


def nowhere(folder: Path, **changes: Any) -> Settings:
    """Settings that name no server that answers: none is started for a file that cannot be used."""
    return Settings(
        postgres_dsn="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1", data_dir=folder, **changes
    )


HEAD = "user_id,item_id,label,timestamp\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "log.csv: expected a header line and rows; received an empty file"),
        (HEAD, "log.csv: expected at least one row; received none"),
        (HEAD.replace("item_id", "thing"), "line 1, column 'item_id'|expected a column 'item_id'"),
        (HEAD + "u,i,1,1700000000\nu,i,2,1700000001\n", "line 3, column 'label': expected 0 or 1; received '2'"),
        (HEAD + "u,i,1,yesterday\n", "line 2, column 'timestamp': expected seconds, milliseconds"),
        (HEAD + "u,,1,1700000000\n", "line 2, column 'item_id': expected an id of 1 to 256 characters"),
        (HEAD + "u,i,1\n", "line 2: expected 4 values; received 3"),
        (HEAD + "u,i,1,4000000000\n", "line 2, column 'timestamp': .* it is more than 300 seconds ahead of the clock"),
        (
            HEAD + "u,i,1,2021-01-29 07:00:00\n",
            "line 2, column 'timestamp': .* give --timestamp-format utc, or --timezone",
        ),
        (HEAD + "u,12.0,1,1700000000\n", "line 2, column 'item_id': .* a float was made of the id"),
        (HEAD + "u,nan,1,1700000000\n", "line 2, column 'item_id': .* the id is missing"),
        (HEAD + "u,i,4.5,1700000000\n", "line 2, column 'label': .* --positive-from"),
        (b"PAR1 and then nothing", "expected a complete Parquet file"),
        (
            HEAD.replace("label", "categories") + "u,i," + "|".join(map(str, range(17))) + ",1700000000\n",
            "column 'categories': expected at most 16 categories of an item; received 17 of item 'i'",
        ),
    ],
)
def test_bad_files(content: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=said):
        run_import(options(tmp_path, content), nowhere(tmp_path))


def test_the_setting_says_how_far_ahead_a_time_may_be(tmp_path: Path) -> None:
    ahead = HEAD + f"u,i,1,{round(time.time()) + 200}\nu,i,no,1700000000\n"
    with pytest.raises(LogFormatError, match=r"line 2, column 'timestamp': .* it is more than 100 seconds ahead"):
        run_import(options(tmp_path, ahead), nowhere(tmp_path, future_tolerance_seconds=100))
    with pytest.raises(LogFormatError, match="line 3, column 'label'"):
        run_import(options(tmp_path, ahead), nowhere(tmp_path, future_tolerance_seconds=300))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, which is not there yet."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "new" / "tmp"))
    return tmp_path / "new" / "tmp"


CONNECT = sqlite3.connect

MANY = HEAD + "".join(f"u{n},i{n},1,{1700000000 + n}\n" for n in range(2000))


@pytest.mark.parametrize(("pages", "statement"), [(10, "INSERT INTO read"), (24, "INSERT INTO log")])
def test_a_full_disk_is_said_in_one_line(
    pages: int, statement: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file is read, and while it is sorted."""
    statements: list[str] = []

    def on_a_small_disk(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = CONNECT(*arguments, **options)
        database.execute(f"PRAGMA max_page_count={pages}")
        database.set_trace_callback(statements.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", on_a_small_disk)
    with pytest.raises(ServiceError) as raised:
        run_import(options(temporary.parents[1], MANY), nowhere(temporary))
    said = (
        f"the temporary folder {temporary} does not hold the log while it is sorted: database or disk is full; TMPDIR "
    )
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert statements[-1].startswith(statement)
    assert list(temporary.iterdir()) == []


def test_a_temporary_folder_that_cannot_be_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file" / "tmp"))
    with pytest.raises(ServiceError, match=r"the temporary folder .* Not a directory; TMPDIR may name another"):
        run_import(options(tmp_path, MANY), nowhere(tmp_path))


@pytest.mark.parametrize("signals", [1, 2])
def test_a_sort_ends_when_it_is_told_to(signals: int, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.import_log.temporary_database.STEPS_BETWEEN_CHECKS", 1000)
    statements: list[str] = []

    def interrupt(statement: str) -> None:
        """Send the signals as soon as the sort begins."""
        statements.append(statement)
        if statement.startswith("INSERT INTO log"):
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = CONNECT(*arguments, **options)
        database.set_trace_callback(interrupt)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    assert run_import(options(temporary.parents[1], MANY), nowhere(temporary)) == 130
    assert statements[-1].startswith("INSERT INTO log"), "the sort went on to its end"
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_errors_are_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(HEAD + "u,i,1,1700000000\nu,i,no,1700000001\n")
    bad = asmg("import", str(log), code=2)
    assert bad.stderr == f"asmg: {log}, line 3, column 'label': expected 0 or 1; received 'no'\n"
    missing = asmg("import", str(tmp_path / "no.csv"), code=2)
    assert missing.stderr == f"asmg: {tmp_path / 'no.csv'}: No such file or directory\n"
    assert "--size with --by count" in asmg("import", str(log), "--by", "count", code=2).stderr
    assert "--period-column" in asmg("import", str(log), "--by", "column", code=2).stderr


def test_the_digest_is_of_the_content_and_of_what_shapes_the_log(tmp_path: Path) -> None:
    first = options(tmp_path, "a,b")
    same = [
        replace(first, append=True, worker=False, log=LogOptions(future_seconds=60)),
        options(tmp_path, "a,b", name="other.csv"),
    ]
    assert {each.digest() for each in same} == {first.digest()}
    changes: list[dict[str, Any]] = [
        {"by": "hour"},
        {"size": 2},
        {"log": LogOptions(columns=ColumnMap(user_id="u"))},
        {"log": LogOptions(positives_only=True)},
        {"log": LogOptions(positive_from=4)},
        {"log": LogOptions(timestamp_format="s")},
        {"log": LogOptions(timezone="Europe/Berlin")},
        {"malformed": "drop"},
        {"negatives": 2},
        {"seed": 1},
        {"log": LogOptions(features=DEFAULT)},
        {"log": LogOptions(features=SHOP, some_features=True)},
        {"log": LogOptions(features=SHOP, some_features=True, context={"device": "tab"})},
    ]
    others = [replace(first, **change) for change in changes] + [options(tmp_path, "a,b,c", name="other.csv")]
    assert len({each.digest() for each in [first, *others]}) == len(others) + 1
    assert re.fullmatch("[0-9a-f]{16}", first.digest())


def sort_file(
    path: Path, by: CutBy, log: LogOptions | None = None, *, malformed: Malformed = "error", negatives: int = 1
) -> SortedLog:
    """Sort a file in a database beside it."""
    folder = path.with_name("sorted")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    form = find_form(path, log or LogOptions())
    return sort_log(
        form,
        by,
        open_database(folder),
        malformed=malformed,
        negatives=negatives,
        seed=0,
        progress=lambda fraction: None,
    )


def test_events_are_called_after_their_place_and_items_come_with_their_first_piece(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,label,timestamp,categories\n"
        "u1,i2,1,1700000002,c|d\nu2,i1,0,1700000001,c\nu1,i2,1,1700000003.001,\n"
    )
    sorted_log = sort_file(path, "count")
    plan = ImportPlan("d", sorted_log, sorted_log.cut("count", 2))
    first = copied(plan.events(plan.pieces[0]))
    assert [(event.event_id, event.user_id, event.item_id, event.label) for event in first] == [
        ("d-0000000000", "u2", "i1", 0),
        ("d-0000000001", "u1", "i2", 1),
    ]
    assert [event.occurred_at.timestamp() for event in copied(plan.events(plan.pieces[1]))] == [1700000003.001]
    assert list(sorted_log.new_categories(plan.pieces)) == [{"i1": ("c",), "i2": ("c", "d")}, {}]
    assert plan.key(2) == "import:d:2"


@pytest.fixture(scope="module")
def unsorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of four weeks in no order, many of whose rows are of one moment; the column w says what week."""
    rng = np.random.default_rng(3)
    times = 1_700_000_000 + 3_600 * rng.integers(28 * 24, size=900)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(40, size=900)],
            "item_id": [f"i{n}" for n in rng.integers(30, size=900)],
            "label": rng.integers(2, size=900),
            "timestamp": times,
            "w": -(times // 604_800),  # the last week first
        }
    )
    path = tmp_path_factory.mktemp("unsorted") / "log.csv"
    frame.write_csv(path)
    return path


@pytest.mark.parametrize(
    ("by", "size"),
    [
        *(("count", size) for size in (7, 900, 901)),
        *(("periods", size) for size in (7, 2_000)),
        *(("hour", 5), ("day", 1), ("day", 3), ("week", 1), ("column", 1)),
    ],
)
def test_a_log_on_disk_is_cut_as_one_in_memory(
    by: CutBy, size: int, unsorted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 999)  # many blocks
    options = LogOptions(columns=ColumnMap(period="w" if by == "column" else None))
    log = read_log(unsorted, options)
    sorted_log = sort_file(unsorted, by, options)
    pieces = sorted_log.cut(by, size)
    found = [[row[1:5] for row in sorted_log.interactions(piece)] for piece in pieces]
    assert found == [
        list(zip(log.user_ids[rows], log.item_ids[rows], log.labels[rows], log.timestamps_ms[rows], strict=True))
        for rows in cut(log, by, size)
    ]
    assert [row.place for piece in pieces for row in sorted_log.interactions(piece)] == list(range(900))


@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_negatives_on_disk_follow_the_rule(at_once: int, unsorted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two right behind each positive, of its moment, of items that its user has nowhere in the log."""
    monkeypatch.setattr("service.cli.import_log.sorting.POSITIVES_PER_DRAW", at_once)
    options = LogOptions(positives_only=True)
    log = read_log(unsorted, options)
    sorted_log = sort_file(unsorted, "day", options, negatives=2)
    rows = list(sorted_log.interactions(range(len(sorted_log))))
    has: dict[str, set[str]] = {}
    for user, item in zip(log.user_ids, log.item_ids, strict=True):
        has.setdefault(user, set()).add(item)
    everything = set(log.item_ids)
    assert sorted_log.without_negative == sum(has[user] == everything for user in log.user_ids)
    assert sorted_log.without_negative == sample_negatives(log, rng=np.random.default_rng(0)).without_negative
    order = log.time_order()
    rest = iter(rows)
    for user, item, moment in zip(log.user_ids[order], log.item_ids[order], log.timestamps_ms[order], strict=True):
        assert next(rest)[1:] == (user, item, 1, moment, None)
        for _ in range(0 if has[user] == everything else 2):
            drawn = next(rest)
            assert (drawn.user_id, drawn.label, drawn.time_ms) == (user, 0, moment)
            assert drawn.item_id in everything - has[user]
    assert next(rest, None) is None
    again = sort_file(unsorted, "day", options, negatives=2)
    assert list(again.interactions(range(len(again)))) == rows  # the same negatives, so that an import can go on


def test_a_file_is_read_block_by_block(unsorted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is on disk before the next one is read, and nothing keeps it: a log may be larger than the memory."""
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 2_000)
    alive: list[weakref.ref[pl.DataFrame]] = []
    blocks = Scan.blocks

    def watched(scan: Scan) -> Iterator[pl.DataFrame]:
        for block in blocks(scan):
            assert sum(ref() is not None for ref in alive) <= 1, "an earlier block is still held"
            alive.append(weakref.ref(block))
            yield block

    monkeypatch.setattr(Scan, "blocks", watched)
    sorted_log = sort_file(unsorted, "day")
    assert len(alive) >= 10
    assert len(sorted_log) == 900


def test_bad_rows_may_be_left_out_of_an_import_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    ahead = round(time.time()) + 3_600
    path.write_text(HEAD + f"u,i,1,1700000000\nnan,i,1,1700000000\nu,j,1,{ahead}\nu,k\nv,j,0,1700000001\n")
    sorted_log = sort_file(path, "day", malformed="drop")
    assert list(sorted_log.interactions(range(9))) == [
        LoggedInteraction(0, "u", "i", 1, 1_700_000_000_000),
        LoggedInteraction(1, "v", "j", 0, 1_700_000_001_000),
    ]
    assert sorted(sorted_log.dropped.values()) == [1, 1, 1]
    with pytest.raises(LogFormatError, match="line 3, column 'user_id'"):
        sort_file(path, "day")
    path.write_text(HEAD + "None,i,1,1700000000\n")
    with pytest.raises(LogFormatError, match="at least one row that can be read; received none"):
        sort_file(path, "day", malformed="drop")
    with pytest.raises(ValueError, match="malformed: expected error or drop; received 'ignore'"):
        ImportOptions(file=path, malformed="ignore")  # type: ignore[arg-type] # the point of the test
