"""A downgrade that would lose something says so, and proceeds only if the loss is named."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from alembic import command
from alembic.config import CommandLine
from alembic.script import ScriptDirectory
from sqlalchemy import text

from service.storage.postgres import tables
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import alembic_config
from service.storage.postgres.migrations.losses import DowngradeRefused
from tests.conftest import in_thread
from tests.service.backup_support import sql

DIGEST = "a" * 64


FILL = (
    f"INSERT INTO artifacts (digest, kind, size, key) VALUES ('{DIGEST}', 'serving', 1, 'k')",
    f"INSERT INTO artifact_chunks (digest, index, data) VALUES ('{DIGEST}', 0, 'x')",
    "INSERT INTO api_keys (key_id, name, secret_hash, scopes, rate_limit, expires_at, revoked_at) "
    "VALUES ('k', 'n', 'h', '{admin}', 5, now() + interval '1 day', now())",
    "INSERT INTO audit (actor, action, detail, reason, request_id) VALUES ('a', 'b', '{\"c\": 1}', 'd', 'e')",
    "UPDATE periods SET status = 'skipped', sealed_at = now(), finished_at = now(), events = 1, error = 'e', "
    "idempotency_key = 'k', idempotency_fingerprint = 'f', labels = '{\"joined\": 1}', worker = 'w', crashes = 2, "
    "attempts = 3, ids_merged_at = now(), version = 1, log_folded_at = now()",
    "INSERT INTO periods (number, status, sealed_at, events, log_folded_at, log_dropped_at) "
    "VALUES (2, 'updated', now(), 1, now(), now()), (3, 'open', null, null, null, null)",
    *(
        f"CREATE TABLE {table}_p3 PARTITION OF {table} FOR VALUES IN (3)"
        for table in ("interactions", "impressions", "clicks")
    ),
    "INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at, request_id, content, sampled, "
    "context, weight) VALUES ('e1', 1, 'u', 'i', 1, now(), 'r', 7, true, '{\"page\": 1}', 0.5), "
    "('e3', 3, 'u', 'i', 0, now(), 'r', 8, false, null, null)",
    "INSERT INTO log_counters (period, slot, events) VALUES (3, 0, 1)",
    "INSERT INTO event_ids (kind, event_id, period, content) "
    "VALUES (0, 'e1', 1, 7), (0, 'e2', 2, 9), (1, 'r', 3, 1), (2, 'c', 3, 2)",
    "INSERT INTO impressions (request_id, period, user_id, item_ids, positions, shown_at, context, item_contexts, "
    "model_version, scores) VALUES ('r', 3, 'u', '{i}', '{1}', now(), '{\"page\": 1}', '[{\"page\": 2}]', 1, '{0.5}')",
    "INSERT INTO user_features (user_id, at, features) VALUES ('x', now(), '{\"a\": 1}')",
    "INSERT INTO item_features (item_id, at, features, period) VALUES ('x', now(), '{\"a\": 1}', 2)",
    "INSERT INTO clicks (event_id, period, request_id, item_id, clicked_at, interaction_id) "
    "VALUES ('c', 3, 'r', 'i', now(), 'r/i')",
    "INSERT INTO unresolved_positives (interaction_id, period, user_id, item_id, shown_at) "
    "VALUES ('r/i', 3, 'u', 'i', now())",
    "INSERT INTO user_histories (user_id, item_ids, event_ids, times) VALUES ('u', '{i}', '{e2}', ARRAY[now()])",
    "INSERT INTO user_passes (user_id, item_ids, event_ids, times) VALUES ('u', '{i}', '{e4}', ARRAY[now()])",
    "INSERT INTO items (item_id, categories, period) VALUES ('i', '{c}', 2)",
    "INSERT INTO entity_rows (kind, row, id, first_period, allocation, appended) "
    "VALUES ('user', 1, null, 1, 1, 1), ('user', 2, 'u', 1, 4, 1), ('field', 1, 'page=1', 1, 1, 1)",
    "INSERT INTO seen_rows (kind, period, rows) VALUES ('user', 1, '{1}'), ('field', 1, '{1}')",
    "INSERT INTO model_versions (version, period, kind, parent_version, serving_digest, state, scores, gate, "
    "created_by, pinned) VALUES (0, 0, 'prior', null, null, '{}', '{}', '{}', 'w', false), "
    f"(1, 1, 'generated', 0, '{DIGEST}', '{{}}', '{{}}', '{{}}', 'w', true)",
    "INSERT INTO canaries (version, champion_version, share, salt, minutes, state, ended_at, ended_by, reason, "
    "numbers) VALUES (1, 0, 0.1, 1, 30, 'promoted', now(), 'w', 'r', '{\"n\": 1}')",
    "INSERT INTO aliases (name, version, previous_version, active_from, announced_at, updated_by, reason, "
    "canary_version) VALUES ('champion', 1, 1, now(), now(), 'w', 'r', 1)",
    "INSERT INTO takeovers (move, version, active_from, canary_version) "
    "SELECT move, version, active_from, canary_version FROM aliases",
    "INSERT INTO api_processes VALUES ('p', 'host', 7, now(), now(), 'infinity', false, 1, 1, 1, 1)",
    "INSERT INTO evaluations (period, model, version, events, auc, logloss, calibration) "
    "VALUES (1, 'generated', 0, 1, 0.5, 0.5, 1)",
    "INSERT INTO period_stages (period, stage, status, started_at, finished_at, seconds, result) "
    "VALUES (1, 'score', 'done', now(), now(), 1, '{}')",
    "INSERT INTO deletions (deletion, kind, id, key, digest, finished_at, removed) "
    "VALUES ('d', 'user', null, 'k', 'h', now(), '{\"clicks\": 1}'), ('e', 'item', 'i', 'k', 'h', null, '{}')",
    "INSERT INTO period_samples (period, profile, digest, served_version, served_logits, allocations) "
    "VALUES (1, '{\"events\": 1}', 'd', 1, '\\x00000000', '{\"user\": 1}')",
    "INSERT INTO sample_scores (version, period, scored_at, events, auc, logloss, served_logloss, error, failure) "
    "VALUES (1, 1, now(), 1, 0.5, 0.5, 0.5, 0.1, 'f')",
    "INSERT INTO breakdowns (period, parts) VALUES (1, '{\"rows\": 1}')",
    "INSERT INTO evaluations (period, model, version, events, auc, logloss, calibration) "
    "VALUES (1, 'shadow:iu', null, 1, 0.5, 0.5, 1)",
    "INSERT INTO shadows (method, version, state, attempts) VALUES ('iu', 1, '{\"parts\": {}}', 1)",
    'INSERT INTO shadow_periods (version, learned, late) VALUES (1, \'{"data": "d"}\', false)',
    "UPDATE periods SET forgotten = 1, exported_at = now() WHERE number = 1",
    "INSERT INTO alerts (kind, subject, severity, period, version, message, numbers, acknowledged_at, acknowledged_by, "
    "closed_at, closed_by, closed_reason) "
    "VALUES ('k', 's', 'warning', 1, 1, 'm', '{\"n\": 1}', now(), 'a', now(), 'a', 'r')",
    "INSERT INTO webhooks (url, events, secret, old_secret, old_secret_until, created_by, off_at, off_reason) "
    "VALUES ('https://example.com', '{e}', 's', 'o', now(), 'a', now(), 'r')",
    "INSERT INTO webhook_deliveries (webhook, message, event, data, attempted_at, answer, error) "
    "VALUES (1, 'm', 'e', '{}', now(), 500, 'e')",
)
"""Something in every column of every table. Whoever adds one adds to this."""

Rows = dict[str, list[dict[str, Any]]]

TOLD = {"audit.detail"}
"""Which 0004 moves to and fro: a reason is a part of it before."""


async def stored(database: Database) -> Rows:
    """All rows of all tables but Alembic's."""
    names = text(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
        "AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
    )
    async with database.read() as session:
        return {
            name: list((await session.connection.execute(text(f"SELECT to_jsonb(t) FROM {name} AS t"))).scalars())
            for name in (await session.connection.execute(names)).scalars().all()
        }


def lost(before: Rows, after: Rows) -> Iterator[str]:
    """Tables with fewer rows, and columns with other values."""
    for table, rows in before.items():
        left = after.get(table, [])
        if len(left) < len(rows):
            yield table
            continue
        for column in rows[0] if rows else ():
            if sorted(str(row[column]) for row in rows) != sorted(str(row.get(column)) for row in left):
                yield f"{table}.{column}"


async def test_every_downgrade_refuses_or_loses_nothing(postgres_dsn: str, database: Database) -> None:
    """Down and up again: every difference had to be named; a refused downgrade changes nothing."""
    await sql(database, *FILL)
    filled = await stored(database)
    assert filled.keys() == tables.metadata.tables.keys()
    empty = {
        f"{name}.{column}"
        for name, rows in filled.items()
        for column in tables.metadata.tables[name].columns.keys()  # noqa: SIM118 - a collection, not a dictionary
        if all(row[column] is None for row in rows)
    }
    assert empty == set()
    config = alembic_config(postgres_dsn)
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]

    def downgrade(revision: str, lose: Sequence[str] = ()) -> None:
        config.attributes["lose"] = lose
        in_thread(command.downgrade, config, revision)

    named: set[str] = set()
    for revision, older in zip(revisions, [*revisions[1:], "base"], strict=True):
        before, names = await stored(database), frozenset[str]()
        try:
            downgrade(older)
        except DowngradeRefused as refused:
            names = frozenset(refused.losses)
            assert await stored(database) == before
            assert f"from schema {revision} would lose" in str(refused)
            assert f"alembic -x lose={','.join(refused.losses)} downgrade" in str(refused)
            downgrade(older, sorted(names))
        in_thread(command.upgrade, config, revision)
        gone = set(lost(before, await stored(database))) - TOLD
        assert {name for name in gone if name not in names and name.partition(".")[0] not in names} == set(), revision
        named |= names
        if older != "base":
            downgrade(older, sorted(names))
    assert {"impressions", "clicks", "audit", "api_keys", "model_versions.pinned", "entity_rows.id"} <= named


async def test_what_may_be_lost_is_named_on_the_command_line(postgres_dsn: str, database: Database) -> None:
    """Another name is not enough; the steps before the refused one are done."""
    await sql(database, FILL[2])

    async def alembic(*arguments: str) -> str:
        config = alembic_config(postgres_dsn)
        config.cmd_opts = CommandLine().parser.parse_args([*arguments, "downgrade", "0004"])
        await asyncio.to_thread(command.downgrade, config, "0004")
        async with database.read() as session:
            return str(await session.connection.scalar(text("SELECT version_num FROM alembic_version")))

    for arguments in ((), ("-x", "lose=api_keys,api_keys.expires_at")):
        with pytest.raises(DowngradeRefused, match=r"from schema 0005 would lose api_keys.rate_limit \(1 rows\);"):
            await alembic(*arguments)
    assert await alembic("-x", "lose=api_keys.rate_limit") == "0004"
