"""A base and its deltas give the scores of a base that was written from the same state."""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.checkpoint import CheckpointError
from asmg.features import Schema
from asmg.field_columns import FieldColumns
from asmg.layout import NO_CATEGORY, NO_VALUE, OWN_VALUE
from asmg.models import BaseModel, EmbeddingMLPConfig, MatrixFactorizationConfig, Params, build_model
from asmg.statistics import NAMES, Statistics
from benchmarks.serving.deltas import some_rows
from service.files import create
from service.serving.encode import Known, KnownFields, TrainedModel, encode_base, encode_delta
from service.serving.fields import NO_VALUES, OF_ITEM, FieldReader, FieldValues
from service.serving.forward.reference import reference_forward
from service.serving.id_hashes import Hashes, hash_ids
from service.serving.loading import load_snapshot
from service.serving.overlay import Overlay, merge
from service.serving.snapshot import Snapshot
from service.serving.tensor_file import TensorFile
from tests.service.serving_support import random_log, random_statistics

TOLERANCE = 1e-6
"""By how much a score may differ from the one of training."""

SIZES = {"user": 30, "item": 60, "category": 9, "field": 25}
"""Rows of the tables, the cold rows among them."""

NUMBER_ROW = 1
"""The value that stands for the numbers of a field."""

SHAPES: dict[str, EmbeddingMLPConfig | MatrixFactorizationConfig] = {
    "plain": EmbeddingMLPConfig(dim=3, hidden=(5,)),
    "statistics": EmbeddingMLPConfig(dim=16, hidden=(8, 4), numeric=len(NAMES), dot=True),
    "all": EmbeddingMLPConfig(dim=5, hidden=(7, 3), categories=True, numeric=len(NAMES), dot=True, fields=True),
    "factors": MatrixFactorizationConfig(dim=4, categories=True),
}


@dataclass(frozen=True)
class State:
    """A model after some periods, with the rows of the ids that it knows. All models have all inputs; some read few."""

    model: BaseModel
    params: Params
    categories: Tensor
    columns: FieldColumns
    statistics: Statistics
    known: dict[str, set[int]]

    def trained(self) -> TrainedModel:
        known = {}
        for name, own in self.known.items():
            rows = np.array(sorted(own), np.int64)
            known[name] = Known.of(names(name, rows), rows)
        fields = KnownFields(known["field"], FieldReader(Schema(time=()), {}), self.columns)
        return TrainedModel(
            model=self.model,
            params=self.params,
            users=known["user"],
            items=known["item"],
            categories=self.categories,
            statistics=self.statistics,
            fields=fields if "field" in self.model.tables else None,
        )

    def item(self, row: int) -> list[Any]:
        """All that a snapshot holds of an item beside its vector."""
        found: list[Any] = [table[row].tolist() for table in (self.categories, self.columns.rows, self.columns.weights)]
        if row < len(self.statistics.counts):
            for name in ("counts", "counted", "degrees", "paired"):
                found.append(getattr(self.statistics, name)[row].tolist())
            found += [part.tolist() for part in self.statistics.neighbours_of(torch.tensor([row]))]
        return found


def names(table: str, rows: NDArray[np.int64]) -> list[str]:
    return [f"{table}{row}" for row in rows.tolist()]


def noise(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(0, 1.5 / shape[-1] ** 0.5, shape).astype(np.float32))


def some(rng: np.random.Generator, table: str, count: int) -> list[int]:
    rows: list[int] = rng.choice(np.arange(1, SIZES[table]), count, replace=False).tolist()
    return rows


def first_state(config: EmbeddingMLPConfig | MatrixFactorizationConfig, rng: np.random.Generator) -> State:
    model, items = build_model(config), SIZES["item"]
    rows = rng.integers(NO_VALUE, SIZES["field"], (items, 3))
    rows[:, 0] = np.where(rng.random(items) < 0.7, NUMBER_ROW, 2)
    columns = FieldColumns(
        rows=torch.from_numpy(rows.astype(np.int32)), weights=torch.ones(items, 3), size=SIZES["field"],
        sums=torch.full((3,), 2, dtype=torch.int32), neutral=torch.full((3,), OWN_VALUE, dtype=torch.int32),
        numbers=torch.tensor([NUMBER_ROW, NO_VALUE, NO_VALUE], dtype=torch.int32),
        scale=torch.tensor([[0.5, 0, 0], [1.5, 1, 1]]),
    )  # fmt: skip
    columns.weights[:, 0] = torch.where(columns.rows[:, 0] == NUMBER_ROW, 3 * noise(rng, items), 1.0)
    return State(
        model,
        {name: noise(rng, SIZES[name], width) for name, width in model.table_widths.items()}
        | {name: noise(rng, *shape) for name, shape in model.dense_shapes.items()},
        torch.from_numpy(rng.integers(NO_CATEGORY, SIZES["category"], (items, 3)).astype(np.int32)),
        columns,
        random_statistics(int(rng.integers(1000)), items - 12, size=80),
        {name: set(range(1, size - 6)) for name, size in SIZES.items()},  # the last rows have no ids yet
    )


def next_state(old: State, rng: np.random.Generator) -> tuple[State, dict[str, NDArray[np.int64]], dict[str, Hashes]]:
    """One period later: it touched some rows of each table, brought ids and took some away.

    Returns:
        the state, the rows that are other than before, and the hashes of the ids that are gone.
    """
    touched = {name: {*some(rng, name, 4)} for name in old.model.tables}
    params = {name: old.params[name] + 0.2 * noise(rng, *shape) for name, shape in old.model.dense_shapes.items()}
    for name, rows in touched.items():
        params[name] = old.params[name].clone()
        params[name][[0, *rows]] = noise(rng, 1 + len(rows), params[name].shape[1])
    known = {name: ({*own} - {*some(rng, name, 2)}) | {max(own) + 1} for name, own in old.known.items()}
    gone_items = torch.tensor(sorted(old.known["item"] - known["item"]), dtype=torch.int64)
    categories, columns, moved = old.categories.clone(), old.columns, some(rng, "item", 3)
    categories[moved] = torch.from_numpy(rng.integers(NO_CATEGORY, SIZES["category"], (3, 3)).astype(np.int32))
    weights = columns.weights.clone()
    weights[moved, 0] = torch.where(columns.rows[moved, 0] == NUMBER_ROW, 3 * noise(rng, 3), 1.0)
    scale = torch.tensor([[float(rng.normal()), 0, 0], [1 + float(rng.random()), 1, 1]])
    for name, of_nothing in (("category", categories[0]), ("field", columns.rows[0])):
        if name in touched:
            touched[name] |= {row for row in of_nothing.tolist() if row > 0}
    log = random_log(rng, int(rng.integers(5, max(known["item"]))), size=12)
    new = State(
        old.model, params, categories, replace(columns, weights=weights, scale=scale),
        old.statistics.learned(log).forgotten({"item": gone_items}), known,
    )  # fmt: skip
    for name, rows in touched.items():
        rows |= known[name] - old.known[name]
    touched["item"] |= {row for row in range(1, SIZES["item"]) if old.item(row) != new.item(row)}
    for name in ("user", "item"):
        touched[name] &= known[name]
    changed = {name: np.array(sorted(rows), np.int64) for name, rows in touched.items()}
    gone = {n: np.array(sorted(old.known[n] - known[n])) for n in ("user", "item", "field") if n in touched}
    return new, changed, {name: hash_ids(names(name, rows)) for name, rows in gone.items()}


def base_file(folder: Path, trained: TrainedModel) -> Path:
    with create(folder, ".safetensors") as file:
        encode_base(file, trained)
    assert file.path is not None
    return file.path


def delta_file(
    folder: Path, trained: TrainedModel, changed: dict[str, NDArray[np.int64]], gone: dict[str, Hashes]
) -> Path:
    with create(folder, ".safetensors") as file:
        encode_delta(file, some_rows(trained, changed), gone)
    assert file.path is not None
    return file.path


def content(overlay: Overlay) -> bytes:
    with BytesIO() as file:
        overlay.write(file)
        return file.getvalue()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_a_base_of_the_same_state(tmp_path: Path, shape: str, seed: int) -> None:
    """Also with ids, neighbours and values that are new since the base, and with some that are gone."""
    rng = np.random.default_rng(seed)
    state = first_state(SHAPES[shape], rng)
    paths, loaded = [base_file(tmp_path, state.trained())], list[Snapshot]()
    for _ in range(3):
        state, changed, gone = next_state(state, rng)
        paths.append(delta_file(tmp_path, state.trained(), changed, gone))
        loaded.append(load_snapshot(paths, len(paths), 1, loaded=loaded))  # from the overlay of the version before
        assert loaded[-1].base is loaded[0].base
        whole = load_snapshot(base_file(tmp_path, state.trained()), 9, 1)
        newest = loaded[-1]
        checked = [newest, replace(newest, forward=reference_forward(newest.meta, newest.files))]
        for each in checked:
            each.check()
        seen: set[int] = set()
        for n in range(12):
            items = names("item", rng.integers(0, SIZES["item"], int(rng.integers(1, 90))))
            past = names("item", rng.integers(0, SIZES["item"], int(rng.integers(0, 30))))
            user, recent = f"user{rng.integers(SIZES['user'])}", rng.integers(0, 10, 3).astype(np.int32)
            values = NO_VALUES
            if "field" in state.model.tables:
                owners = np.array([0, 1, 0, 0, OF_ITEM][: n % 6], np.int32)
                hashes = hash_ids(names("field", rng.integers(0, SIZES["field"], len(owners))))
                values = FieldValues(hashes, rng.random(len(owners)).astype(np.float32), owners)
            expected = whole.predict(user, items, past, recent, values)
            for each in checked:
                found = each.predict(user, items, past, recent, values)
                assert np.abs(found.scores - expected.scores).max() <= TOLERANCE
                assert found.cold_user == expected.cold_user == (int(user[4:]) not in state.known["user"])
                assert found.cold_items.tolist() == expected.cold_items.tolist()
            seen |= {*expected.cold_items.tolist()}
        for table in ("user", "item"):
            known = {row for row in range(SIZES[table]) if newest.knows(table, f"{table}{row}")}  # type: ignore[arg-type]
            assert known == state.known[table]
        assert seen
    # The same in one step, to the byte.
    base, *deltas = (TensorFile(path) for path in paths)
    by_steps = loaded[-1].overlay
    assert by_steps is not None
    assert content(merge(base, deltas)) == bytes(by_steps.file.mapping)


def test_a_delta_is_small_and_names_nobody(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    state, changed, gone = next_state(first_state(SHAPES["statistics"], rng), rng)
    small = delta_file(tmp_path, state.trained(), {"user": changed["user"][:1], "item": changed["item"][:1]}, gone)
    whole = base_file(tmp_path, state.trained())
    assert small.stat().st_size < whole.stat().st_size
    assert b"user" + str(changed["user"][0]).encode() not in small.read_bytes()


def test_ids_cannot_be_gone_and_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    state, changed, _ = next_state(first_state(SHAPES["plain"], rng), rng)
    gone = {"user": hash_ids(names("user", changed["user"][:2]))}
    with pytest.raises(ValueError, match=r"^user: expected ids that are gone to have no row; received 2 that have one"):
        delta_file(tmp_path, state.trained(), changed, gone)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    one = first_state(SHAPES["plain"], rng)
    other, changed, gone = next_state(first_state(SHAPES["factors"], rng), rng)
    base = base_file(tmp_path, one.trained())
    delta = delta_file(tmp_path, other.trained(), changed, gone)
    with pytest.raises(CheckpointError, match="snapshot: expected deltas of "):
        load_snapshot([base, delta], 1, 1)
    with pytest.raises(CheckpointError, match="expected a file of kind delta or overlay; received base"):
        load_snapshot([base, base], 1, 1)
    with pytest.raises(CheckpointError, match="expected a file of kind base; received delta"):
        Snapshot.open(delta, 1, 1)
