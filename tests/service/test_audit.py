"""The audit records who did what, when and why to which rows, and only grows."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner, Result

from service.cli import app as program
from service.cli.keys import expiry_of
from service.storage.postgres.database import Database
from service.storage.postgres.migrate import alembic_config, migrate
from service.use_cases.audit import command_line, list_audit
from service.use_cases.keys import SCOPES, create_key, list_keys, revoke_key
from tests.conftest import in_thread
from tests.service.api_support import Api, event

CHANGES = [
    "UPDATE audit SET actor = 'somebody else'",
    "UPDATE audit SET at = now() WHERE false",
    "DELETE FROM audit",
    "DELETE FROM audit WHERE id < 0",
    "TRUNCATE audit",
    "TRUNCATE audit RESTART IDENTITY CASCADE",
    "WITH gone AS (DELETE FROM audit RETURNING id) SELECT count(*) FROM gone",
    "INSERT INTO audit (id, actor, action, detail) OVERRIDING SYSTEM VALUE SELECT id, 'me', 'x', '{}' FROM audit "
    "ON CONFLICT (id) DO UPDATE SET actor = excluded.actor",
    "MERGE INTO audit USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    # By which a superuser turns off ordinary triggers.
    "SET LOCAL session_replication_role = replica; DELETE FROM audit",
]


@pytest.mark.parametrize("statement", CHANGES)
async def test_no_statement_changes_or_removes_what_the_audit_holds(database: Database, statement: str) -> None:
    """Not even for the owner of the table, as whom the tests are connected."""
    await create_key(database, "one", ["predict"])
    before = (await list_audit(database, limit=10)).entries
    async with database.unit_of_work() as work:
        owner = await work.connection.scalar(
            text("SELECT tableowner = current_user FROM pg_tables WHERE tablename = 'audit'")
        )
        assert owner
        with pytest.raises(DBAPIError, match="rows of the audit are only added"):
            for part in statement.split("; "):
                await work.connection.execute(text(part))
        await work.commit()
    assert (await list_audit(database, limit=10)).entries == before
    await create_key(database, "two", ["predict"])
    assert (await list_audit(database, limit=10)).entries[1:] == before


async def test_every_action_of_an_operator_is_noted_with_actor_reason_and_request(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "night job", SCOPES, reason="for the night")
    headers = {"X-API-Key": key, "X-Request-ID": "night-7"}
    await api.client.post("/interactions", json={"interactions": [event(1)]}, headers=headers)
    for body in ({"reason": "it is late"}, {"reason": "again"}, {}):
        closed = await api.client.post(
            "/periods/close", json=body, headers=headers | {"Idempotency-Key": "same, whatever the reason"}
        )
        assert closed.status_code == 202
    rolled = await api.client.post(
        "/admin/rollback", json={"to_version": 0, "sequence": "keep", "reason": "worse clicks"}, headers=headers
    )
    assert rolled.status_code == 200
    assert await revoke_key(database, key_id, reason="the night is over")
    entries = (await list_audit(database, limit=10)).entries
    actor = f"night job ({key_id})"
    assert [(entry.action, entry.actor, entry.reason) for entry in entries] == [
        ("revoke_key", command_line(), "the night is over"),
        ("rollback", actor, "worse clicks"),
        ("close_period", actor, "it is late"),
        ("create_key", command_line(), "for the night"),
    ]
    assert [entry.request_id for entry in entries[1:3]] == ["night-7", "night-7"]
    assert entries[3].request_id is None
    assert [entry.detail for entry in entries] == [
        {"key_id": key_id},
        {"from_version": 0, "to_version": 0, "sequence": "keep"},
        {"period": 1, "events": 1},
        {"key_id": key_id, "name": "night job", "scopes": list(SCOPES)},
    ]
    age = datetime.now(UTC) - entries[0].at
    assert timedelta(0) <= age < timedelta(minutes=1)


async def test_what_was_refused_is_not_noted(api: Api, database: Database) -> None:
    for path, body in (
        ("/periods/close", {}),
        ("/periods/close", {"reason": ""}),
        ("/admin/rollback", {"to_version": 9, "sequence": "keep", "reason": "none such"}),
    ):
        assert (await api.client.post(path, json=body)).status_code in (404, 409, 422)
    assert not (await list_audit(database, limit=10)).entries


async def test_the_audit_is_read_page_by_page_and_by_actor_and_action(api: Api, database: Database) -> None:
    made = [await create_key(database, f"key {number}", ["predict"]) for number in range(5)]
    assert await revoke_key(database, made[0][0])

    async def page(**query: str | int) -> tuple[list[tuple[str, str | None]], int | None]:
        response = await api.client.get("/admin/audit", params=query, headers=headers)
        assert response.status_code == 200, response.text
        document = response.json()
        assert all(set(entry) == set(MEMBERS) for entry in document["entries"])
        return [(entry["action"], entry["detail"].get("name")) for entry in document["entries"]], document["next"]

    _, admin = await create_key(database, "admin", ["admin"])
    headers = {"X-API-Key": admin}
    first, cursor = await page(limit=3)
    assert first == [("create_key", "admin"), ("revoke_key", None), ("create_key", "key 4")]
    assert cursor is not None
    second, cursor = await page(limit=3, before=cursor)
    assert second == [("create_key", f"key {number}") for number in (3, 2, 1)]
    assert cursor is not None
    assert await page(limit=3, before=cursor) == ([("create_key", "key 0")], None)
    assert await page(action="revoke_key") == ([("revoke_key", None)], None)
    assert len((await page(actor=command_line()))[0]) == 7
    assert await page(actor="nobody") == ([], None)
    assert await page(action="revoke_key", actor="nobody") == ([], None)
    assert await page(before=0) == ([], None)
    assert len((await page(before=2**63 - 1))[0]) == 7


MEMBERS = ("id", "at", "actor", "action", "detail", "reason", "request_id")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=0", "at least 1"),
        ("limit=201", "at most 200"),
        ("limit=many", "an integer"),
        ("before=-1", "at least 0"),
        (f"before={2**63}", f"at most {2**63 - 1}"),
        ("actor=", "at least 1 character"),
        ("actor=%00", "no NUL character"),
        (f"action={'a' * 257}", "at most 256 characters"),
    ],
)
async def test_what_is_no_page_of_the_audit(api: Api, query: str, expected: str) -> None:
    response = await api.client.get(f"/admin/audit?{query}")
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert (error["field"], error["expected"]) == (query.partition("=")[0], expected)


async def test_the_last_pages_are_of_the_size_that_is_allowed(api: Api, database: Database) -> None:
    async with database.unit_of_work() as work:
        for number in range(201):
            await work.audit.add("test", "count", {"number": number})
        await work.commit()
    document = (await api.client.get("/admin/audit", params={"limit": 200})).json()
    assert [entry["detail"]["number"] for entry in document["entries"]] == list(range(200, 0, -1))
    assert len((await api.client.get("/admin/audit")).json()["entries"]) == 50


async def test_reasons_of_an_earlier_release_are_kept_by_the_migration_and_back(
    postgres_dsn: str, database: Database
) -> None:
    in_thread(command.downgrade, alembic_config(postgres_dsn), "0002")
    async with database.unit_of_work() as work:
        detail = '{"to_version": 1, "reason": "worse"}'
        await work.connection.execute(
            text("INSERT INTO audit (actor, action, detail) VALUES ('me', 'rollback', CAST(:detail AS jsonb))"),
            {"detail": detail},
        )
        await work.commit()
    in_thread(migrate, postgres_dsn)
    [entry] = (await list_audit(database, limit=10)).entries
    assert (entry.detail, entry.reason, entry.request_id) == ({"to_version": 1}, "worse", None)
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    await create_key(database, "expired", ["predict"], expires_at=soon)
    await create_key(database, "lasting", ["predict"])
    await asyncio.sleep(0.2)
    down = alembic_config(postgres_dsn)
    down.attributes["lose"] = ["api_keys.expires_at"]
    in_thread(command.downgrade, down, "0002")
    async with database.read() as session:
        details = (await session.connection.execute(text("SELECT detail FROM audit ORDER BY id"))).scalars().all()
        assert details[0] == {"to_version": 1, "reason": "worse"}
    in_thread(migrate, postgres_dsn)
    # Without its expiry a key would be good for ever.
    assert {key.name: key.valid for key in await list_keys(database)} == {"expired": False, "lasting": True}


@pytest.mark.slow
def test_the_command_line_makes_keys_that_expire_and_shows_who_did_what(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
    given["COLUMNS"] = "200"  # dates are whole, however long the name of the user

    def asmg(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(program, arguments, env=given)
        assert result.exit_code == code, result.output
        return result

    made = asmg("keys", "create", "shop", "--scope", "predict", "--expires-in", "90d", "--reason", "[b]new")
    key = made.stdout.strip()
    assert re.fullmatch(r"asmg_[0-9a-f]{12}_[\w-]{43}", key)
    day = datetime.now(UTC) + timedelta(days=90)
    listed = asmg("keys", "list").stdout
    assert f"{day:%Y-%m-%d}" in listed
    assert "yes" in listed
    revoked = asmg("keys", "revoke", key.split("_")[1], "--reason", "old")
    assert revoked.stdout == f"asmg: key {key.split('_')[1]} is revoked\n"
    shown = asmg("audit").stdout
    assert shown.index("revoke_key") < shown.index("create_key")
    assert "[b]new" in shown
    assert command_line().split(" ")[0] in shown
    assert key not in shown + listed + made.stderr
    assert "create_key" not in asmg("audit", "--action", "revoke_key").stdout
    both = asmg("keys", "create", "x", "--scope", "predict", "--expires-in", "1d", "--expires-at", "x", code=1)
    assert "received both" in both.stderr
    long = asmg("keys", "revoke", "x", "--reason", "r" * 1001, code=2)
    assert "expected 1 to 1000 characters; received 1001" in " ".join(long.stderr.split())


@pytest.mark.parametrize(
    ("after", "seconds"), [("45s", 45), ("30m", 1800), ("12h", 43_200), ("90d", 7_776_000), ("2w", 1_209_600)]
)
def test_times_after_which_a_key_expires(after: str, seconds: int) -> None:
    expiry = expiry_of(after, None)
    assert expiry is not None
    assert abs((expiry - datetime.now(UTC)).total_seconds() - seconds) < 5


def test_moments_at_which_a_key_expires() -> None:
    assert expiry_of(None, None) is None
    assert expiry_of(None, "2099-01-31T12:00:00+02:00") == datetime(2099, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize("after", ["", "90", "d", "0d", "-1d", "1.5d", "1y", "90 d", "٣d", "3651d", "999999999w"])
def test_what_is_no_time_after_which_a_key_expires(after: str) -> None:
    with pytest.raises(ValueError, match=r"expected .* with --expires-in; received"):
        expiry_of(after, None)


@pytest.mark.parametrize("moment", ["", "tomorrow", "2100-01-31", "2100-01-31T12:00:00", "2100-13-01T00:00:00Z", "4e9"])
def test_what_is_no_moment_at_which_a_key_expires(moment: str) -> None:
    with pytest.raises(ValueError, match=r"expected RFC 3339 with an offset, .* with --expires-at; received"):
        expiry_of(None, moment)
