"""A worker whose method cannot go on from what is stored: it says so, and no period pays for it."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typing_extensions import override

from asmg.checkpoint import Checkpoint
from service import worker
from service.errors import ConfigurationError
from service.processes.child import child_command
from service.settings import Settings
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.repositories import AliasName, ModelVersion
from service.storage.redis.notices import Notices
from service.use_cases.rollback import rollback
from service.use_cases.update.configuration import check_configuration, configured_updater
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.layers_support import whole_parts
from tests.service.programs import ASMG, environment
from tests.service.update_doubles import working
from tests.service.update_support import Bench, bench, copies, periods, updater_of

CANNOT = (
    r"ASMG_UPDATER={} cannot go on from the training state of version {}, which {} has left \({}.*No period loses an"
)
UNTOUCHED = ("sealed", None, 0, None)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learned(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database in which `iu` has learned period 1, and period 2 is sealed."""

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, tmp_path_factory.mktemp("learned"), updater="iu") as b:
            first, second = periods(2)
            await b.log(first)
            await b.update(1)
            await b.log(second)

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield name


@pytest.fixture
async def b(
    learned: str,
    servers: Servers,
    database_numbers: Iterator[int],
    redis_url: str,
    tmp_path: Path,
) -> AsyncIterator[Bench]:
    with copies(servers, learned, database_numbers) as copy:
        async with bench(database_dsn(servers, copy()), redis_url, tmp_path, updater="sml-mf") as made:
            yield made


def settings_of(b: Bench, **changes: Any) -> Settings:
    return b.settings.model_copy(update={"worker_poll_seconds": 0.02, **changes})


async def untouched(b: Bench) -> bool:
    """Whether period 2 is as it was when it was closed."""
    async with b.database.read() as session:
        period = await session.periods.get(2)
        stages = await session.stages.list(2)
    assert period is not None
    return (str(period.status), period.version, period.attempts, period.error) == UNTOUCHED and not (
        period.crashes or period.worker or stages
    )


async def test_a_method_of_another_base_model_is_refused_at_start(b: Bench) -> None:
    with pytest.raises(ConfigurationError, match=CANNOT.format("sml-mf", 1, "iu", "model: expected")):
        await asyncio.wait_for(worker.run(settings_of(b)), 30)
    assert await untouched(b)
    leadership = Leadership(str(b.settings.postgres_dsn))
    assert await leadership.try_acquire()  # it leads no more, so that one that can does
    await leadership.release()


async def test_one_in_reserve_is_refused_too(b: Bench) -> None:
    leadership = Leadership(str(b.settings.postgres_dsn))
    assert await leadership.try_acquire()
    with pytest.raises(ConfigurationError, match="cannot go on"):
        await asyncio.wait_for(worker.run(settings_of(b)), 30)
    await leadership.release()


async def test_the_right_method_then_learns_the_period(b: Bench, monkeypatch: Any) -> None:
    with pytest.raises(ConfigurationError):
        await asyncio.wait_for(worker.run(settings_of(b)), 30)
    settings = settings_of(b, updater="incctr")  # another one, of the same base model
    dsn, redis_url = str(settings.postgres_dsn), str(settings.redis_url)
    async with working(dsn, redis_url, settings.data_dir, monkeypatch, updater="incctr") as database:
        async with asyncio.timeout(60):
            while True:
                async with database.read() as session:
                    period = await session.periods.get(2)
                if period is not None and period.version == 2:
                    break
                await asyncio.sleep(0.02)
    assert (period.attempts, period.error) == (0, None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("statistics", False), ("dot_product", False), ("embedding_dim", 4), ("hidden_layers", (12, 6, 3))],
)
async def test_another_base_model_is_refused_with_the_name_of_the_setting(
    b: Bench, monkeypatch: Any, setting: str, value: Any
) -> None:
    """Also with the same method; after the setting is restored the period is learned as usual."""
    settings = settings_of(b, updater="iu", **{setting: value})
    other = f"Start the worker with another ASMG_{setting.upper()}, or roll back"
    with pytest.raises(ConfigurationError, match=CANNOT.format("iu", 1, "iu", "updater: expected") + f".*{other}"):
        await asyncio.wait_for(worker.run(settings), 30)
    assert await untouched(b)
    assert await b.update(2, updater=updater_of("iu")) == 2


async def test_an_update_begins_again_where_the_base_model_is_another(b: Bench) -> None:
    """Any base model can start from version 0; intermediate results made for another one are not used."""
    back: dict[str, Any] = {"sequence": "excise", "reason": "to begin again", "actor": "test", "settings": b.settings}
    await rollback(b.database, b.context.notices, to_version=0, **back)
    plain = configured_updater(b.settings.model_copy(update={"updater": "iu", "statistics": False}))

    class Stopped(Exception):
        pass

    class Stopping(Notices):
        @override
        async def publish_progress(self, period: int, progress: Any) -> None:
            if progress["stage"] == "gate":
                raise Stopped

    parts = {}
    for name, updater in (("plain", plain), ("counted", updater_of("iu")), ("plain again", plain)):
        with pytest.raises(Stopped):
            await b.update(2, updater=updater, notices=Stopping(b.redis))
        async with b.database.read() as session:
            stages = {stage.stage: stage for stage in await session.stages.list(2)}
        assert set(stages) == {"resolve", "prepare", "score", *updater.stages, "gate"}
        parts[name] = stages[updater.stages[-1]].result["state"]
    assert parts["plain"] == parts["plain again"]
    assert set(parts["counted"]) - set(parts["plain"]) == {"statistics"}
    assert await b.update(2, updater=updater_of("iu")) == 2


def without(*names: str) -> Callable[[dict[str, Checkpoint]], dict[str, Checkpoint]]:
    return lambda parts: {name: part for name, part in parts.items() if name not in names}


def in_header(**meta: Any) -> Callable[[dict[str, Checkpoint]], dict[str, Checkpoint]]:
    return lambda parts: parts | {"updater": Checkpoint("updater", {**parts["updater"].meta, **meta}, {})}


def narrower(parts: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
    base = parts["base"]
    tensors = {name: t[..., :-1].contiguous() for name, t in base.tensors.items()}
    return parts | {"base": Checkpoint(base.kind, base.meta, tensors)}


@pytest.mark.parametrize(
    ("change", "updater", "at_start", "message"),
    [
        (without("updater"), "iu", True, "model: expected"),
        (without("optimizer"), "incctr", True, r"incctr: expected the parts \['optimizer'\] too"),
        (in_header(model={"dim": 16}), "iu", True, "updater: expected a state of"),
        (in_header(updater="of tomorrow", model={"dim": 16}), "iu", True, "model: expected"),
        # What only the whole state tells comes to light when the update begins: no attempt of the period either.
        (without("optimizer"), "iu", False, r"iu: expected the parts \['optimizer'\] too"),
        (narrower, "iu", False, "expected shape"),
    ],
    ids=["no header", "no optimizer, another", "other shapes", "unknown method", "no optimizer", "cut off"],
)
async def test_whatever_cannot_be_gone_on_from_costs_no_attempt(
    b: Bench,
    change: Callable[[dict[str, Checkpoint]], dict[str, Checkpoint]],
    updater: str,
    at_start: bool,
    message: str,
) -> None:
    """The state of the head is one that another release or an accident could have left."""
    artifacts = b.context.artifacts
    async with b.database.read() as session:
        head = await session.models.get(1)
    assert head is not None
    parts = await whole_parts(artifacts, head.state["parts"])
    digests = {name: await artifacts.put(part.to_bytes(), part.kind) for name, part in change(parts).items()}
    await change_state(b, head, digests)

    checking = check_configuration(b.database, artifacts, updater_of(updater))
    if at_start:
        with pytest.raises(ConfigurationError, match=message):
            await checking
    else:
        await checking
    with pytest.raises(ConfigurationError, match=message):
        await asyncio.wait_for(worker.run(settings_of(b, updater=updater)), 30)
    async with b.database.read() as session:
        period = await session.periods.get(2)
    assert period is not None
    assert (period.attempts, period.crashes, period.worker, period.error) == (0, 0, None, None)
    assert period.status in ("sealed", "updating")


async def change_state(b: Bench, head: ModelVersion, digests: dict[str, str]) -> None:
    async with b.database.unit_of_work() as work:
        await work.connection.execute(
            text(
                "UPDATE model_versions SET state = jsonb_set(state, '{parts}', cast(:parts AS jsonb)) WHERE version = 1"
            ),
            {"parts": json.dumps(digests)},
        )
        await work.commit()


async def test_a_rollback_to_the_state_of_another_method_ends_the_worker_before_the_next_period(
    b: Bench, monkeypatch: Any
) -> None:
    """The state changes under a working worker: version 2 continues from version 0, and so can sml-mf."""
    await rollback(
        b.database,
        b.context.notices,
        to_version=0,
        sequence="excise",
        reason="to begin again",
        actor="test",
        settings=b.settings,
    )
    task = asyncio.create_task(worker.run(settings_of(b)))
    async with asyncio.timeout(60):
        while True:
            async with b.database.read() as session:
                period = await session.periods.get(2)
                head = await session.models.alias(AliasName.HEAD)
            if period is not None and period.version is not None:
                break
            assert not task.done(), task.result()
            await asyncio.sleep(0.02)
    assert head is not None and not task.done()
    await rollback(
        b.database,
        b.context.notices,
        to_version=1,
        sequence="excise",
        reason="better as it was",
        actor="test",
        settings=b.settings,
    )
    await b.log(periods(3)[2])
    with pytest.raises(ConfigurationError, match=CANNOT.format("sml-mf", 1, "iu", "model: expected")):
        await asyncio.wait_for(task, 60)
    async with b.database.read() as session:
        third = await session.periods.get(3)
        assert await session.stages.list(3) == []
    assert third is not None and (str(third.status), third.attempts, third.error) == ("sealed", 0, None)


@pytest.mark.slow
async def test_the_programs_say_so(b: Bench, tmp_path: Path) -> None:
    """`asmg worker` exits with one line; under `asmg serve` the child exits, and is restarted with growing delays."""
    places = {
        "ASMG_POSTGRES_DSN": str(b.settings.postgres_dsn),
        "ASMG_REDIS_URL": str(b.settings.redis_url),
        "ASMG_DATA_DIR": str(tmp_path),
        "ASMG_UPDATER": "sml-mf",
    }
    child = child_command("worker")
    for command, code in (([*ASMG, "worker"], 1), (child, os.EX_CONFIG)):
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment(**places), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "cannot go on from the training state" in line]
        assert "ASMG_UPDATER=sml-mf" in line and "which iu has left" in line
        assert "Traceback" not in done.stderr
    assert await untouched(b)
