"""A new version answers a share of the users first: a bad one goes back by itself, a good one goes on."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from service.cli import app
from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AlertKind, AliasName, CanaryState, ModelKind, ModelVersion
from service.tasks import end_tasks
from service.use_cases.guardrails.canary import CanaryJudge, keep_judging, start_canary
from service.use_cases.guardrails.canary_evidence import Verdict
from service.use_cases.update import gate
from tests.service.api_support import Api, eventually, publish, running_app, settings_for
from tests.service.serving_support import ITEMS, Made, random_model
from tests.service.update_support import bench, periods

SHARE = 0.4
SHOWN = 5
CANDIDATES = ITEMS[:30]


def turned(made: Made) -> Made:
    """The model with the opposite logits."""
    *_, weight, bias = made.model.dense_shapes
    return replace(made, params={**made.params, weight: -made.params[weight], bias: -made.params[bias]})


@dataclass
class Shop:
    """Two api processes, and users who click what the good model says."""

    apps: Sequence[Api]
    database: Database
    settings: Settings
    seen: dict[str, list[int]] = field(default_factory=dict)
    """User → the versions that have answered, in order."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    async def ask(self, users: Sequence[str], *, app: int = 0, log: bool = False) -> dict[str, Any]:
        """Predictions by user; the versions are noted."""
        more = {"log_impressions": SHOWN} if log else {}
        found = {}
        for start in range(0, len(users), 200):
            part = users[start : start + 200]
            requests = [{"user_id": user, "items": CANDIDATES, **more} for user in part]
            response = await self.apps[app].client.post("/predict/batch", json={"requests": requests})
            assert response.status_code == 200, response.text
            document = response.json()
            for user, answer in zip(part, document["predictions"], strict=True):
                version = answer.setdefault("model_version", document["model_version"])
                assert not log or answer["logged"]
                self.seen.setdefault(user, []).append(version)
                found[user] = answer
        return found

    async def shop(self, users: Sequence[str], rates: dict[str, float]) -> dict[str, int]:
        """Show every user some items and click; the versions that have answered."""
        answers = await self.ask(users, log=True)
        again = await self.ask(users, app=1)
        versions = {user: answer["model_version"] for user, answer in answers.items()}
        assert versions == {user: answer["model_version"] for user, answer in again.items()}
        async with self.database.read() as session:
            rows = (await session.connection.execute(text("SELECT * FROM impressions ORDER BY request_id"))).all()
        clicks = []
        for row in rows:
            if row.user_id not in answers:
                continue
            scores = dict(zip(CANDIDATES, answers[row.user_id]["scores"], strict=True))
            assert row.model_version == versions[row.user_id]
            assert np.allclose(row.scores, [scores[item] for item in row.item_ids])
            chosen = [item for item in row.item_ids if self.rng.random() < rates[item]]
            now = datetime.now(UTC).isoformat()
            clicks += [{"request_id": row.request_id, "item_id": item, "timestamp": now} for item in chosen]
        response = await self.apps[1].client.post("/clicks", json={"clicks": clicks})
        assert response.status_code == 200, response.text
        return versions

    async def begin(self, version: int, content: bytes) -> None:
        """Publish a version as a canary, and wait until both processes serve it to the share."""
        digest = await self.apps[0].state.artifacts.put(content, "serving")
        async with self.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            model = ModelVersion(
                version=version,
                period=-version,  # the test closes no period, so that the open one is the first
                kind=ModelKind.GENERATED,
                parent_version=version - 1,
                serving_digest=digest,
                state={},
                scores={},
                gate={},
                created_by="test",
            )
            await work.models.insert(model)
            await start_canary(work, version, self.settings, actor="test", reason="published")
            await work.commit()
        await self.apps[0].state.notices.publish_swap()
        await eventually(lambda: [self.canary(app) for app in self.apps] == [version] * 2)

    def canary(self, app: Api) -> int | None:
        served = app.state.serving.canary
        return None if served is None else served[1].version

    async def until_only(self, version: int) -> None:
        """Wait until both processes serve a version to everybody."""
        await eventually(
            lambda: all(
                app.state.serving.current().version == version and self.canary(app) is None for app in self.apps
            )
        )

    async def pass_time(self, minutes: int) -> None:
        """Let all that has happened be as long ago as that."""
        async with self.database.unit_of_work() as work:
            for table, column in (("impressions", "shown_at"), ("clicks", "clicked_at"), ("aliases", "active_from")):
                change = f"UPDATE {table} SET {column} = {column} - interval '{minutes} minutes'"
                await work.connection.execute(text(change))
            await work.commit()

    def judge(self) -> CanaryJudge:
        """A worker that begins to look."""
        return CanaryJudge(self.database, self.apps[0].state.notices, self.settings)


async def test_a_bad_version_reaches_its_share_and_goes_back_and_a_good_one_goes_on(
    database: Database, postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    settings = settings_for(postgres_dsn, redis_url, tmp_path / "0", impression_deadline_seconds=30, canary_share=SHARE)
    good = random_model(31)
    async with AsyncExitStack() as stack:
        other = settings.model_copy(update={"data_dir": tmp_path / "1"})
        apps = [await stack.enter_async_context(running_app(each)) for each in (settings, other)]
        shop = Shop(apps, database, settings)
        await publish(database, apps[0].state.artifacts, 1, 0, lead_seconds=0, content=good.encoded())
        await shop.until_only(1)
        first = [f"customer{n}" for n in range(400)]
        answer = (await shop.ask(first[:1]))[first[0]]
        rates = dict(zip(CANDIDATES, answer["scores"], strict=True))

        await shop.begin(2, turned(good).encoded())
        versions = await shop.shop(first, rates)
        exposed = {user for user, version in versions.items() if version == 2}
        assert abs(len(exposed) / len(first) - SHARE) < 0.1
        assert (await apps[0].client.post("/predict", json={"items": ["i1"]})).json()["model_version"] == 1
        one = next(iter(exposed))
        answer = (await apps[1].client.post("/predict", json={"user_id": one, "items": ["i1"]})).json()
        assert (answer["model_version"], answer["period"]) == (2, -2)
        early = await shop.judge().look()  # clicks may still come
        assert early is not None and early.verdict is Verdict.WAIT
        await shop.pass_time(10)
        worker = asyncio.create_task(keep_judging(database, apps[0].state.notices, settings))  # another one
        await shop.until_only(1)
        await end_tasks(worker)
        assert {answer["model_version"] for answer in (await shop.ask(first)).values()} == {1}
        async with database.read() as session:
            [alert] = await session.alerts.list(2, None, is_open=True)
            canary = await session.canaries.get(2)
            audit = [(entry.actor, entry.action, entry.reason) for entry in await session.audit.list(2, None)]
        assert (alert.kind, alert.version) == (AlertKind.CANARY, 2) and "worse" in alert.message
        assert canary is not None and canary.state is CanaryState.REVERTED and canary.numbers is not None
        assert canary.numbers["canary_users"] == len(exposed)
        assert canary.numbers["champion_users"] == len(first) - len(exposed)
        assert ("guardrail", "revert_canary", canary.reason) in audit

        second = [f"visitor{n}" for n in range(400)]
        await shop.ask(second)
        await shop.begin(3, good.encoded())
        listed = (await apps[0].client.get("/admin/models")).json()
        assert (listed["canary"]["version"], listed["canary"]["champion_version"]) == (3, 1)
        kept = {model["version"]: model["kept"] for model in listed["models"]}
        assert (kept[3], kept[1]) == (["canary"], ["champion", "head"])
        versions = await shop.shop(second, rates)
        assert {user for user, version in versions.items() if version == 3} != exposed
        judge = shop.judge()
        await shop.pass_time(10)
        waits = await judge.look()
        assert waits is not None and (waits.verdict, waits.reason) == (Verdict.WAIT, "not shown to be worse")
        page = (await apps[0].client.get("/admin/canary")).json()
        assert (page["running"]["version"], page["running"]["numbers"]) == (3, waits.numbers)
        assert [(each["version"], each["state"]) for each in page["ended"]] == [(2, "reverted")]
        metrics = (await apps[0].client.get("/metrics")).text.splitlines()
        assert {f"asmg_canary_share {SHARE}", 'asmg_canaries{state="running"} 1.0'} <= set(metrics)
        await shop.pass_time(25)
        goes = await judge.look()
        assert goes is not None and goes.verdict is Verdict.ON
        await shop.until_only(3)
        assert await judge.look() is None
        await shop.ask(second)
        for user in second:  # nobody saw a version go back
            assert shop.seen[user] == sorted(shop.seen[user])
        async with database.read() as session:
            assert await session.alerts.list(2, None, is_open=True) == []
            champion = await session.models.alias(AliasName.CHAMPION)
        assert champion is not None and (champion.version, champion.previous_version) == (3, 1)
        await operators_decide(shop, good.encoded())


async def operators_decide(shop: Shop, content: bytes) -> None:
    """Revert one, replace one and promote that, and roll back while one runs."""
    client = shop.apps[0].client
    users = [f"guest{n}" for n in range(200)]
    assert (await client.post("/admin/canary/promote", json={"reason": "r"})).status_code == 409
    await shop.begin(4, content)
    before = await shop.ask(users)
    await shop.begin(5, content)
    after = await shop.ask(users, app=1)
    moved = {(before[user]["model_version"], after[user]["model_version"]) for user in users}
    assert moved == {(3, 3), (4, 5)}  # the newer one has the users of the one before
    assert (await client.post("/admin/canary/revert", json={"version": 4, "reason": "r"})).status_code == 409
    response = await client.post("/admin/canary/promote", json={"version": 5, "reason": "it is good"})
    assert (response.status_code, response.json()["state"], response.json()["reason"]) == (
        200,
        "promoted",
        "it is good",
    )
    await shop.until_only(5)
    await shop.begin(6, content)
    assert (await command(shop, "revert", "--version", "5")).exit_code == 1
    assert (await command(shop, "revert")).stdout == "asmg: canary 6 is reverted\n"
    await shop.until_only(5)
    await shop.begin(7, content)
    body = {"to_version": 3, "sequence": "keep", "reason": "back"}
    assert (await client.post("/admin/rollback", json=body)).status_code == 200
    await shop.until_only(3)
    states = {n: (await client.get(f"/admin/models/{n}")).json()["canary"] for n in range(1, 8)}
    assert {n: each and each["state"] for n, each in states.items()} == {
        **{1: None, 2: "reverted", 3: "promoted", 4: "replaced"},
        **{5: "promoted", 6: "reverted", 7: "reverted"},
    }


async def command(shop: Shop, *arguments: str) -> Result:
    """Run `asmg models canary …`."""
    given = {"ASMG_POSTGRES_DSN": shop.settings.postgres_dsn, "ASMG_REDIS_URL": shop.settings.redis_url}
    line = ["models", "canary", *arguments, "--reason", "no"]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, line, env=given))


async def test_what_the_worker_publishes_begins_as_a_canary(postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    """Two versions begin with a share; the gate refuses the third, which serves nobody; with the share 0 the fourth
    serves all.
    """
    async with bench(postgres_dsn, redis_url, tmp_path, canary_share=0.1, canary_minutes=5) as b:

        async def served() -> tuple[int, int | None]:
            async with b.database.read() as session:
                turn = (await session.takeovers.turns())[-1]
            return turn.version, None if turn.canary is None else turn.canary.version

        one, two, three, four = periods(4)
        await b.log(one)
        await b.update(1)
        assert await served() == (0, 1)
        await b.log(two)
        await b.update(2)
        assert await served() == (0, 2)
        await b.log(three)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "CALIBRATION_RANGE", (100.0, 200.0))
            await b.update(3)
        assert await served() == (0, 2)
        async with b.database.read() as session:
            first, running = await session.canaries.get(1), await session.canaries.running()
            head, refused = await session.models.alias(AliasName.HEAD), await session.models.get(3)
        assert first is not None and first.state is CanaryState.REPLACED
        assert running is not None
        assert (running.version, running.champion_version, running.salt, running.minutes) == (2, 0, 1, 5)
        assert head is not None and head.version == 3  # the sequence learns on
        assert refused is not None and refused.kind is ModelKind.PREVIOUS
        await b.log(four)
        await b.update(4, settings=b.settings.model_copy(update={"canary_share": 0.0}))
        assert await served() == (4, None)
        async with b.database.read() as session:
            second = await session.canaries.get(2)
        assert second is not None and second.state is CanaryState.REVERTED
