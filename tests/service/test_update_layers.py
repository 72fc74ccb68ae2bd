"""Training states in layers against the same method on whole tables: random periods, and the same state, to the bit."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, TABLES, PeriodData
from asmg.checkpoint import Checkpoint, load_data
from asmg.layers import data_of_log, excerpt_state, is_layered, is_log
from asmg.layers.stack import tensors_of_table
from asmg.models import EmbeddingMLPConfig
from asmg.progressive import stage_rng
from asmg.statistics import NAMES
from asmg.team import Team
from asmg.training import TrainingConfig
from asmg.updaters import build_updater
from asmg.updaters.asmg import Asmg, AsmgConfig
from asmg.updaters.base import Updater
from asmg.updaters.with_statistics import WithStatistics
from service.files import DigestedFile, KnownFile, create, find
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.postgres.repositories import ModelKind, ModelVersion
from service.use_cases.update import checkpoints as checkpoints_module
from service.use_cases.update.checkpoints import Checkpoints
from service.use_cases.update.context import UpdateStart
from tests.asmg.support import random_period

SHAPE = EmbeddingMLPConfig(dim=3, hidden=(8, 6), categories=True, numeric=len(NAMES), dot=True, fields=True)
CATEGORIES = 6
SEED = 3
Rows = dict[str, np.ndarray]


def method(name: str) -> Updater[Any]:
    """Rows that are not touched stay as they are with the first two; with the others momentum still moves them."""
    if name.startswith("asmg-"):
        untouched: Any = name.removeprefix("asmg-")
        asmg = Asmg(SHAPE, AsmgConfig(untouched=untouched, blends=(1.0,)), TrainingConfig(restless=False))
        return WithStatistics(asmg)
    return WithStatistics(build_updater(name, SHAPE if name == "iu" else replace(SHAPE, categories=False)))


class Files:
    """An artifact store in memory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    async def put_file(self, file: DigestedFile | KnownFile, kind: str, *, hot: bool = True) -> str:
        assert file.path is not None
        self.contents[file.digest] = file.path.read_bytes()
        return file.digest

    async def fetch_file(self, digest: str, folder: Path) -> Path:
        def write() -> Path:
            if path := find(folder, digest, FILE_SUFFIX):
                return path
            with create(folder, FILE_SUFFIX) as file:
                file.write(self.contents[digest])
            assert file.path is not None
            return file.path

        return await asyncio.to_thread(write)

    def part(self, value: str | list[str]) -> list[Checkpoint]:
        digests = [value] if isinstance(value, str) else value
        return [Checkpoint.from_bytes(self.contents[digest]) for digest in digests]


@dataclass
class World:
    """A stream in which users and items come, stay away, lose their rows, and get rows of others."""

    rng: np.random.Generator
    users: int = 1
    items: int = 1
    free: dict[str, list[int]] = field(default_factory=lambda: {"user": [], "item": []})
    categories: np.ndarray = field(default_factory=lambda: np.full((200, 2), NO_CATEGORY, np.int32))

    def period(self, number: int, events: int) -> tuple[PeriodData, Rows]:
        """The next log, and the rows that changed hands before it."""
        gone: dict[str, list[int]] = {"user": [], "item": []}
        chosen: Rows = {}
        for table, new in (("user", 2), ("item", 3)):
            size = self.users if table == "user" else self.items
            if number > 2:
                leaving = self.rng.choice(np.arange(1, size), size=2, replace=False).tolist()
                gone[table] = sorted({row for row in leaving if row not in self.free[table]})
            taken = [row for row in (*self.free[table], *gone[table]) if self.rng.random() < 0.5]
            gone[table] = sorted({*gone[table], *taken})
            self.free[table] = sorted({*self.free[table], *gone[table]} - set(taken))
            count = 12 if number == 1 else new
            fresh = [*taken, *range(size, size + count)]
            if table == "user":
                self.users = size + count
            else:
                self.items = size + count
            here = np.setdiff1d(np.arange(1, size), [*self.free[table], *taken])
            regulars = self.rng.choice(here, size=min(4, len(here)), replace=False)
            chosen[table] = np.unique([*regulars.tolist(), *fresh])
            if table == "item":
                drawn = self.rng.integers(0, CATEGORIES, (len(fresh), 2))
                self.categories[fresh] = np.where(self.rng.random(drawn.shape) < 0.3, NO_CATEGORY, np.maximum(drawn, 1))
        # The last of the items is in the catalogue alone.
        seen = chosen["item"][:-1]
        plain = random_period(number, events, users=len(chosen["user"]) + 1, items=len(seen) + 1, fields=True)
        user, item = (np.concatenate([[COLD_ROW], rows]).astype(np.int32) for rows in (chosen["user"], seen))
        data = replace(
            plain,
            user=torch.from_numpy(user)[plain.user.long()],
            item=torch.from_numpy(item)[plain.item.long()],
            history=torch.from_numpy(item)[plain.history.long()],
            users=self.users,
            items=self.items,
            categories=CATEGORIES,
            category_items=torch.from_numpy(chosen["item"].astype(np.int64)),
            item_categories=torch.from_numpy(self.categories[chosen["item"]]),
        )
        return data, {name: np.array(rows, np.int64) for name, rows in gone.items()}

    def whole(self, data: PeriodData) -> PeriodData:
        """The log with the present categories of all items."""
        return replace(data, category_items=None, item_categories=torch.from_numpy(self.categories[: self.items]))


def touched(logs: list[PeriodData], parts: Mapping[str, Checkpoint]) -> dict[str, set[int]]:
    """The rows that some logs, the moments of numeric fields and the optimizer name."""
    found: dict[str, set[int]] = {name: {COLD_ROW} for name in TABLES}
    for part in parts.values():
        for name, rows in part.tensors.items():
            if name.startswith("restless."):
                found[name.removeprefix("restless.")] |= set(rows.tolist())
            elif name == "numbers.rows":
                found["field"] |= set(rows.tolist())
    for log in logs:
        assert log.fields is not None
        found["user"] |= set(log.user.tolist())
        found["item"] |= {*log.item.tolist(), *log.history.tolist()}
        if log.item_categories is not None and log.category_items is not None:
            found["item"] |= set(log.category_items.tolist())
            found["category"] |= set(log.item_categories.flatten().tolist())
        for tensor in (log.fields.rows, log.fields.neutral, log.fields.numbers):
            found["field"] |= set(tensor.flatten().tolist())
    return {name: {row for row in rows if row >= COLD_ROW} for name, rows in found.items()}


@dataclass
class Whole:
    """The method on whole tables. A row of which nothing was ever stored is like the cold row at any time."""

    updater: Updater[Any]
    parts: dict[str, Checkpoint] = field(default_factory=dict)
    own: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Part, table → rows that have numbers of their own."""

    def learn(
        self, number: int, data: PeriodData, gone: Rows, selected: dict[str, set[int]], taken_up: set[int]
    ) -> None:
        updater, before = self.updater, self.parts
        rows = {name: torch.from_numpy(gone.get(name, np.empty(0, np.int64))) for name in TABLES}
        state = updater.initial(stage_rng(SEED, 0, "initial"))
        if before:
            state = updater.forgotten(updater.load(before), rows)
        data = updater.prepare(state, data)
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=stage_rng(SEED, number, stage))
        self.parts = updater.dump(state)
        for name in ("base", "optimizer", "hidden", "generated"):
            if name in self.parts:
                self.parts[name] = self._settled(
                    name, before.get(name), self.parts[name], gone, selected, taken_up if name == "base" else set()
                )

    def _settled(
        self,
        name: str,
        before: Checkpoint | None,
        after: Checkpoint,
        gone: Rows,
        selected: dict[str, set[int]],
        taken_up: set[int],
    ) -> Checkpoint:
        tensors, changed, total, complete = dict(after.tensors), 0, 0, True
        tensors |= {n: rows.sort().values for n, rows in tensors.items() if n.startswith("restless.")}
        for table in (t for t in TABLES if tensors_of_table(after, t)):
            names = tensors_of_table(after, table)
            size, known = len(after.tensors[names[0]]), 0 if before is None else len(before.tensors[names[0]])
            new = {row for row in selected[table] if row < size}
            if before is not None:
                new = {
                    row
                    for row in new
                    if row >= known
                    or (table == "item" and row in taken_up)
                    or any(not torch.equal(before.tensors[n][row], after.tensors[n][row]) for n in names)
                }
            own = self.own.setdefault((name, table), set())
            own -= set(gone.get(table, np.empty(0)).tolist())
            own |= new
            changed, total, complete = changed + len(new), total + size, complete and len(selected[table]) == size
        for table in (t for t in TABLES if tensors_of_table(after, t)):
            names = tensors_of_table(after, table)
            size = len(after.tensors[names[0]])
            if complete and 2 * changed >= total:  # a base
                self.own[name, table] = set(range(size))
            others = torch.tensor(sorted(set(range(size)) - self.own[name, table]), dtype=torch.int64)
            for tensor in names:
                like = tensors[tensor] = tensors[tensor].clone()
                rest = after.meta.get("step") if tensor.startswith("moved.") else 0
                like[others] = like[COLD_ROW].clone() if after.kind != "adam" else torch.full_like(like[COLD_ROW], rest)
        return replace(after, tensors=tensors)


def pairs_of(part: Checkpoint) -> dict[tuple[int, int], tuple[float, float]]:
    t, found = part.tensors, {}
    for item in range(len(t["counts"])):
        for n in range(int(t["starts"][item]), int(t["starts"][item + 1])):
            found[item, int(t["neighbours"][n])] = (float(t["together"][n]), float(t["passed"][n]))
    return found


def grown(table: Tensor, rows: int) -> Tensor:
    return torch.cat([table, table[COLD_ROW].expand(rows - len(table), *table.shape[1:])])


def check_equal(name: str, found: Checkpoint, expected: Checkpoint) -> None:
    if is_log(name):
        one, other = (load_data(data_of_log(part)) for part in (found, expected))
        for of in ("user", "item", "history", "offsets", "label", "numeric", "recent", "weight"):
            tensors = [getattr(log, of) for log in (one, other)]
            assert tensors[0] is tensors[1] or torch.equal(*tensors), (name, of)
        assert (one.fields is None) == (other.fields is None)
        return
    if name == "statistics":
        assert found.meta == expected.meta
        assert pairs_of(found) == pairs_of(expected)
        names = set(found.tensors) - {"starts", "neighbours", "together", "passed"}
    else:
        assert (found.kind, found.meta) == (expected.kind, expected.meta), name
        assert found.tensors.keys() == expected.tensors.keys(), name
        names = set(found.tensors)
    if name == "hidden":  # it may end before rows that nothing was ever stored of
        found = replace(found, tensors={n: grown(t, len(expected.tensors[n])) for n, t in found.tensors.items()})
    for tensor in names:
        assert torch.equal(found.tensors[tensor], expected.tensors[tensor]), (name, tensor)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    """Rows that changed hands since the head."""
    gone: Rows = {}

    async def rows_of_nobody(_: Any, __: Any) -> Rows:
        return {name: gone.get(name, np.empty(0, np.int64)) for name in TABLES}

    monkeypatch.setattr(checkpoints_module, "rows_of_nobody", rows_of_nobody)
    yield gone


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["asmg-keep", "asmg-plain", "iu", "spmf", "bu-3"])
async def test_layers_hold_what_whole_tables_would(
    name: str, nobody: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each stage runs in a process of its own: to the digest."""
    monkeypatch.setattr(checkpoints_module, "MOST_DIFFERENCES", 2)
    updater = method(name)
    world, files, whole = World(np.random.default_rng(SEED)), Files(), Whole(updater)
    parts: dict[str, Any] = {}
    begun_anew, lengths = set(), []
    for number in range(1, 9):
        data, gone = world.period(number, 300 if number == 1 else 40)
        nobody.clear()
        nobody.update(gone)
        kept = [load_data(data_of_log(files.part(value)[0])) for each, value in parts.items() if is_log(each)]
        assert data.category_items is not None
        taken_up = data.category_items.numpy()[::2]  # some are of the log as well, some are not
        selected = touched([data, *kept], whole.parts)
        whole.learn(number, world.whole(data), gone, selected, set(taken_up.tolist()))
        outcomes = [
            await learned(
                updater, files, parts, number, data, taken_up, tmp_path / f"{number}-{anew}", begins_anew=anew
            )
            for anew in (False, True)
        ]
        assert outcomes[0] == outcomes[1]
        parts = outcomes[0]
        found = excerpt_state({n: files.part(v) for n, v in parts.items()}, everything=True)
        assert parts.keys() == whole.parts.keys()
        for each, part in whole.parts.items():
            check_equal(each, found.parts[each].checkpoint, part)
            for table in ("user", "item") if each.startswith("model.") else ():
                tensor = found.parts[each].checkpoint.tensors[table]
                rows = gone[table][gone[table] < len(tensor)]
                assert torch.equal(tensor[rows], tensor[COLD_ROW].expand(len(rows), -1))
        lengths.append(len(checkpoints_module.layers_of(parts.get("generator", []))))
        near = {item for pair in pairs_of(found.parts["statistics"].checkpoint) for item in pair}
        seen = {*data.item.tolist(), *data.history.tolist()}
        assert not near & (set(gone["item"].tolist()) - seen)
        begun_anew |= {each for each, value in parts.items() if is_layered(each) and number > 2 and len(value) == 1}
    assert all(len(value) > 5 for each, value in parts.items() if is_layered(each))
    assert max(lengths) == (3 if name.startswith("asmg") else 0)
    assert lengths[-1] < 3  # a whole again, after two differences
    assert "hidden" in begun_anew or not name.startswith("asmg")  # a base in the midst of a stack's life


async def learned(
    updater: Updater[Any],
    files: Files,
    parts: Mapping[str, Any],
    number: int,
    data: PeriodData,
    taken_up: np.ndarray,
    folder: Path,
    *,
    begins_anew: bool,
) -> dict[str, Any]:
    """Parts of the state after one period.

    Args:
        updater: the method.
        files: hold the artifacts.
        parts: of the state before.
        number: of the period.
        data: its log, in rows of whole tables.
        taken_up: its items of which something new is known.
        folder: for files of the host.
        begins_anew: whether each stage runs in a process of its own, after the one before was killed.
    """

    def begin() -> Checkpoints:
        settings = SimpleNamespace(state_dir=folder, seed=SEED)
        team = Team(updater)
        context: Any = SimpleNamespace(artifacts=files, settings=settings, updater=updater, team=team, database=None)
        head = ModelVersion(
            version=number - 1,
            period=number - 1,
            kind=ModelKind.INCREMENTAL,
            parent_version=None,
            serving_digest=None,
            state={"parts": parts},
            scores={},
            gate={},
            created_by="test",
        )
        return Checkpoints(context, UpdateStart(period=number, head=head, late=False, done={}))

    at = begin()
    nothing: Any = None
    await at.select(data, await checkpoints_module.rows_of_nobody(nothing, {}))
    prepared = updater.prepare(await at.read_state(None), at.selection.localised(data))
    digest = await at.write_data(data, prepared, taken_up)
    done: Mapping[str, Any] | None = None
    for stage in updater.stages:
        if begins_anew:
            await at.files.written()
            at = begin()
        local = await at.read_data(digest)
        state = updater.run_stage(stage, await at.read_state(done), local, rng=stage_rng(SEED, number, stage))
        done = await at.write_state(state)
    assert done is not None
    await at.store(done)
    return dict(done)
