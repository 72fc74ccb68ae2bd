"""What is dropped after a period, and that nothing is dropped which is still needed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from asmg.checkpoint import Checkpoint
from service.errors import ModelPruned
from service.storage.backup.verify import find_faults
from service.storage.postgres import tables
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import (
    AliasName,
    Interactions,
    ModelKind,
    ModelVersion,
    Past,
    PeriodStatus,
    digests_in,
)
from service.storage.postgres.structure import frozen
from service.storage.redis.histories import StoredPast
from service.use_cases import retention
from service.use_cases.pins import set_pinned
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune, sweep
from service.use_cases.rollback import rollback
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.api_support import running_app
from tests.service.update_doubles import Stopped, Watched, closing
from tests.service.update_support import STAGES, Bench, bench, copies, named, periods, snapshot_of, stored


async def stop_before_publishing(b: Bench, number: int) -> None:
    """Update on a period with a worker that dies when what the version will name is stored, and not named yet."""

    def told(what: str) -> None:
        if what == "worked publish":
            raise Stopped

    dsn = b.settings.postgres_dsn
    assert dsn is not None
    watched = Watched(dsn, told)
    async with closing(watched):
        with pytest.raises(Stopped):
            await b.update(number, database=watched)


# So few that six versions show what becomes of each; the sequence of the head is its last three.
FEW = {"keep_versions": 4, "keep_states": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learned(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[int, str]]:
    """Names of two databases, with five and with six versions that were pruned after each."""
    folder = tmp_path_factory.mktemp("learned")

    async def make(dsn: str, count: int, first: int) -> None:
        async with bench(dsn, servers.redis_url, folder, **FEW, swap_lead_seconds=0) as b:
            await learn(b, count, first=first)

    with copies(servers, migrated_template, database_numbers) as copy:
        five = copy()
        in_thread(asyncio.run, make(database_dsn(servers, five), 5, 1))
        six = copy(five)
        in_thread(asyncio.run, make(database_dsn(servers, six), 6, 6))
        yield {5: five, 6: six}


@pytest.fixture
def few_on(redis_url: str, tmp_path: Path) -> Callable[[str], AbstractAsyncContextManager[Bench]]:
    """A bench on a database, which keeps as little as it may."""
    return lambda dsn: bench(dsn, redis_url, tmp_path, **FEW, swap_lead_seconds=0)


@pytest.fixture
async def six(few_on: Any, copy: Callable[..., str], learned: dict[int, str]) -> AsyncIterator[Bench]:
    async with few_on(copy(learned[6])) as b:
        yield b


@pytest.fixture
async def five(few_on: Any, copy: Callable[..., str], learned: dict[int, str]) -> AsyncIterator[Bench]:
    async with few_on(copy(learned[5])) as b:
        yield b


@pytest.fixture
async def few(few_on: Any, postgres_dsn: str) -> AsyncIterator[Bench]:
    async with few_on(postgres_dsn) as b:
        yield b


async def learn(b: Bench, count: int, *, first: int = 1) -> None:
    """As the worker does: update, then prune."""
    for period in periods(count)[first - 1 :]:
        await b.log(period)
        await b.update(period.number)
        await prune(b.database, period.number, b.settings)


async def roll(b: Bench, version: int, sequence: Any = "keep") -> None:
    options = {"reason": "test", "actor": "test", "settings": b.settings}
    await rollback(b.database, b.context.notices, to_version=version, sequence=sequence, **options)


async def move(b: Bench, name: AliasName, version: int) -> None:
    async with b.database.unit_of_work() as work:
        await work.models.set_alias(name, version, lead_seconds=0, actor="test", reason="test")
        await work.commit()


def kept(found: dict[str, Any], version: int) -> set[str]:
    """What a version still has."""
    model = found["versions"][version]
    names = {"parts": "parts" in model["state"], "parameters": "serving" in model["state"]}
    return {name for name, there in {**names, "snapshot": model["serving"] is not None}.items() if there}


EVERYTHING = {"parts", "parameters", "snapshot"}


async def test_old_versions_let_go_and_aliases_keep_theirs(six: Bench) -> None:
    found = await six.outcome()
    assert found["aliases"] == {"champion": 6, "head": 6, "baseline": 1}
    assert [kept(found, version) for version in range(7)] == [
        {"snapshot"},  # the prior has nothing else, and never lets go of it
        EVERYTHING,  # the baseline
        set(),
        {"parameters", "snapshot"},
        EVERYTHING,
        EVERYTHING,
        EVERYTHING,
    ]
    async with six.database.read() as session:
        assert await session.models.kept() == {
            0: ["prior"],
            1: ["baseline"],
            4: ["sequence"],
            5: ["previous champion", "sequence"],
            6: ["champion", "head", "sequence"],
        }
    # The statistics that a version is served with are let go of with its parameters.
    states = {number: model["state"] for number, model in found["versions"].items()}
    counted = {number for number, state in states.items() if "serving_statistics" in state}
    assert counted == {number for number, state in states.items() if "serving" in state} == {1, 3, 4, 5, 6}
    # Exactly what is named is stored: no artifact of a stage on the way is left.
    assert await stored(six.database) == named(found)
    # The story of a version that was let go of is still told.
    assert found["versions"][2]["scores"]["generated"]["events"] == 300
    assert found["versions"][2]["gate"]["decision"] == "generated"


async def test_what_stages_hand_to_each_other_is_not_stored_and_notes_go_after_each_period(few: Bench) -> None:
    (period,) = periods(1)
    await few.log(period)
    await few.update(1)
    async with few.database.read() as session:
        prepared = await session.stages.get(1, "prepare")
        first = await session.stages.get(1, "train_generator")
    assert prepared is not None and first is not None
    found = await few.outcome()
    assert await stored(few.database) == named(found)
    # The data, and the base model as it was before: no window reaches back to period 1.
    assert not {prepared.result["data"], *digests_in(first.result["state"]["base"])} & named(found)
    assert await prune(few.database, 1, few.settings) == 0
    assert await few.outcome() == found
    async with few.database.read() as session:
        stages = await session.stages.list(1)
    assert [(stage.stage, stage.status, stage.result) for stage in stages] == [(name, "done", None) for name in STAGES]
    assert all(stage.seconds is not None for stage in stages)


async def test_a_sweep_takes_what_a_dead_worker_left(few: Bench) -> None:
    """A period in the middle of its update needs what its stages name; once it is skipped, nobody does."""
    first, second = periods(2)
    await few.log(first)
    await few.update(1)
    await few.log(second)
    await stop_before_publishing(few, 2)
    before = await stored(few.database)
    assert before > named(await few.outcome())
    await age(few.database)
    for status in (PeriodStatus.UPDATING, PeriodStatus.SEALED):
        async with few.database.unit_of_work() as work:
            await work.periods.set_status(2, status)
            await work.commit()
        await sweep(few.database)  # the snapshot, which is written again
    async with few.database.read() as session:
        wanted = before & {digest for stage in await session.stages.list(2) for digest in digests_in(stage.result)}
    assert wanted - named(await few.outcome())
    assert wanted <= await stored(few.database)
    async with few.database.unit_of_work() as work:
        await work.stages.clear(2)
        young = await work.artifacts.put(b"young", "layer")  # another process may be about to name it
        await work.commit()
    assert await sweep(few.database) > 0
    assert await stored(few.database) == named(await few.outcome()) | {young}
    assert await few.update(2) == 2


async def test_a_sweep_takes_what_an_update_made_that_began_again(few: Bench) -> None:
    first, second = periods(2)
    await few.log(first)
    await few.update(1)
    await prune(few.database, 1, few.settings)
    await few.log(second)
    await stop_before_publishing(few, 2)
    await age(few.database)
    await roll(few, 0, "excise")  # the head that it began with is not the head any more
    await stop_before_publishing(few, 2)
    before = await stored(few.database)
    assert await sweep(few.database) > 0
    assert named(await few.outcome()) < await stored(few.database) < before
    assert await few.update(2) == 2


async def age(database: Database) -> None:
    """Make all artifacts two hours old."""
    async with database.unit_of_work() as work:
        await work.connection.execute(text("UPDATE artifacts SET created_at = created_at - interval '2 hours'"))
        await work.commit()


async def test_pruning_does_not_change_what_is_learned_next(six: Bench, few: Bench) -> None:
    """Without any pruning the versions are the same."""
    for period in periods(6):
        await few.log(period)
        await few.update(period.number)
    assert (await few.outcome())["versions"][6] == (await six.outcome())["versions"][6]


async def test_a_rollback_needs_what_was_kept(six: Bench) -> None:
    before = await six.outcome()
    for version, sequence, part in ((2, "keep", "serving snapshot"), (2, "excise", "serving snapshot"),
                                    (3, "excise", "training state")):  # fmt: skip
        with pytest.raises(ModelPruned, match=part):
            await roll(six, version, sequence)
        assert await six.outcome() == before
    await roll(six, 3)
    assert (await six.outcome())["aliases"] == {"champion": 3, "head": 6, "baseline": 1}
    await roll(six, 1, "excise")
    assert (await six.outcome())["aliases"] == {"champion": 1, "head": 1, "baseline": 1}
    await roll(six, 0, "excise")
    assert (await six.outcome())["aliases"] == {"champion": 0, "head": 0, "baseline": 1}


async def test_over_http_it_is_a_conflict(six: Bench) -> None:
    async with running_app(six.settings) as api:
        for version, sequence, part in ((2, "keep", "serving snapshot"), (3, "excise", "training state")):
            body = {"to_version": version, "sequence": sequence, "reason": "too old"}
            answer = await api.client.post("/admin/rollback", json=body)
            assert answer.status_code == 409
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["type"] == "urn:asmg:problem:model-pruned"
            assert part in problem["detail"]
            assert str(version) in problem["detail"]
        models = (await api.client.get("/admin/models")).json()["models"]
        assert next((m["version"], m["champion"], m["head"]) for m in models) == (6, True, True)
        answer = await api.client.post("/admin/rollback", json={"to_version": 3, "sequence": "keep", "reason": "ok"})
        assert answer.status_code == 200


async def test_the_way_back_stays_open_until_the_next_update_but_one(five: Bench) -> None:
    """The version served before an update is kept, however old it is, because the new version may be no better."""
    await roll(five, 2)
    await learn(five, 6, first=6)
    found = await five.outcome()
    assert found["versions"][6]["scores"]["previous"]["version"] == 2  # the one served while period 6 was logged
    assert found["aliases"]["champion"] == 6
    assert kept(found, 2) == {"parameters", "snapshot"}
    await roll(five, 2)
    await learn(five, 8, first=7)
    found = await five.outcome()
    assert kept(found, 2) == set()
    await roll(five, 1, "excise")
    await learn(five, 10, first=9)
    found = await five.outcome()
    assert [found["versions"][n]["parent"] for n in (9, 10)] == [1, 9]
    whole = {1, 9, 10}  # the sequence
    there = {7: {"parameters", "snapshot"}, 8: {"parameters", "snapshot"}, **dict.fromkeys(whole, EVERYTHING)}
    assert {n: kept(found, n) for n in range(1, 11)} == {n: there.get(n, set()) for n in range(1, 11)}
    assert await stored(five.database) == named(found)


async def history(b: Bench, count: int) -> None:
    """Versions 1 to `count` as updates leave them, with artifacts of their own, the last one served and continued."""

    async def put(name: str, number: int) -> str:
        return await b.context.artifacts.put(f"{name} {number}".encode(), "test")

    for number in range(1, count + 1):
        # The second begins a new base; each later one has a layer more.
        layers = [await put("base", n) for n in range(min(number, 2), number + 1)]
        window = {f"model.{age}": layers[:-age] for age in (1, 2) if len(layers) > age}
        parts = {"base": layers, "optimizer": [await put("optimizer", number)], **window}
        served = {"part": [await put("parameters", number)], "toward": None, "fraction": 1.0}
        serving, state = await put("snapshot", number), {"parts": parts, "serving": served}
        async with b.database.unit_of_work() as work:
            await work.periods.seal(number, 1)
            await work.periods.create(number + 1)
            await work.models.insert(version(number, serving=serving, state=state))
            for name in (AliasName.CHAMPION, AliasName.HEAD):
                await work.models.set_alias(name, number, lead_seconds=0, actor="test", reason="test")
            await work.commit()


async def pin(b: Bench, version: int, pinned: bool = True) -> None:
    await set_pinned(b.database, version, pinned=pinned, reason="test", actor="test")


async def serve_third(b: Bench) -> None:
    await roll(b, 3)


async def serve_third_and_update(b: Bench) -> None:
    await roll(b, 3)
    await move(b, AliasName.CHAMPION, 10)


async def continue_from_fourth(b: Bench) -> None:
    """Whose older layers were merged after version 3 was published."""
    merged = await b.context.artifacts.put(b"merged", "test")
    async with b.database.unit_of_work() as work:
        change = f"""jsonb_set(state, '{{parts,model.1,0}}', '"{merged}"')"""
        await work.connection.exec_driver_sql(f"UPDATE model_versions SET state = {change} WHERE version = 4")
        await work.commit()
    await move(b, AliasName.HEAD, 4)


async def never_update_second(b: Bench) -> None:
    await move(b, AliasName.BASELINE, 2)


SEQUENCE = {8, 9, 10}


@pytest.mark.parametrize(
    ("rule", "whole"),
    [
        (lambda b: asyncio.sleep(0), SEQUENCE),
        (lambda b: pin(b, 3), SEQUENCE | {3}),
        (serve_third, SEQUENCE | {3}),
        (serve_third_and_update, SEQUENCE | {3}),
        (continue_from_fourth, {2, 3, 4, 9, 10}),  # 10 is served, and 9 was before
        (never_update_second, SEQUENCE | {2}),
    ],
    ids=["sequence", "pinned", "champion", "previous champion", "head", "baseline"],
)
async def test_each_rule_keeps_a_version_whole(few: Bench, rule: Callable[[Bench], Any], whole: set[int]) -> None:
    """Versions that no rule keeps are dropped: even the newest of the ten versions here depends on the rules."""
    await history(few, 10)
    await rule(few)
    few.settings = few.settings.model_copy(update={"keep_versions": 1, "keep_states": 1})
    await prune(few.database, 10, few.settings)
    found = await few.outcome()
    expected = {number: EVERYTHING if number in whole else set() for number in range(1, 11)}
    assert {number: kept(found, number) for number in range(1, 11)} == expected
    assert kept(found, 0) == {"snapshot"}
    assert await stored(few.database) == named(found)


async def test_age_alone_decides_about_all_others(few: Bench) -> None:
    await history(few, 10)
    await move(few, AliasName.HEAD, 2)
    few.settings = few.settings.model_copy(update={"keep_versions": 6, "keep_states": 4})
    await prune(few.database, 10, few.settings)
    found = await few.outcome()
    assert [kept(found, number) for number in range(3, 11)] == [
        set(), set(), {"parameters", "snapshot"}, {"parameters", "snapshot"}, *[EVERYTHING] * 4,
    ]  # fmt: skip


async def test_what_is_not_pinned_any_more_goes_with_the_next_update(few: Bench) -> None:
    await history(few, 10)
    await pin(few, 2)
    await prune(few.database, 10, few.settings)
    await pin(few, 2, pinned=False)
    assert kept(await few.outcome(), 2) == EVERYTHING
    await prune(few.database, 10, few.settings)
    assert kept(await few.outcome(), 2) == set()
    with pytest.raises(ModelPruned, match="serving snapshot of model version 2"):
        await pin(few, 2)
    await pin(few, 2, pinned=False)  # as it is


async def test_a_rollback_and_pruning_at_once(few: Bench) -> None:
    """Whichever comes first: an alias never points to a version without a snapshot."""
    await history(few, 10)
    async with few.database.unit_of_work() as work:
        # A rollback to version 2 that has looked at the version and not yet committed.
        await work.lock_exclusive(Lock.MODELS)
        pruning = asyncio.create_task(prune(few.database, 10, few.settings))
        await asyncio.sleep(0.2)
        await work.models.set_alias(AliasName.CHAMPION, 2, lead_seconds=0, actor="test", reason="test")
        await work.commit()
    await pruning
    found = await few.outcome()
    assert kept(found, 2) == EVERYTHING
    assert kept(found, 3) == set()
    assert named(found) <= await stored(few.database)


def version(number: int, *, serving: str | None, state: dict[str, Any]) -> ModelVersion:
    return ModelVersion(
        version=number,
        period=number,
        kind=ModelKind.PREVIOUS,
        parent_version=number - 1,
        serving_digest=serving,
        state=state,
        scores={},
        gate={},
        created_by="test",
    )


async def test_what_two_versions_share_stays_for_the_newer(few: Bench, database: Database) -> None:
    artifacts = few.context.artifacts
    shared, parameters, *states = [await artifacts.put(f"artifact {n}".encode(), "test") for n in range(5)]
    newest = states[-1]
    async with database.unit_of_work() as work:
        for number in (2, 3, 4):
            await work.periods.seal(number - 1, 1)
            await work.periods.create(number)
        for number, own in enumerate(states, 1):
            # Versions 2 and 3 go on serving what version 1 brought.
            state = {"parts": {"base": own}, "serving": parameters}
            await work.models.insert(version(number, serving=shared, state=state))
        await work.models.set_alias(AliasName.HEAD, 3, lead_seconds=0, actor="test", reason="test")
        await work.commit()
    few.settings = few.settings.model_copy(update={"keep_versions": 2})
    await prune(database, 1, few.settings)
    found = await few.outcome()
    assert [kept(found, n) for n in (1, 2, 3)] == [set(), {"parameters", "snapshot"}, EVERYTHING]
    assert await stored(database) == {shared, parameters, newest, found["versions"][0]["serving"]}


async def test_every_artifact_that_is_kept_can_be_read(six: Bench, tmp_path: Path) -> None:
    found = await six.outcome()
    for number in (1, 4, 5, 6):
        for digest in digests_in(found["versions"][number]["state"]["parts"]):
            Checkpoint.from_bytes(await six.context.artifacts.get(digest))
    for number in (0, 1, 3, 4, 5, 6):
        await snapshot_of(six, number, tmp_path / "fetched")


def test_every_table_is_in_the_list_of_what_grows() -> None:
    """Whoever adds a table has to say what bounds it."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## What grows\n")[2].partition("\n## ")[0]
    assert {name for name in tables.metadata.tables if f"`{name}`" not in section} == set()


async def test_old_logs_are_dropped(few: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All except those that are kept and those of periods that were not learned; the next update is the same."""
    monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 1)
    settings = few.settings.model_copy(update={"keep_logs": 1})
    for period in periods(5):
        await few.log(period)
        if period.number != 2:
            await few.update(period.number)
    assert await drop_old_logs(few.database, settings) == [1, 3]
    assert await drop_old_logs(few.database, settings) == []
    async with few.database.read() as session:
        counts = [await session.interactions.count(number) for number in range(1, 7)]
    assert counts == [0, 300, 0, 300, 300, 0]
    await few.update(2)
    assert await drop_old_logs(few.database, settings) == [2]


async def test_a_reader_holds_up_the_drop_and_nothing_else(few: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories stay the same after each step, and no finished step is repeated or undone, with and without kills."""
    monkeypatch.setattr(retention, "KEPT_FOR_TRAINING", 0)
    monkeypatch.setattr(retention, "LOCK_SECONDS", 0.05)
    settings, database = few.settings.model_copy(update={"keep_logs": 0}), few.database
    for period in periods(2):
        await few.log(period)
        await few.update(period.number)
    await merge_event_ids(database)
    users = sorted({user for period in periods(2) for user in period.user_ids})
    folds: list[int] = []
    fold = Past.fold

    async def count_folds(self: Past, period: int) -> bool:
        if done := await fold(self, period):
            folds.append(period)
        return done

    monkeypatch.setattr(Past, "fold", count_folds)

    async def histories() -> list[Any]:
        async with database.read() as session:
            return [StoredPast.of(await session.past.recent(user), 30) for user in users]

    async def ids() -> list[int]:
        async with database.read() as session:
            found = await session.connection.execute(text("SELECT DISTINCT period FROM event_ids ORDER BY 1"))
            return list(found.scalars())

    before = await histories()
    assert sum(past.recent[0] - past.recent[2] for past in before) > 0 < sum(len(past.items) for past in before)
    async with database.read() as reader:
        await reader.interactions.log(1)
        for _ in range(2):
            assert await drop_old_logs(database, settings) == []
            assert (folds, await ids(), await histories()) == ([1], [1, 2], before)

    forget = Interactions.forget_dropped_ids
    monkeypatch.setattr(Interactions, "forget_dropped_ids", unplugged)
    with pytest.raises(Stopped):
        await drop_old_logs(database, settings)
    assert (folds, await ids(), await histories()) == ([1, 2], [1, 2], before)
    async with frozen(database) as (session, found):
        assert await find_faults(session.connection, found) == []
    monkeypatch.setattr(Interactions, "forget_dropped_ids", forget)
    assert await drop_old_logs(database, settings) == []
    assert (folds, await ids(), await histories()) == ([1, 2], [], before)


async def unplugged(_: Interactions) -> None:
    raise Stopped
