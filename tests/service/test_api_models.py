"""Model versions, swaps and rollbacks."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AliasName, Artifacts
from tests.service.api_support import Api, eventually, publish, running_app

QUESTION = {"user_id": "u", "items": ["a"]}


async def served(api: Api) -> tuple[int, float]:
    answer = (await api.client.post("/predict", json=QUESTION)).json()
    return answer["model_version"], round(answer["scores"][0], 3)


async def roll(api: Api, version: int, sequence: str = "keep") -> Any:
    body = {"to_version": version, "sequence": sequence, "reason": "worse clicks"}
    response = await api.client.post("/admin/rollback", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_published_version_takes_over_and_rolls_back(api: Api, database: Database) -> None:
    assert await served(api) == (0, 0.25)
    active_from = await publish(database, api.state.artifacts, 1, 0.125, lead_seconds=0.3)
    await api.state.notices.publish_swap()
    await asyncio.sleep(max(0, active_from.timestamp() - time.time()))
    assert await served(api) == (1, 0.125)

    back = await roll(api, 0)
    assert time.time() >= datetime.fromisoformat(back["active_from"]).timestamp()
    assert {name: back[name] for name in ("from_version", "to_version", "sequence", "reason")} == {
        "from_version": 1,
        "to_version": 0,
        "sequence": "keep",
        "reason": "worse clicks",
    }
    assert await served(api) == (0, 0.25)
    forward = await roll(api, 1)
    assert (forward["from_version"], forward["to_version"]) == (0, 1)
    assert await served(api) == (1, 0.125)


async def test_only_excise_moves_the_head(api: Api, database: Database) -> None:
    await publish(database, api.state.artifacts, 1, 0.125, lead_seconds=0)

    async def aliases() -> dict[str, int]:
        models = (await api.client.get("/admin/models")).json()["models"]
        return {name: model["version"] for model in models for name in ("champion", "head") if model[name]}

    await roll(api, 0)
    assert await aliases() == {"champion": 0, "head": 1}
    await roll(api, 0, "excise")
    assert await aliases() == {"champion": 0, "head": 0}
    async with database.read() as session:
        entries = [entry for entry in await session.audit.list(10) if entry.action == "rollback"]
    assert [entry.detail["sequence"] for entry in entries] == ["excise", "keep"]
    assert entries[1].detail == {"from_version": 1, "to_version": 0, "sequence": "keep"}
    assert entries[1].reason == "worse clicks"


async def test_models_are_listed_with_their_lineage(api: Api, database: Database) -> None:
    for version in (1, 2, 3):
        await publish(database, api.state.artifacts, version, 0.1, lead_seconds=0)
    page = (await api.client.get("/admin/models", params={"limit": 3})).json()
    assert ([model["version"] for model in page["models"]], page["next"]) == ([3, 2, 1], 1)
    last = (await api.client.get("/admin/models", params={"before": page["next"]})).json()
    assert ([model["version"] for model in last["models"]], last["next"]) == ([0], None)
    prior = last["models"][0]
    assert (prior["kind"], prior["period"], prior["parent_version"], prior["champion"]) == ("prior", 0, None, False)
    detail = (await api.client.get("/admin/models/3")).json()
    assert detail == page["models"][0] | {"state": {"generator": detail["digest"]}, "canary": None}
    assert (detail["parent_version"], detail["champion"], detail["head"]) == (2, True, True)
    assert (detail["scores"], detail["gate"]) == ({"generated": {"auc": 0.6}}, {"decision": "generated"})


async def test_two_processes_make_one_prior(settings: Settings, database: Database, tmp_path: Path) -> None:
    other = settings.model_copy(update={"prior_ctr": 0.75, "data_dir": tmp_path / "other"})
    async with running_app(settings) as first, running_app(other) as second:
        assert (await served(first))[1] == (await served(second))[1]
    async with database.read() as session:
        assert len(await session.models.list(10)) == 1


async def test_two_apps_never_go_back_while_one_version_after_the_other_takes_over(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    """A client that goes from one process to another sees versions move forward only, and each answer is of one."""
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    ctrs = {0: 0.25, 1: 0.1, 2: 0.2, 3: 0.3}
    async with running_app(settings) as first, running_app(other) as second:
        seen: list[tuple[int, float]] = []

        async def ask() -> None:
            while not seen or seen[-1][0] < 3:
                for api in (first, second):
                    seen.append(await served(api))
                    await asyncio.sleep(0)  # an answer out of memory lets nobody else go on

        asking = asyncio.create_task(ask())
        for version in (1, 2, 3):
            active_from = await publish(database, first.state.artifacts, version, ctrs[version], lead_seconds=1)
            await first.state.notices.publish_swap()
            await asyncio.sleep(max(0, active_from.timestamp() - time.time()))
        async with asyncio.timeout(5):
            await asking
    versions = [version for version, _ in seen]
    assert versions == sorted(versions)
    assert set(versions) == {0, 1, 2, 3}
    assert all(score == ctrs[version] for version, score in seen)


async def test_a_version_that_cannot_be_loaded_is_named_and_does_no_harm(api: Api, database: Database) -> None:
    async def told() -> tuple[int, str, float]:
        """Version and model check of /readyz, and failures of /metrics."""
        response = await api.client.get("/readyz")
        assert response.status_code == 200
        ready = response.json()
        assert ready["model_version"] == (await served(api))[0]
        metrics = (await api.client.get("/metrics")).text
        failures = float(metrics.partition("\nasmg_swap_failures_total ")[2].split()[0])
        return ready["model_version"], ready["checks"]["model"], failures

    assert await told() == (0, "ok", 0)
    await publish(database, api.state.artifacts, 1, 0, lead_seconds=0, content=b"no snapshot")
    await eventually(lambda: api.state.serving.trouble is not None)
    version, check, failures = await told()
    assert version == 0
    assert check.startswith("version 0 is served on; the champion was not loaded: ")
    assert "expected a safetensors file" in check
    assert failures > 0
    await publish(database, api.state.artifacts, 2, 0.125, lead_seconds=0)
    await eventually(lambda: api.state.serving.trouble is None)
    version, check, after = await told()
    assert (version, check) == (2, "ok")
    assert after >= failures


DAMAGE = {
    "a chunk is gone": "DELETE FROM artifact_chunks WHERE digest = :digest",
    "a byte is another": "UPDATE artifact_chunks SET data = set_byte(data, 100, 1 - get_byte(data, 100) % 2) "
    "WHERE digest = :digest",
    "it is cut short": "UPDATE artifact_chunks SET data = substring(data, 1, 100) WHERE digest = :digest",
}


async def moved(database: Database) -> tuple[Any, ...]:
    """What a rollback moves, and what it leaves in the audit."""
    async with database.read() as session:
        aliases = [await session.models.alias(name) for name in AliasName]
        return (*aliases, len(await session.audit.list(100, None)))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sequence", ["keep", "excise"])
async def test_a_rollback_to_what_cannot_be_read_is_refused_before_anything_moves(
    api: Api, database: Database, redis: Redis, damage: str, sequence: str
) -> None:
    """Also where this host still has a file of it: others have not, nor has a host that is set up tomorrow."""
    for version in (1, 2):
        await publish(database, api.state.artifacts, version, version / 8, lead_seconds=0)
    parts = [await api.state.artifacts.put(f"part {number}".encode() * 50, "state") for number in (1, 2)]
    async with database.unit_of_work() as work:
        model = await work.models.get(1)
        assert model is not None and model.serving_digest is not None
        state = json.dumps({"parts": dict(zip(("base", "generator"), parts, strict=True))})
        await work.connection.execute(
            text("UPDATE model_versions SET state = CAST(:state AS jsonb) WHERE version = 1"), {"state": state}
        )
        await work.commit()
    await eventually(lambda: api.state.serving.current().version == 2)

    # For `excise` the last part of the state is harmed, for `keep` the snapshot.
    harmed = model.serving_digest if sequence == "keep" else parts[1]
    async with database.unit_of_work() as work:
        await work.connection.execute(text(DAMAGE[damage]), {"digest": harmed})
        await work.commit()
    before = await moved(database)
    body = {"to_version": 1, "sequence": sequence, "reason": "worse clicks"}
    response = await api.client.post("/admin/rollback", json=body)
    problem = response.json()
    what = "serving snapshot" if sequence == "keep" else "training state (generator)"
    assert (response.status_code, problem["type"]) == (409, "urn:asmg:problem:artifact-unreadable")
    assert (problem["version"], problem["artifact"], problem["digest"]) == (1, what, harmed)
    assert f"the {what} of model version 1 cannot be read" in problem["detail"]
    assert await moved(database) == before
    assert await served(api) == (2, 0.25)

    # What is not needed may be damaged: `keep` goes on from the newest state.
    if sequence == "excise":
        assert (await roll(api, 1))["from_version"] == 2
        assert await served(api) == (1, 0.125)


@pytest.mark.parametrize(
    ("state", "status"), [("XX001", 409), ("XX002", 409), ("58030", 409), ("XX000", 500), ("53200", 503)]
)
async def test_a_rollback_to_what_postgres_finds_damaged_is_refused(
    api: Api, database: Database, monkeypatch: pytest.MonkeyPatch, state: str, status: int
) -> None:
    await publish(database, api.state.artifacts, 1, 0.125, lead_seconds=0)

    async def pieces(artifacts: Artifacts, digest: str, size: int) -> AsyncIterator[bytes]:
        yield digest.encode()
        fault = f"RAISE EXCEPTION 'missing chunk number 0 for toast value' USING ERRCODE = '{state}'"
        await artifacts._connection.execute(text(f"DO $$ BEGIN {fault}; END $$"))

    before = await moved(database)
    monkeypatch.setattr(Artifacts, "pieces", pieces)
    response = await api.client.post("/admin/rollback", json={"to_version": 0, "sequence": "keep", "reason": "worse"})
    problem = response.json()
    assert response.status_code == status
    if status == 409:
        assert (problem["type"], problem["version"]) == ("urn:asmg:problem:artifact-unreadable", 0)
        assert "the serving snapshot of model version 0 cannot be read: Postgres finds it damaged" in problem["detail"]
    assert await moved(database) == before


async def test_a_rollback_waits_for_nobody_while_it_reads(api: Api, database: Database) -> None:
    """Artifacts are read before the lock is taken, so an update that publishes meanwhile is not delayed."""
    await publish(database, api.state.artifacts, 1, 0.125, lead_seconds=0)
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        body = {"to_version": 7, "sequence": "keep", "reason": "worse clicks"}
        async with asyncio.timeout(5):
            assert (await api.client.post("/admin/rollback", json=body)).status_code == 404
