"""Exports of closed periods: what the files hold, that they are whole, and that none is missed."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from service.errors import NotReady
from service.settings import Settings
from service.storage.artifacts.objects import Objects
from service.storage.postgres.database import Database
from service.storage.postgres.events import EventBatch
from service.storage.postgres.repositories import EXPORTED, Click, Impression
from service.storage.postgres.repositories.log_columns import PeriodLog
from service.storage.redis.histories import HistoryStore
from service.use_cases import export, retention
from service.use_cases.close_period import close_period
from service.use_cases.export import Exporter, Folder, export_pending, export_period, exports_waiting, file_of
from service.use_cases.ingest import ingest, ingest_clicks, ingest_impressions
from service.use_cases.retention import drop_old_logs
from service.use_cases.update.resolve import resolve_skipped
from tests.service.backup_support import sql
from tests.service.programs import asmg
from tests.service.update_support import interactions, periods, until_true

WINDOW = timedelta(minutes=30)
EARLIER = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
SHOWN = {  # request → version, item → (score, whether it was clicked)
    "r1": (3, {"a": (0.8, 1), "b": (0.5, 0), "c": (0.2, 0)}),
    "r2": (3, {"d": (0.5, 1), "e": (0.1, 0)}),
    "r3": (4, {"f": (0.3, 1), "g": (0.6, 0)}),
}
AUC = {3: (3 + 2.5) / 6, 4: 0.0}
"""Of version 3: 0.8 is above all three negatives; 0.5 is above two of them and beside the third."""


@pytest.fixture
async def closed(database: Database, store: HistoryStore) -> AsyncIterator[Database]:
    """A database whose periods 1 and 2 do not change any more, with impressions and clicks in the first."""
    for number, period in enumerate(periods(2), 1):
        await ingest(database, store, EventBatch.of(interactions(period)))
        if number == 1:
            for request_id, (version, items) in SHOWN.items():
                shown = Impression(request_id, "ann", list(items), None, EARLIER, '{"page": "home"}')
                await ingest_impressions(database, store, [shown], WINDOW)
                clicked = [item for item, (_, label) in items.items() if label]
                clicks = [Click(f"{request_id}/{item}", request_id, item, EARLIER) for item in clicked]
                await ingest_clicks(database, store, clicks, WINDOW)
                scores = ",".join(str(score) for score, _ in items.values())
                await sql(
                    database,
                    f"UPDATE impressions SET model_version = {version}, scores = '{{{scores}}}' "
                    f"WHERE request_id = '{request_id}'",
                )
        await close_period(database, expected_period=number, idempotency_key=None, actor="test")
        await sql(database, f"UPDATE periods SET status = 'skipped', finished_at = now() WHERE number = {number}")
        await resolve_skipped(database, store, WINDOW)
    yield database


async def log_of(database: Database, period: int) -> PeriodLog:
    async with database.read() as session:
        return await session.interactions.log(period)


async def test_files_hold_the_log(
    closed: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_dsn: str, redis_url: str
) -> None:
    """In pages; a second run writes nothing that is there; the command does the same."""
    monkeypatch.setitem(EXPORTED, "interactions", EXPORTED["interactions"]._replace(rows=100))
    folder, scratch = tmp_path / "out", tmp_path / "scratch"
    log = await log_of(closed, 1)
    assert await export_period(closed, Folder(folder), scratch, 1) == {"interactions": len(log), "impressions": 3}
    found = pl.read_parquet(folder / file_of("interactions", 1), hive_partitioning=False)
    assert len(log) == 307
    assert found["user_id"].to_list() == log.user_ids and found["item_id"].to_list() == log.item_ids
    assert found["occurred_at"].dt.epoch("ms").to_list() == log.timestamps_ms.tolist()
    assert found["label"].to_list() == log.labels.tolist() and found["weight"].to_list() == log.weights.tolist()
    assert set(found["period"]) == {1} and found["event_id"].n_unique() == len(log)
    ann = found.filter(pl.col("request_id") == "r2").sort("item_id")
    assert ann.select("event_id", "context", "sampled").rows() == [
        ("r2/d", '{"page": "home"}', False),
        ("r2/e", '{"page": "home"}', False),
    ]
    impressions = pl.read_parquet(folder / file_of("impressions", 1), hive_partitioning=False).sort("request_id")
    assert impressions["item_ids"].to_list() == [list(items) for _, items in SHOWN.values()]
    assert impressions["shown_at"].to_list() == [EARLIER] * 3
    assert list(scratch.iterdir()) == []

    (folder / file_of("impressions", 1)).write_bytes(b"complete")
    assert await export_period(closed, Folder(folder), scratch, 1) == {}
    settings = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    command = ["export", str(folder), "--to", "7", "--tables", "impressions"]
    done = (await asyncio.to_thread(asmg, *command, **settings)).stdout
    assert "period 1: all files are there already\nasmg: period 2: 0 impressions\nasmg: 1 new files of 2" in done
    assert (folder / file_of("impressions", 1)).read_bytes() == b"complete"
    again = await export_period(closed, Folder(folder), scratch, 1, ["impressions"], again=True)
    assert again == {"impressions": 3} and len(pl.read_parquet(folder / file_of("impressions", 1))) == 3


async def test_the_query_of_the_docs_gives_the_auc(closed: Database, tmp_path: Path) -> None:
    await export_period(closed, Folder(tmp_path / "export"), tmp_path, 1)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    found = re.search(r"```sql\n(.*?)```", page, re.DOTALL)
    assert found is not None
    query = found[1].replace("export/", f"{tmp_path}/export/").replace("period=12", "period=1")
    rows = {version: (events, auc) for version, events, auc in duckdb.sql(query).fetchall()}
    assert {version: auc for version, (_, auc) in rows.items()} == pytest.approx(AUC)
    assert {version: events for version, (events, _) in rows.items()} == {3: 5, 4: 2}


async def test_no_log_is_dropped_before_it_is_exported(
    closed: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_dsn: str, redis_url: str
) -> None:
    """Whatever the object store does; and each period is exported once."""
    monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 0)
    url = f"file://{tmp_path}/objects"
    settings = Settings(postgres_dsn=postgres_dsn, redis_url=redis_url, export_url=url, keep_logs=0)
    objects, stored = Objects(url), Objects.put
    puts: list[str] = []

    async def put(self: Objects, key: str, content: Any) -> None:
        puts.append(key)
        if len(puts) == 4:
            raise NotReady("the store is away")
        await stored(self, key, content)

    monkeypatch.setattr(Objects, "put", put)
    with pytest.raises(NotReady, match="the store is away"):
        await export_pending(closed, objects, tmp_path / "scratch")
    assert await drop_old_logs(closed, settings) == [1]
    puts[:] = puts[:-2]  # the next attempt, that of the worker, fails too, and is made again
    monkeypatch.setattr(export, "RETRY_SECONDS", 0.01)
    count, seconds = await exports_waiting(closed)
    assert (count, seconds > 0) == (1, True)
    failures: list[None] = []
    exporter = Exporter(closed, objects, tmp_path / "scratch", failed=lambda: failures.append(None))
    exporting = asyncio.create_task(exporter.run())
    exporter.wake()
    await until_true(closed, "SELECT exported_at IS NOT NULL FROM periods WHERE number = 2")
    exporting.cancel()
    assert (await exports_waiting(closed), len(failures)) == ((0, 0.0), 1)
    assert await export_pending(closed, objects, tmp_path / "scratch") == []
    assert puts == [file_of(name, number) for number in (1, 2, 2) for name in EXPORTED]
    assert await export_period(closed, objects, tmp_path / "scratch", 2) == {}  # all is there
    assert await drop_old_logs(closed, settings) == [2]
    assert await export_period(closed, Folder(tmp_path / "late"), tmp_path, 1) is None
    assert len(pl.read_parquet(tmp_path / "objects" / file_of("interactions", 2))) == 300
