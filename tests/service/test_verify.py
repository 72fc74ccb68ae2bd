"""`asmg verify` finds every kind of damage, names it, and finds none where there is none."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from service.cli import app
from service.serving.prior import prior_snapshot
from service.storage.backup.verify import find_faults_of_rows
from service.storage.postgres.database import UnitOfWork
from service.storage.postgres.migrate import head_revision
from service.storage.postgres.repositories import PeriodStatus
from service.storage.postgres.structure import references, stored_tables
from service.storage.redis.notices import Notices
from service.use_cases.rollback import rollback
from service.use_cases.verify import Finding, examine, verify
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.backup_support import LEARNED, SETTINGS, Past, learn, opened, sql
from tests.service.update_support import bench, copies, periods, single_thread

NEXT, OPEN = LEARNED + 1, LEARNED + 2
"""The period to be updated on, of which the first stages are done, and the open one."""


@pytest.fixture(scope="module")
def dsn(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    past: Past,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A database with a past, and an update that was killed; nobody changes it."""

    async def begin(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, tmp_path_factory.mktemp("killed"), **SETTINGS) as b:
            with single_thread(), pytest.raises(ZeroDivisionError):
                await b.update(NEXT, notices=KilledAtGate(b.redis))

    with copies(servers, migrated_template, database_numbers) as copy:
        name = database_dsn(servers, copy(past.name))
        in_thread(asyncio.run, begin(name))
        yield name


class KilledAtGate(Notices):
    """The worker dies when this stage begins."""

    async def publish_progress(self, period: int, progress: Any) -> None:
        if progress["stage"] == "gate":
            raise ZeroDivisionError


@asynccontextmanager
async def damaged(dsn: str, *statements: str) -> AsyncIterator[UnitOfWork]:
    """A transaction that did what neither the service nor the constraints would have done, and that is undone."""
    async with opened(dsn) as database, database.unit_of_work() as work:
        for statement in ("SET LOCAL session_replication_role = replica", *statements):
            await work.connection.exec_driver_sql(statement)
        yield work


async def findings(dsn: str, folder: Path, *statements: str) -> list[str]:
    async with damaged(dsn, *statements) as work:
        outcome = await examine(work, await stored_tables(work.connection), folder)
    return [str(finding) for finding in outcome.findings]


async def findings_of_rows(dsn: str, *statements: str) -> list[str]:
    """The same, without comparing the schema or reading artifacts, which takes a second."""
    async with damaged(dsn, *statements) as work:
        found = await find_faults_of_rows(work.connection, await stored_tables(work.connection))
    return [str(finding) for finding in found]


async def test_nothing_is_found_where_nothing_is_wrong(dsn: str, tmp_path: Path) -> None:
    async with opened(dsn) as database:
        outcome = await verify(database, tmp_path)
    assert outcome.findings == []
    assert outcome.artifacts > 20 and outcome.bytes > 100_000
    assert os.listdir(tmp_path) == []


def flipped(digest: str) -> str:
    """One bit of an artifact."""
    return f"UPDATE artifact_chunks SET data = set_byte(data, 200, get_byte(data, 200) # 1) WHERE digest = {digest}"


def without(digest: str) -> list[str]:
    """An artifact is gone, with all of its chunks."""
    return [f"DELETE FROM {table} WHERE digest = {digest}" for table in ("artifact_chunks", "artifacts")]


SERVED = f"(SELECT serving_digest FROM model_versions WHERE version = {LEARNED})"
HIDDEN = f"(SELECT state #>> '{{parts,hidden,-1}}' FROM model_versions WHERE version = {LEARNED})"

Damage = dict[str, tuple[list[str], list[str]]]
"""Name → what does it, and what each finding begins with."""

DAMAGED_ROWS: Damage = {
    # periods
    "a period's number": (
        [f"UPDATE periods SET number = 99 WHERE number = {OPEN}"],
        [f"periods: expected numbers from 1 on; found {OPEN} periods from 1 to 99"],
    ),
    "no open period": (
        [f"UPDATE periods SET status = 'sealed' WHERE number = {OPEN}"],
        [f"period {OPEN}: expected open; found sealed"],
    ),
    "an old period opened again": (
        [
            f"UPDATE periods SET status = 'sealed' WHERE number = {OPEN}",
            "UPDATE periods SET status = 'open' WHERE number = 3",
        ],
        ["period 3: expected closed: a newer one is there; found open"],
    ),
    "a sealed period without a time": (
        ["UPDATE periods SET sealed_at = NULL WHERE number = 3"],
        ["period 3: expected a time and a number of events exactly if it is sealed; found status updated"],
    ),
    "an open period with a count": (
        [f"UPDATE periods SET events = 3 WHERE number = {OPEN}"],
        [f"period {OPEN}: expected a time and a number of events exactly if it is sealed; found status open"],
    ),
    "an updated period without a version": (
        ["UPDATE periods SET version = NULL WHERE number = 3"],
        [
            "period 3: expected a version exactly if it is updated; found status updated, version ",
            "model version 3: expected period 3 to name it; found version ",
        ],
    ),
    "a period with a version that is not there": (
        ["UPDATE periods SET version = 77 WHERE number = 3"],
        ["period 3: expected version 77 to be its own; found no such version"],
    ),
    "a period with another's version": (
        ["UPDATE periods SET version = 4 WHERE number = 3"],
        [
            "period 3: expected version 4 to be its own; found that of period 4",
            "model version 3: expected period 3 to name it; found version 4",
        ],
    ),
    # versions
    "a version of a period that is not there": (
        ["UPDATE model_versions SET period = 77 WHERE version = 3"],
        ["model version 3: expected period 77 to name it; found no such period"],
    ),
    "a version's number": (
        ["UPDATE model_versions SET version = 55 WHERE version = 2"],
        [f"model versions: expected numbers from 0 on; found {LEARNED + 1} versions from 0 to 55"],
    ),
    "a version without a parent": (
        ["UPDATE model_versions SET parent_version = NULL WHERE version = 4"],
        ["model version 4: expected an earlier version as parent; found none"],
    ),
    "a version that is its own parent": (
        ["UPDATE model_versions SET parent_version = 4 WHERE version = 4"],
        ["model version 4: expected an earlier version as parent; found 4"],
    ),
    "a baseline that was let go": (
        ["UPDATE model_versions SET state = state - 'serving' WHERE version = 1"],
        ["alias baseline: expected version 1 with its parameters; found none"],
    ),
    "an evaluation of no version": (
        ["UPDATE evaluations SET version = 77 WHERE period = 3 AND model = 'generated'"],
        ["evaluation of generated on period 3: expected version 77; found no such version"],
    ),
    "an artifact of a shadow": (
        [f'INSERT INTO shadows (method, version, state) VALUES (\'iu\', 1, \'{{"parts": {{"base": "{"0" * 64}"}}}}\')'],
        ["shadow iu: expected every artifact that it names; found no artifact 0000"],
    ),
    # stages
    "a stage that is done without an end": (
        ["UPDATE period_stages SET finished_at = NULL WHERE period = 3 AND stage = 'gate'"],
        ["stage gate of period 3: expected an end exactly if it is done; found status done, finished at  after "],
    ),
    "a stage that goes on for ever": (
        [
            "UPDATE period_stages SET status = 'running', finished_at = NULL, seconds = NULL "
            "WHERE period = 3 AND stage = 'gate'"
        ],
        ["period 3: expected no stage of an open period, one at a time of any other; found status updated"],
    ),
    "a stage of the open period": (
        [f"UPDATE period_stages SET period = {OPEN} WHERE period = {NEXT} AND stage = 'score'"],
        [f"period {OPEN}: expected no stage of an open period, one at a time of any other; found status open, 1"],
    ),
    "a period that was never published": (
        ["DELETE FROM period_stages WHERE period = 3 AND stage = 'publish'"],
        ["stage publish of period 3: expected it done, with version 3; found none"],
    ),
    "a period that published something else": (
        ["""UPDATE period_stages SET result = '{"version": 7}' WHERE period = 3 AND stage = 'publish'"""],
        ["stage publish of period 3: expected it done, with version 3; found it done, with version 7"],
    ),
    # the log
    "an interaction": (
        ["DELETE FROM interactions WHERE event_id = '3-000001'"],
        [
            "log of period 3: expected 300 interactions, as counted when it was sealed; found 299",
            "event 3-000001: expected once in the log, once among the event ids; found 0 times and 1 times",
        ],
    ),
    "an event id": (
        ["DELETE FROM event_ids WHERE event_id = '4-000002'"],
        ["event 4-000002: expected once in the log, once among the event ids; found 1 times and 0 times, in period 4"],
    ),
    "an event id of another period": (
        ["UPDATE event_ids SET period = 5 WHERE event_id = '4-000002'"],
        ["event 4-000002: expected once in the log, once among the event ids; found 1 times and 1 times, in .* 4, 5"],
    ),
    "an event id of no log": (
        ["INSERT INTO event_ids (kind, event_id, period) VALUES (0, 'ghost', 3)"],
        ["event ghost: expected once in the log, once among the event ids; found 0 times and 1 times, in period 3"],
    ),
    "a count": (
        [f"UPDATE log_counters SET events = events + 1 WHERE period = {OPEN}"],
        [f"log of period {OPEN}: expected 301 interactions, as counted when they were stored; found 300"],
    ),
    "a dropped log that was not folded": (
        ["UPDATE periods SET log_folded_at = NULL WHERE number = 1"],
        ["log of period 1: expected its clicks in the histories that stay, for it is dropped; found not"],
    ),
    "an event id before its time": (
        [f"INSERT INTO event_ids (kind, event_id, period) VALUES (0, '{OPEN}-000001', {OPEN})"],
        [f"event {OPEN}-000001: expected once in the log, not yet among the event ids; found 1 times and 1 times"],
    ),
    "an event of two periods": (
        [
            "INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at) "
            f"SELECT event_id, {OPEN}, user_id, item_id, label, occurred_at FROM interactions "
            "WHERE event_id = '4-000002'"
        ],
        [f"event 4-000002: expected once in the log, once among the event ids; found 2 times and 1 times, in .*{OPEN}"],
    ),
    "all event ids of a period": (
        ["DELETE FROM event_ids WHERE period = 5"],
        ["event 5-000019: ", "280 more: expected once in the log, once among the event ids; found others"],
    ),
    "a log that is dropped, they say": (
        ["UPDATE periods SET log_dropped_at = now() WHERE number = 3"],
        ["interactions of period 3: expected no partition, for it was dropped; found one"],
    ),
    "a log that is kept, they say": (
        ["UPDATE periods SET log_dropped_at = NULL WHERE number = 1"],
        [
            "interactions of period 1: expected a partition; found none",
            "log of period 1: expected 300 interactions, as counted when it was sealed; found 0",
        ],
    ),
    "a partition": (
        ["DROP TABLE interactions_p4"],
        ["interactions of period 4: expected a partition; found none"],
    ),
    "a partition that is detached": (
        ["ALTER TABLE interactions DETACH PARTITION interactions_p4"],
        ["interactions of period 4: expected a partition; found none"],
    ),
    "a partition of no period": (
        ["CREATE TABLE interactions_p99 PARTITION OF interactions FOR VALUES IN (99)"],
        ["partition of interactions for period 99: expected a period that is there; found none"],
    ),
    "a partition of impressions": (
        ["DROP TABLE impressions_p4"],
        ["impressions of period 4: expected a partition; found none"],
    ),
    # impressions and clicks
    "an impression": (
        ["DELETE FROM impressions WHERE request_id = 'r1'"],
        [f"impression r1: expected once stored and .* found stored in none, among the event ids in {OPEN}"],
    ),
    "the id of a click": (
        ["DELETE FROM event_ids WHERE event_id = 'r1/a'"],
        [f"click r1/a: expected once stored and .* found stored in {OPEN}, among the event ids in none"],
    ),
    "a context that is no object": (
        ["UPDATE impressions SET context = '3' WHERE request_id = 'r1'"],
        [r"impression r1: expected an object as context, .*; found number, and none for \d+ items"],
    ),
    "contexts of other items": (
        ["""UPDATE impressions SET item_contexts = '[null, null, null, {"a": 1}, 1, 1, 1]' WHERE request_id = 'r1'"""],
        [r"impression r1: expected .* one or null for each of its items; found none, and 7 for \d+ items"],
    ),
    "a weight of nothing": (
        ["UPDATE interactions SET weight = 0 WHERE event_id = '4-000002'"],
        ["event 4-000002: expected an object as context, and a weight above 0; found none and 0"],
    ),
    "features that are no object": (
        ["INSERT INTO user_features (user_id, at, features) VALUES ('u', now(), '[]')"],
        ["features of user u at .*: expected an object; found array"],
    ),
    "an impression in another period": (
        [f"UPDATE impressions SET period = {NEXT} WHERE request_id = 'r1'"],
        [f"impression r1: expected once stored and .* found stored in {NEXT}, among the event ids in {OPEN}"],
    ),
    "labels": (
        ["UPDATE periods SET labels = NULL WHERE number = 4"],
        ["period 4: expected its impressions and clicks resolved, for it is updated; found not"],
    ),
    # ids and histories
    "a row of an id": (
        ["DELETE FROM entity_rows WHERE kind = 'item' AND row = 3"],
        [r"rows of the kind item: expected numbers from 1 on, each once; found \d+ rows from 1 to "],
    ),
    "a row that was added before the one before it": (
        ["UPDATE entity_rows SET appended = 9 WHERE kind = 'user' AND row = 3"],
        ["row 4 of the kind user: expected added by allocation 9 or a later one; found "],
    ),
    "an id of no period": (
        ["UPDATE entity_rows SET first_period = 77 WHERE kind = 'user' AND row = 3"],
        ["row 3 of the kind user: expected a first period that is there; found 77"],
    ),
    "a row that was seen and is not there": (
        ["INSERT INTO seen_rows (kind, period, rows) VALUES ('user', 3, '{1,7777}')"],
        ["rows of the kind user that period 3 has seen: expected a period and rows that are there; found row 7777 of "],
    ),
    "rows that no period has seen": (
        ["INSERT INTO seen_rows (kind, period, rows) VALUES ('user', 77, '{1}')"],
        ["rows of the kind user that period 77 has seen: expected a period and rows that are there; found row 1 of "],
    ),
    "an item of no period": (
        ["UPDATE items SET period = 77 WHERE item_id = 'i1'"],
        ["item i1: expected the period in which it was stored; found 77, which is not there"],
    ),
    "an item of a history": (
        ["UPDATE user_histories SET item_ids = item_ids[2:]"],
        ["history of user u1: expected up to 30 clicks, newest first; found "],
    ),
    "the order of a history": (
        [
            "UPDATE user_histories SET times = ARRAY(SELECT time FROM unnest(times) AS time ORDER BY time) "
            "WHERE user_id = 'u1'"
        ],
        ["history of user u1: expected up to 30 clicks, newest first; found "],
    ),
    "an event of passes": (
        ["INSERT INTO user_passes VALUES ('somebody', '{i1,i2}', '{e1}', ARRAY[now(), now()])"],
        ["passes of user somebody: expected up to 30 passes, newest first; found 2 items, 1 events, "],
    ),
    # counters
    "a counter that was set back": (
        ["ALTER SEQUENCE audit_id_seq RESTART WITH 3"],
        [r"audit\.id: expected values below the next, 3; found \d+"],
    ),
}
"""What rows alone show."""

DAMAGED_MODELS: Damage = {
    # schema
    "the schema of an older release": (
        ["UPDATE alembic_version SET version_num = '0008'"],
        [f"schema: expected revision {head_revision()}, that of this release; found 0008"],
    ),
    "a column": (
        ["ALTER TABLE api_keys DROP COLUMN revoked_at"],
        ["schema: expected the tables of this release; found a difference: add_column api_keys api_keys.revoked_at"],
    ),
    # versions
    "a part of the training state": (
        without(HIDDEN),
        [
            f"model version {LEARNED}: expected every artifact that it names; found no artifact [0-9a-f]{{64}}",
            f"training state of version {LEARNED}: expected one that an update can go on from; found there is no ",
        ],
    ),
    "a member of the sequence": (
        [f"UPDATE model_versions SET state = state #- '{{parts,model.1}}' WHERE version = {LEARNED}"],
        [f"training state of version {LEARNED}: expected one that an update can go on from; found .*model.1"],
    ),
    # aliases
    **{
        f"no {name}": (
            [f"DELETE FROM aliases WHERE name = '{name}'"],
            [f"alias {name}: expected a model version; found none"],
        )
        for name in ("champion", "head", "baseline")
    },
    "a champion that was let go": (
        [f"UPDATE model_versions SET serving_digest = NULL WHERE version = {LEARNED}"],
        [f"alias champion: expected version {LEARNED} with its serving snapshot; found none"],
    ),
    "a head that was let go": (
        [f"UPDATE model_versions SET state = state - 'parts' WHERE version = {LEARNED}"],
        [f"alias head: expected version {LEARNED} with its training state; found none"],
    ),
    # artifacts
    "a bit of an artifact": (
        [flipped(HIDDEN)],
        ["artifact ([0-9a-f]{64}): expected content with this SHA-256; found (?!\\1)[0-9a-f]{64}"],
    ),
    "a bit of what is served": (
        [flipped(SERVED)],
        [
            "artifact ([0-9a-f]{64}): expected content with this SHA-256; found ",
            f"serving snapshot of version {LEARNED}: expected one that loads and scores as written; found ",
        ],
    ),
    "the size of an artifact": (
        [f"UPDATE artifacts SET size = size + 1 WHERE digest = {HIDDEN}"],
        [r"artifact [0-9a-f]{64}: expected \d+ bytes in chunks from 0 on; found \d+ bytes in 1 chunks up to 0"],
    ),
    "a chunk": (
        [f"DELETE FROM artifact_chunks WHERE digest = {HIDDEN}"],
        [r"artifact [0-9a-f]{64}: expected \d+ bytes in chunks from 0 on; found 0 bytes in 0 chunks up to "],
    ),
    "the number of a chunk": (
        [f"UPDATE artifact_chunks SET index = 5 WHERE digest = {HIDDEN}"],
        [r"artifact [0-9a-f]{64}: expected \d+ bytes in chunks from 0 on; found \d+ bytes in 1 chunks up to 5"],
    ),
}
"""What the schema or the artifacts show, or keeps these from being looked at."""


@pytest.mark.parametrize("name", DAMAGED_ROWS)
async def test_damaged_rows_are_found(dsn: str, name: str) -> None:
    statements, expected = DAMAGED_ROWS[name]
    assert_found(await findings_of_rows(dsn, *statements), expected)


@pytest.mark.parametrize("name", DAMAGED_MODELS)
async def test_damaged_models_are_found(dsn: str, tmp_path: Path, name: str) -> None:
    statements, expected = DAMAGED_MODELS[name]
    assert_found(await findings(dsn, tmp_path, *statements), expected)


def assert_found(found: list[str], expected: list[str]) -> None:
    for pattern in expected:
        assert any(re.match(pattern, finding) for finding in found), "\n".join(found)


UNFILLED = (
    "INSERT INTO webhooks (url, secret, created_by) VALUES ('https://example.com', 's', 'test')",
    "INSERT INTO webhook_deliveries (webhook, message, event, data) VALUES (1, 'm', 'e', '{}')",
    "INSERT INTO canaries (version, champion_version, share, salt, minutes) VALUES (1, 0, 0.1, 1, 30)",
    "UPDATE aliases SET canary_version = 1 WHERE name = 'champion'",
    "UPDATE takeovers SET canary_version = 1",
    "INSERT INTO shadows (method, version, state) VALUES ('iu', 1, '{}')",
    "INSERT INTO shadow_periods (version, late) VALUES (1, false)",
)
"""Rows of the tables that no other test of this file needs filled."""


async def test_every_foreign_key_is_looked_at(dsn: str, tmp_path: Path) -> None:
    async with opened(dsn) as database, database.read() as session:
        keys = await references(session.connection)
    assert len(keys) >= 6
    for key in keys:
        (column,) = key.columns
        one = f"(SELECT ctid FROM {key.table} WHERE {column} IS NOT NULL ORDER BY 1 LIMIT 1)"
        is_text = key.referred == "artifacts"
        change = f"UPDATE {key.table} SET {column} = {repr('none') if is_text else 77} WHERE ctid = {one}"
        async with damaged(dsn, *UNFILLED, change) as work:
            found = map(str, await find_faults_of_rows(work.connection, await stored_tables(work.connection)))
        value = "none" if is_text else 77
        assert f"{key.table} ({column}): expected a row of {key.referred}; found none with ({value})" in found


async def test_a_snapshot_that_scores_otherwise_than_it_was_written(dsn: str, tmp_path: Path) -> None:
    """Every digest is right; only the check questions show the damage."""
    content = prior_snapshot(0.25).replace(b"0.25", b"0.35")
    async with damaged(dsn) as work:
        digest = await work.artifacts.put(content, "serving")
        change = (
            f"UPDATE model_versions SET serving_digest = '{digest}', "
            f"state = jsonb_set(state, '{{snapshot}}', '[\"{digest}\"]') WHERE version = {LEARNED}"
        )
        await work.connection.exec_driver_sql(change)
        outcome = await examine(work, await stored_tables(work.connection), tmp_path)
    (finding,) = outcome.findings
    assert finding.object == f"serving snapshot of version {LEARNED}"
    assert "expected the scores of the check questions" in finding.found


async def test_nothing_is_wrong_with_a_young_service(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    async with opened(postgres_dsn) as database:
        assert (await verify(database, tmp_path)).findings == []
        async with bench(postgres_dsn, redis_url, tmp_path):
            pass  # with version 0
        outcome = await verify(database, tmp_path)
    assert (outcome.findings, outcome.artifacts) == ([], 1)


async def test_nothing_is_wrong_after_rollbacks_failures_and_pruning(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    few = {"keep_versions": 2, "keep_states": 2, "swap_lead_seconds": 0.0}
    async with bench(postgres_dsn, redis_url, tmp_path, **few) as b:
        for period in periods(4):
            await learn(b, period)
        *_, fifth, sixth = periods(6)
        for to, policy in ((3, "excise"), (4, "keep")):
            await rollback(
                b.database,
                b.context.notices,
                to_version=to,
                sequence=policy,
                reason="",
                actor="test",
                settings=b.settings,
            )
            assert (await verify(b.database, tmp_path)).findings == []
        await b.log(fifth)
        async with b.database.unit_of_work() as work:
            await work.periods.set_status(5, PeriodStatus.QUARANTINED, error="a test", attempts=3)
            await work.commit()
        await learn(b, sixth)
        assert (await verify(b.database, tmp_path)).findings == []


def test_the_command_says_so_in_its_exit_code(
    dsn: str,
    servers: Servers,
    redis_url: str,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path: Path,
) -> None:
    with copies(servers, migrated_template, database_numbers) as copy:
        damaged = database_dsn(servers, copy(make_url(dsn).database))

        async def damage() -> None:
            async with opened(damaged) as database:
                await sql(
                    database, *DAMAGED_ROWS["an event id"][0], *DAMAGED_ROWS["a version that is its own parent"][0]
                )

        in_thread(asyncio.run, damage())
        where = {"ASMG_POSTGRES_DSN": damaged, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
        runs = [CliRunner().invoke(app, ["verify", *options], env=where) for options in ([], ["--json"])]
    assert [run.exit_code for run in runs] == [1, 1]
    lines, outcome = runs[0].stdout.splitlines(), msgspec.json.decode(runs[1].stdout)
    assert outcome["ok"] is False
    assert [str(Finding(**finding)) for finding in outcome["findings"]] == lines[:-1]
    assert lines[0] == "model version 4: expected an earlier version as parent; found 4"
    assert lines[1].startswith("event 4-000002: ")
    assert lines[2].endswith("all tables were looked at; 2 findings")
