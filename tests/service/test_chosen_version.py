"""Predictions by a version that the caller chooses, beside the one that is served."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.serving.snapshot import Snapshot
from service.storage.postgres.database import Database
from service.use_cases import chosen_version
from service.use_cases.chosen_version import MOST_CHOSEN
from service.use_cases.keys import create_key
from tests.service.api_support import Api, eventually, publish
from tests.service.programs import asmg
from tests.service.serving_support import ITEMS, random_model

QUESTION = {"user_id": "u1", "items": [*ITEMS[:5], "unknown"], "history": ITEMS[3:6]}


async def ask(api: Api, *, status: int = 200, key: str = "", batch: bool = False, **members: Any) -> Any:
    body = {"requests": [QUESTION], **members} if batch else {**QUESTION, **members}
    headers = {"X-API-Key": key} if key else {}
    response = await api.client.post("/predict/batch" if batch else "/predict", json=body, headers=headers)
    assert response.status_code == status, response.text
    answer = response.json()
    return answer | answer["predictions"][0] if "predictions" in answer else answer


async def test_a_version_is_chosen(
    api: Api, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its scores are those of its model; few versions stay in memory; and who may not choose, or chooses a version that
    is not there, is told.
    """
    made = {version: random_model(version, categories=True) for version in range(1, 5)}
    for version, model in made.items():
        await publish(database, api.state.artifacts, version, 0, lead_seconds=0, content=model.encoded())
    await eventually(lambda: api.state.serving.current().version == 4)
    loads: list[int] = []
    load = chosen_version.load_snapshot

    def noted(paths: Sequence[Path], version: int, *args: Any, **options: Any) -> Snapshot:
        loads.append(version)
        return load(paths, version, *args, **options)

    monkeypatch.setattr(chosen_version, "load_snapshot", noted)
    for version, batch in ((1, False), (1, True), (2, False), (1, False), (3, True), (2, False), (4, False)):
        answer = await ask(api, batch=batch, model_version=version)
        expected = made[version].scores("u1", QUESTION["items"], QUESTION["history"])
        assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (answer["model_version"], answer["period"]) == (version, version)
    assert loads == [1, 2, 3, 2]  # 4 is served; 3 took the place of 2, which was used longer ago than 1
    assert len([v for v in range(4) if api.state.chosen.find(v) is not None]) == MOST_CHOSEN
    assert (await ask(api))["model_version"] == (await ask(api, model_version=None))["model_version"] == 4
    assert set((await ask(api, model_version=0))["scores"]) == {0.25}  # the prior's

    settings = {
        "ASMG_POSTGRES_DSN": str(api.state.settings.postgres_dsn),
        "ASMG_REDIS_URL": str(api.state.settings.redis_url),
        "ASMG_DATA_DIR": str(tmp_path / "other"),
    }
    command = ["models", "export", "3", "--to", str(tmp_path / "model")]
    done = await asyncio.to_thread(asmg, *command, **settings)  # no id has a row here
    assert "holds version 3 with 0 users and 0 items" in done.stdout
    names = {each.name for each in (tmp_path / "model").iterdir()}
    assert names == {"model.onnx", "model.json", "users.parquet", "items.parquet"}  # no tensor is large

    async with database.unit_of_work() as work:
        await work.connection.execute(text("UPDATE model_versions SET serving_digest = NULL WHERE version = 1"))
        await work.commit()
    assert "no model version 9" in (await ask(api, status=404, model_version=9))["detail"]
    assert "no longer stored" in (await ask(api, status=409, batch=True, model_version=1))["detail"]
    logs = {**QUESTION, "log_impressions": True}
    refused = await ask(api, status=422, batch=True, requests=[logs], model_version=1)
    assert [error["field"] for error in refused["errors"]] == ["model_version"]

    _, reader = await create_key(database, "reader", ["predict"])
    _, both = await create_key(database, "both", ["predict", "admin"])
    for batch in (False, True):
        assert "'admin'" in (await ask(api, status=403, key=reader, batch=batch, model_version=1))["detail"]
        assert (await ask(api, key=both, batch=batch, model_version=2))["model_version"] == 2
