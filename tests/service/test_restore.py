"""A backup restored on an empty server gives the same service again, or nothing."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from service.storage.backup.manifest import read_backup
from service.storage.postgres.database import Database
from service.storage.postgres.structure import frozen, stored_tables
from service.use_cases.backup import back_up, require_empty_database
from service.use_cases.verify import verify
from tests.conftest import Servers, flush
from tests.service.api_support import running_app, settings_for
from tests.service.backup_support import (
    LEARNED,
    SETTINGS,
    Make,
    Past,
    alone,
    connected,
    contents,
    copying,
    enlarge,
    learn,
    opened,
    restored,
    sql,
    started,
)
from tests.service.programs import asmg, program, wait_for
from tests.service.update_support import STREAM, bench, outcome, periods, single_thread

USERS = [f"u{n}" for n in range(STREAM.users)]
ITEMS = [f"i{n}" for n in range(STREAM.items)]


async def described(database: Database) -> dict[str, list[Any]]:
    """Tables, indexes, constraints and triggers, by name and definition."""
    queries = {
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated "
        "FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
        "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
        "storage": "SELECT attrelid::regclass::text, attname, attstorage::text FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
    }
    async with database.read() as session:
        found: dict[str, list[Any]] = {"tables": msgspec.to_builtins(await stored_tables(session.connection))}
        for name, query in queries.items():
            rows = await session.connection.exec_driver_sql(f"{query} ORDER BY 1, 2")
            found[name] = [tuple(row) for row in rows]
    return found


async def predictions(dsn: str, key: str, redis_url: str, folder: Path) -> list[dict[str, Any]]:
    """What a service on this database answers to many users, known and unknown, whose histories it looks up."""
    flush(redis_url)
    answers, headers = [], {"Authorization": f"Bearer {key}"}
    async with running_app(settings_for(dsn, redis_url, folder)) as api:
        await api.state.serving.wait_loaded()
        for user in (*USERS, "nobody"):
            question = {"user_id": user, "items": [*ITEMS, "nothing"]}
            response = await api.client.post("/predict", json=question, headers=headers)
            assert response.status_code == 200
            answers.append({**response.json(), "request_id": None})
    return answers


class TestTheSameAgain:
    async def test_rows_structure_predictions_and_the_next_version(
        self, backup: Path, servers: Servers, past: Past, copy: Make, empty: str, redis_url: str, tmp_path: Path
    ) -> None:
        original = copy(past.name)
        async with connected(redis_url) as redis:
            await redis.set("asmg:past:u1", "of another past")
            await restored(empty, redis, backup)
            assert await redis.keys("*") == []
        async with opened(original) as one, opened(empty) as two:
            expected, found = await contents(one), await contents(two)
            assert {name: rows for name, rows in found.items() if name != "audit"} == {
                name: rows for name, rows in expected.items() if name != "audit"
            }
            assert found["audit"][0] == expected["audit"][0] + 1  # that it was restored
            assert await described(one) == await described(two)
            assert (await verify(two, tmp_path)).findings == []
        answers = [
            await predictions(dsn, past.key, redis_url, tmp_path / f"{n}") for n, dsn in ((0, original), (1, empty))
        ]
        assert answers[0] == answers[1]
        assert len({score for answer in answers[0] for score in answer["scores"]}) > 100
        outcomes = []
        for n, dsn in enumerate((original, empty)):
            async with bench(dsn, redis_url, tmp_path / str(n), **SETTINGS) as b:
                ninth, tenth, eleventh = periods(LEARNED + 3)[LEARNED:]
                with single_thread():
                    await b.update(ninth.number)
                    await b.close(tenth.number)
                    await b.update(tenth.number)
                await learn(b, eleventh)
                outcomes.append(await outcome(b.database))
        assert outcomes[0] == outcomes[1]
        assert set(outcomes[0]["versions"]) == set(range(LEARNED + 4))

    async def test_what_a_partition_alone_has_comes_back(
        self, copy: Make, past: Past, empty: str, redis: Redis, tmp_path: Path
    ) -> None:
        async with opened(copy(past.name)) as database:
            await sql(
                database,
                "CREATE UNIQUE INDEX own ON interactions_p3 (event_id) WHERE label <> 7",
                "ALTER TABLE interactions_p4 ADD CONSTRAINT own_key UNIQUE (event_id)",
                "ALTER TABLE interactions_p5 ADD CONSTRAINT own_check CHECK (item_id <> ':name')",
            )
            await back_up(database, tmp_path / "backup")
            expected = await described(database)
        await restored(empty, redis, tmp_path / "backup")
        async with opened(empty) as database:
            assert await described(database) == expected
        parts = {table["name"]: table.get("partition") for table in expected["tables"]}
        assert parts["interactions_p3"]["indexes"] and parts["interactions_p4"]["constraints"]
        assert parts["interactions_p2"] == {"of": "interactions", "period": 2}

    async def test_the_audit_goes_on_where_it_was(self, backup: Path, empty: str, redis: Redis) -> None:
        await restored(empty, redis, backup)
        async with opened(empty) as database, database.unit_of_work() as work:
            await work.audit.add("test", "after", {})
            after, restoration, before, *_ = await work.audit.list(1000)
        assert (restoration.actor, restoration.action, restoration.detail["sha256"]) == (
            "test",
            "restore",
            read_backup(backup).sha256,
        )
        assert (restoration.id, after.id) == (before.id + 1, before.id + 2)
        async with opened(empty) as database:
            with pytest.raises(DBAPIError, match="rows of the audit are only added"):
                await sql(database, "SET LOCAL session_replication_role = replica", "DELETE FROM audit")

    async def test_time_limits_of_the_server_do_not_end_it(
        self, copy: Make, past: Past, redis: Redis, servers: Servers, tmp_path: Path
    ) -> None:
        dsns = copy(past.name), copy()
        for dsn in dsns:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
                servers.execute(f"ALTER DATABASE {make_url(dsn).database} SET {name} = 500")
        async with opened(dsns[0]) as one, opened(dsns[1]) as two:
            async with frozen(one) as (session, _):
                await asyncio.sleep(0.8)
                await session.connection.execute(text("SELECT pg_sleep(0.8)"))
            await back_up(one, tmp_path / "backup")
            await sql(
                two,
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$",
                "CREATE TRIGGER wait AFTER INSERT ON items EXECUTE FUNCTION wait()",
            )
            await restored(dsns[1], redis, tmp_path / "backup")


class TestKilled:
    async def test_a_killed_restore_leaves_an_empty_database_that_takes_the_backup(
        self, copy: Make, past: Past, empty: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with opened(copy(past.name)) as database:
            await enlarge(database)
            await back_up(database, tmp_path / "backup")
            expected = await contents(database)
        arguments = ("restore", str(tmp_path / "backup"))
        async with opened(empty) as database:
            for table in ("a new one", "artifact_chunks"):
                with started(*arguments, dsn=empty, redis_url=redis_url) as process:
                    await copying(database, process, table)
                    process.kill()
                await alone(database)
                await require_empty_database(database)
            async with connected(redis_url) as redis:
                await restored(empty, redis, tmp_path / "backup")
            assert (await verify(database, tmp_path)).findings == []
            found = await contents(database)
        assert {name for name in expected if expected[name] != found[name]} == {"audit"}


@pytest.mark.slow
def test_served_on_another_host_it_answers_the_same(data_dir: Path, tmp_path: Path) -> None:
    """A working service with embedded servers is backed up, and another data folder is restored from it and serves."""
    one, two = data_dir / "one", data_dir / "two"
    one.mkdir(parents=True)
    backup = tmp_path / "backup"
    questions = [{"user_id": f"u{n}", "items": [f"i{m}" for m in range(15)]} for n in range(30)]
    stream = periods(2)
    with program(tmp_path, "--data-dir", str(one)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        for number, period in enumerate(stream, start=1):
            rows = zip(
                period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True
            )
            log = [
                {"event_id": f"{number}-{n}", "user_id": u, "item_id": i, "label": y, "timestamp": t}
                for n, (u, i, y, t) in enumerate(rows)
            ]
            assert client.post("/interactions", json={"interactions": log}).status_code == 200
            assert client.post("/periods/close").status_code == 202
        wait_for(lambda: client.post("/predict", json=questions[0]).json()["model_version"] == 2, 120)
        asked = client.post("/predict/batch", json={"requests": questions}).json()
        result = asmg("backup", str(backup), "--data-dir", str(one))
        assert "serving version 2" in result.stdout
    result = asmg("restore", str(backup), "--data-dir", str(two))
    assert "serving version 2" in result.stdout and "all is well" in result.stdout
    with program(tmp_path, "--data-dir", str(two)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        again = client.post("/predict/batch", json={"requests": questions}).json()
    assert [answer["scores"] for answer in again["predictions"]] == [
        answer["scores"] for answer in asked["predictions"]
    ]
    assert again["model_version"] == asked["model_version"] == 2
