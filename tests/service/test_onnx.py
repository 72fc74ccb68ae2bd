"""A model that was exported as ONNX gives the scores of the service, run by onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.serving.fields import NO_VALUES, OF_ITEM, FieldValues
from service.serving.id_hashes import hash_ids
from service.serving.loading import load_snapshot
from service.serving.onnx_graph import NO_CLICK, request_inputs
from service.use_cases.export_model import MODEL, SNAPSHOT, write_model
from tests.service.test_deltas import SHAPES, SIZES, base_file, delta_file, first_state, names, next_state

TOLERANCE = 1e-5
Inputs = dict[str, NDArray[Any]]


def together(parts: list[Inputs]) -> Inputs:
    """The inputs of several requests as one; shorter histories are filled up."""
    width = max(part["history"].shape[1] for part in parts)
    for part in parts:
        missing = width - part["history"].shape[1]
        part["history"] = np.pad(part["history"], ((0, 0), (0, missing)), constant_values=NO_CLICK)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_the_snapshot(tmp_path: Path, shape: str) -> None:
    """To 1e-5: a base with a delta, ids that are gone, unknown ones, and histories of any length, one by one and in a
    batch.
    """
    rng = np.random.default_rng(7)
    state = first_state(SHAPES[shape], rng)
    paths = [base_file(tmp_path, state.trained())]
    state, changed, gone = next_state(state, rng)
    snapshot = load_snapshot([*paths, delta_file(tmp_path, state.trained(), changed, gone)], 12, 11)
    all_ids = {kind: names(kind, np.arange(1, SIZES[kind])) for kind in ("user", "item")}
    folder = tmp_path / "model"
    about = write_model(snapshot, all_ids["user"], all_ids["item"], folder)
    assert (about["model_version"], about["users"]) == (12, len(state.known["user"]))
    assert json.loads((folder / "model.json").read_text()) == about
    index = {kind: dict(pl.read_parquet(folder / f"{kind}s.parquet").rows()) for kind in ("user", "item")}
    assert {*index["item"]} == {f"item{row}" for row in state.known["item"]}

    exported = [folder / SNAPSHOT / name for name in about["snapshot"]]
    assert bool(exported) is (shape in ("statistics", "all"))
    beside = load_snapshot(exported, 12, 11) if exported else snapshot

    session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])
    read = {each.name for each in session.get_inputs()}
    parts: list[Inputs] = []
    expected: list[NDArray[np.float32]] = []
    for n, clicks in enumerate((0, 1, 5, 30)):
        items = names("item", rng.integers(0, SIZES["item"], 20))
        past = names("item", rng.integers(0, SIZES["item"], clicks))
        user, recent, values = f"user{3 * n}", rng.integers(0, 10, 3).astype(np.int32), NO_VALUES
        if "fields" in read:
            owners = np.array([0, 1, 1, OF_ITEM, OF_ITEM + 3][: n + 2], np.int32)
            hashes = hash_ids(names("field", rng.integers(0, SIZES["field"], len(owners))))
            values = FieldValues(hashes, rng.random(len(owners)).astype(np.float32), owners)
        rows = {
            "user": np.full(len(items), index["user"].get(user, 0), np.int64),
            "item": np.array([index["item"].get(item, 0) for item in items], np.int64),
            "history": np.tile(np.array([index["item"].get(item, 0) for item in past], np.int64), (len(items), 1)),
        }
        given = {**rows, **request_inputs(beside, items, past, recent, values)}
        parts.append({**given})
        expected.append(snapshot.predict(user, items, past, recent, values).scores)
        (scores,) = session.run(["score"], {name: given[name] for name in read})
        assert np.abs(scores - expected[-1]).max() <= TOLERANCE
    batch = together(parts)
    (scores,) = session.run(["score"], {name: batch[name] for name in read})
    assert np.abs(scores - np.concatenate(expected)).max() <= TOLERANCE
    assert np.ptp(scores) > 0.1

    with pytest.raises(ConfigurationError, match="a new or an empty folder"):
        write_model(snapshot, [], [], folder)
