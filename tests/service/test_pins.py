"""Pins over HTTP and from the command line, with actor and reason. test_retention.py tests what they keep."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from service.cli import app
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect
from service.use_cases.audit import command_line
from service.use_cases.bootstrap import ensure_prior
from service.use_cases.keys import create_key
from tests.service.api_support import Api, publish


async def pin(api: Api, version: int, call: str = "pin", **headers: str) -> httpx.Response:
    return await api.client.post(f"/admin/models/{version}/{call}", json={"reason": "the good one"}, headers=headers)


async def audited(database: Database) -> list[tuple[str, str, Any]]:
    async with database.read() as session:
        entries = await session.audit.list(10)
    return [
        (e.actor, e.action, e.detail | {"reason": e.reason}) for e in reversed(entries) if e.action in ("pin", "unpin")
    ]


async def pinned(api: Api) -> dict[int, tuple[bool, list[str]]]:
    models = (await api.client.get("/admin/models")).json()["models"]
    return {model["version"]: (model["pinned"], model["kept"]) for model in models}


async def test_a_pin_is_shown_and_audited(api: Api, database: Database) -> None:
    for version in (1, 2, 3):
        await publish(database, api.state.artifacts, version, 0.1, lead_seconds=0)
    assert (await pin(api, 1)).json() == {"version": 1, "pinned": True, "changed": True, "reason": "the good one"}
    assert await pinned(api) == {
        0: (False, ["prior"]),
        1: (True, ["pinned"]),
        2: (False, ["previous champion"]),
        3: (False, ["champion", "head"]),
    }
    assert (await api.client.get("/admin/models/1")).json()["pinned"]
    assert (await pin(api, 1)).json()["changed"] is False
    assert (await pin(api, 1, "unpin")).json() == {
        "version": 1, "pinned": False, "changed": True, "reason": "the good one",
    }  # fmt: skip
    assert (await pin(api, 1, "unpin")).json()["changed"] is False
    assert (await pinned(api))[1] == (False, [])
    # What changed nothing is nothing that anybody did.
    detail = {"version": 1, "reason": "the good one"}
    assert await audited(database) == [("anonymous", "pin", detail), ("anonymous", "unpin", detail)]


async def test_a_pin_names_whose_key_it_was(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "on call", ["admin"])
    await asyncio.sleep(1.05)  # until the process has noticed that there are keys
    assert (await pin(api, 0)).status_code == 401
    assert (await pin(api, 0, **{"X-API-Key": key})).status_code == 200
    assert [actor for actor, *_ in await audited(database)] == [f"on call ({key_id})"]


@pytest.mark.parametrize("call", ["pin", "unpin"])
async def test_what_is_not_there_is_not_pinned(api: Api, database: Database, call: str) -> None:
    no_path = "about:blank"
    for version, kind in ((1, "urn:asmg:problem:model-not-found"), (2**31, "urn:asmg:problem:model-not-found"),
                          (10**30, no_path)):  # fmt: skip
        answer = await pin(api, version, call)
        assert (answer.status_code, answer.json()["type"]) == (404, kind)
    for body in ({}, {"reason": ""}, {"reason": "x" * 1001}, {"reason": "a\0b"}, {"reason": 1}):
        answer = await api.client.post(f"/admin/models/0/{call}", json=body)
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == ["reason"]
    assert await audited(database) == []


async def test_what_is_gone_cannot_be_pinned(api: Api, database: Database) -> None:
    await publish(database, api.state.artifacts, 1, 0.1, lead_seconds=0)
    async with database.unit_of_work() as work:
        await work.connection.execute(text("UPDATE model_versions SET serving_digest = NULL WHERE version = 1"))
        await work.commit()
    answer = await pin(api, 1)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:asmg:problem:model-pruned")
    assert answer.json()["detail"] == "the serving snapshot of model version 1 is no longer stored"
    assert (await pinned(api))[1][0] is False


def test_from_the_command_line(postgres_dsn: str, redis_url: str) -> None:
    async def prepare() -> None:
        database, redis = Database(postgres_dsn), connect(redis_url)
        artifacts = ArtifactStore(database, redis)
        await ensure_prior(database, artifacts, 0.5)
        await publish(database, artifacts, 1, 0.1, lead_seconds=0)
        await redis.aclose()
        await database.close()

    async def entries() -> list[tuple[str, str, Any]]:
        database = Database(postgres_dsn)
        try:
            return await audited(database)
        finally:
            await database.close()

    def models(*arguments: str, code: int = 0) -> Result:
        given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "COLUMNS": "120"}
        done = CliRunner().invoke(app, ["models", *arguments], env=given)
        assert done.exit_code == code, done.output
        return done

    asyncio.run(prepare())
    assert models("pin", "1", "--reason", "quarterly baseline").stdout == "asmg: version 1 is pinned\n"
    listed = models("list").stdout
    assert "pinned, champion, head" in listed and "stored" in listed
    assert "prior" not in models("list", "--limit", "1").stdout
    assert models("unpin", "1", "--reason", "quarter is over").stdout == "asmg: version 1 is not pinned\n"
    assert models("unpin", "1", "--reason", "again").stdout == "asmg: version 1 was not pinned\n"
    assert asyncio.run(entries()) == [
        (command_line(), "pin", {"version": 1, "reason": "quarterly baseline"}),
        (command_line(), "unpin", {"version": 1, "reason": "quarter is over"}),
    ]
    assert models("pin", "7", "--reason", "why", code=1).stderr == "asmg: there is no model version 7\n"
    assert models("pin", "1", "--reason", "", code=1).stderr.startswith("asmg: reason: expected 1 to 1000 characters")
    assert "--reason" in models("pin", "1", code=2).stderr
