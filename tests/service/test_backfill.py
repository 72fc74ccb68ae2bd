"""`asmg import`: a log becomes periods, once, however often it is interrupted; and bad files are said to be bad."""

import asyncio
import re
import signal
import subprocess
import tempfile
import time
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

from asmg.datasets import ColumnMap, InteractionLog, LogFormatError, cut
from asmg.datasets.synthetic import DriftConfig, drift_stream
from service.backfill import ImportOptions, _Plan, run_import
from service.settings import Settings
from service.storage.database import Database
from service.storage.embedded import EmbeddedServers
from service.storage.redis_state import Notices
from service.storage.repositories import EventBatch, Interaction, PeriodStatus
from service.use_cases.watch import watch_period
from tests.conftest import Servers, database_dsn, execute, flush
from tests.service.copied import copied
from tests.service.programs import ASMG, asmg, environment, wait_for

PERIODS, EVENTS = 3, 11_000


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Three hours of clicks."""
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


def import_until(said: str, number: int, *arguments: str, **changes: str) -> None:
    """Run an import and send it a signal as soon as it has printed something, and half a second later."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*ASMG, "import", *arguments], stdout=output, env=environment(**changes))

        def printed() -> bool:
            output.seek(0)
            return bool(re.search(said, output.read(), re.MULTILINE)) or process.poll() is not None

        wait_for(printed)
        time.sleep(0.5)
        process.send_signal(number)
        code = process.wait(30)
        output.seek(0)
        assert code == (130 if number == signal.SIGINT else -number), output.read()
        if number == signal.SIGINT:
            output.seek(0)
            assert "the same command goes on from here" in output.read()


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
    assert [row[0] for row in expected["model_versions"]] == [0, 1, 2, 3]

    name = f"{migrated_template}_resumed"
    execute(servers, f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    flush(redis_url)
    try:
        other = database_dsn(servers, name)
        there = place(other, "b")
        import_until("^import ", signal.SIGINT, *arguments, **there)
        import_until(r"v1 generated$", signal.SIGKILL, *arguments, **there)
        resumed = asmg("import", *arguments, **there).stdout
        found = await everything(other)
    finally:
        execute(servers, f"DROP DATABASE {name} WITH (FORCE)")
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


HEAD = "user_id,item_id,label,timestamp\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "log.csv: expected a header line or a Parquet file; received an empty file"),
        (HEAD, "log.csv: expected at least one interaction; received none"),
        (HEAD.replace("item_id", "thing"), "line 1, column 'item_id'|expected a column 'item_id'"),
        (HEAD + "u,i,1,1700000000\nu,i,2,1700000001\n", "line 3, column 'label': expected 0 or 1; received '2'"),
        (HEAD + "u,i,1,yesterday\n", "line 2, column 'timestamp': expected seconds or milliseconds"),
        (HEAD + "u,,1,1700000000\n", "line 2, column 'item_id': expected an id of 1 to 256 characters"),
        (HEAD + "u,i,1\n", "line 2: expected 4 values like the header; received 3"),
        (b"PAR1 and then nothing", "expected a complete Parquet file"),
        (
            HEAD.replace("label", "categories") + "u,i," + "|".join(map(str, range(17))) + ",1700000000\n",
            "column 'categories': expected at most 16 categories of an item; received 17 of item 'i'",
        ),
    ],
)
def test_bad_files(content: str | bytes, said: str, tmp_path: Path) -> None:
    # No server is started for a file that cannot be used: these settings name none that answers.
    nowhere = Settings(postgres_dsn="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1", data_dir=tmp_path)
    with pytest.raises(LogFormatError, match=said):
        run_import(options(tmp_path, content), nowhere)


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
    same = [replace(first, append=True, worker=False), options(tmp_path, "a,b", name="other.csv")]
    assert {each.digest() for each in same} == {first.digest()}
    changes: list[dict[str, Any]] = [
        {"by": "hour"},
        {"size": 2},
        {"columns": ColumnMap(user_id="u")},
        {"positives_only": True},
        {"negatives": 2},
        {"seed": 1},
        {"timestamp_format": "s"},
    ]
    others = [replace(first, **change) for change in changes] + [options(tmp_path, "a,b,c", name="other.csv")]
    assert len({each.digest() for each in [first, *others]}) == len(others) + 1
    assert re.fullmatch("[0-9a-f]{16}", first.digest())


@pytest.fixture
def small_log() -> Iterator[InteractionLog]:
    yield InteractionLog(
        user_ids=np.array(["u1", "u2", "u1"], dtype=object),
        item_ids=np.array(["i2", "i1", "i2"], dtype=object),
        labels=np.array([1, 0, 1], np.uint8),
        timestamps_ms=np.array([2_000, 1_000, 3_001]),
        categories={"i1": ("c",), "i2": ("c", "d")},
    )


def test_rows_keep_their_names_and_items_come_with_their_first_piece(small_log: InteractionLog) -> None:
    plan = _Plan("d", small_log, cut(small_log, "count", 2))
    assert [event.event_id for event in copied(plan.events(plan.pieces[0]))] == ["d-0000000001", "d-0000000000"]
    assert [event.occurred_at.timestamp() for event in copied(plan.events(plan.pieces[1]))] == [3.001]
    assert list(plan.categories()) == [{"i1": ("c",), "i2": ("c", "d")}, {}]
    assert plan.key(2) == "import:d:2"
