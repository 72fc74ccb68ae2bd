"""`asmg import` turns a log into periods once, however often it is interrupted, and reports bad files."""

import asyncio
import os
import re
import signal
import sqlite3
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from asmg.datasets import ColumnMap, LogFormatError, LogOptions
from asmg.datasets.synthetic import DriftConfig, drift_stream
from asmg.features import DEFAULT
from service.cli.import_log.options import ImportOptions
from service.cli.import_log.run import run_import
from service.errors import ServiceError
from service.settings import Settings
from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch, Interaction, PeriodStatus
from service.storage.redis.notices import Notices
from service.use_cases.watch import watch_period
from tests.conftest import Servers, create_database, database_dsn, drop_database, flush
from tests.service.import_support import HEAD, SHOP, SHOP_LOG
from tests.service.programs import asmg, start, wait_for
from tests.service.worker_processes import forked_worker

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


@pytest.mark.slow
async def test_fields_are_imported(database: Database, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(SHOP_LOG)
    schema = tmp_path / "features.toml"
    schema.write_text(SHOP.to_toml())
    there = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    arguments = [str(tmp_path / "log.csv"), "--by", "count", "--size", "3", "--context", "device=Device"]
    refused = asmg("import", *arguments, code=1, **there)
    said = "asmg: context: expected a field of the context that the schema has (it has none); received device"
    assert refused.stderr.splitlines() == [said]
    with forked_worker(postgres_dsn, redis_url, tmp_path, features=schema):
        asmg("import", *arguments, "--no-worker", **there, ASMG_FEATURES=str(schema))
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
@pytest.mark.nightly
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
    with forked_worker(postgres_dsn, redis_url, tmp_path):
        asmg("import", *arguments, "--append", "--no-worker", **there)
    async with database.read() as session:
        assert [period.events for period in await session.periods.list(5)] == [None, 200, 401]
    # There is nothing left to do, and nothing is done; no worker is needed for that.
    before = await everything(postgres_dsn)
    asmg("import", *arguments, "--no-worker", **there)
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
