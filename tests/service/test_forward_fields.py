"""Fields in a serving snapshot: how a request's values are read, and the scores that follow."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor
from xxhash import xxh64_intdigest

from asmg.batch import InteractionBatch, ItemFeatures
from asmg.features import Field, Schema
from asmg.field_columns import BatchFields, FieldColumns, unscaled
from asmg.header import CheckpointError
from asmg.layout import NO_VALUE, OWN_VALUE
from asmg.models import EmbeddingMLPConfig, Params, build_model
from asmg.statistics import NAMES
from service.serving.encode import KnownFields
from service.serving.fields import MAX_CACHED_HASHES, FieldReader, FieldValues
from service.serving.forward.reference import reference_forward
from service.serving.snapshot import Snapshot
from tests.service.serving_support import (
    ITEMS,
    TOLERANCE,
    USERS,
    base_of,
    known,
    metadata_of,
    random_model,
    random_statistics,
)

SCHEMA = Schema(
    fields=(
        Field("device", "context", "categorical"),
        Field("position", "context", "categorical", training_only=True),
        Field("page", "context", "numeric", enter="standardised"),
        Field("age", "user", "numeric", enter="buckets", buckets=(18.0, 30.0)),
        Field("likes", "user", "multi", most=3),
        Field("price", "item", "numeric", enter="log"),
        Field("tags", "item", "multi", most=2),
    ),
    timezone="Europe/Berlin",
)
SCALES = {"page": (3.0, 0.5), "price": (2.0, 1.5)}
NOON = 1_788_004_800_000
"""29 August 2026, 12:00 UTC: a Saturday, 14 o'clock in Berlin."""

VALUES = [
    "hour=14", "hour=9", "weekday=5", "device=phone", "device=tv", "device=", "position=", "position=3",
    "page=#", "page=", "age=0", "age=1", "age=", "likes=a", "likes=b", "likes=",
    "price=#", "price=", "tags=x", "tags=y", "tags=",
]  # fmt: skip
ROW = {name: row for row, name in enumerate(VALUES, start=1)}
FEATURES = [
    {"price": 12.5, "tags": ["x", "y"]}
    if n % 3 == 0
    else {"price": 100 * n}
    if n % 3 == 1
    else {"tags": ["unheard of"]}
    for n in range(len(ITEMS))
]


def reader() -> FieldReader:
    return FieldReader(SCHEMA, SCALES)


def told(values: FieldValues) -> dict[tuple[int, str], float]:
    """Owner and name → weight."""
    names = {xxh64_intdigest(name.encode()): name for name in VALUES}
    return {
        (owner, names.get(value, "?")): pytest.approx(weight)
        for value, weight, owner in zip(*(column.tolist() for column in values), strict=True)
    }


# --- what a request's fields are


def test_a_request_has_a_value_of_every_field_of_the_context_and_the_user() -> None:
    found = reader().read({"device": "phone", "page": 5}, {"age": 17, "likes": ["b", "a", "b"]}, timestamp_ms=NOON)
    assert told(found) == {
        (0, "hour=14"): 1, (0, "weekday=5"): 1, (0, "device=phone"): 1, (0, "position="): 1, (0, "page=#"): 1,
        (1, "age=0"): 1, (1, "likes=a"): 1, (1, "likes=b"): 1,
    }  # fmt: skip


def test_what_is_not_given_is_missing_which_is_a_value() -> None:
    found = reader().read({}, {}, timestamp_ms=NOON)
    assert told(found) == {
        (0, "hour=14"): 1, (0, "weekday=5"): 1, (0, "device="): 1, (0, "position="): 1, (0, "page="): 1,
        (1, "age="): 1, (1, "likes="): 1,
    }  # fmt: skip


def test_a_field_for_training_only_is_missing_whatever_is_sent() -> None:
    found = reader().read({"position": 3}, {}, [{"position": 3}, None], timestamp_ms=NOON)
    assert (0, "position=") in told(found) and (0, "position=3") not in told(found)
    assert max(found.owners) == 1


def test_numbers_are_scaled_and_kept_within_five() -> None:
    for page, weight in ((3, 0.0), (4, 0.5), (1e9, 5.0), (-1e9, -5.0)):
        assert told(reader().read({"page": page}, {}, timestamp_ms=NOON))[0, "page=#"] == weight


def test_a_candidates_own_context_stands_in_the_place_of_the_requests() -> None:
    found = reader().read(
        {"device": "phone", "page": 5}, {}, [None, {"device": "tv", "page": 3}, {}], timestamp_ms=NOON
    )
    own = sorted(
        (int(weight), name)
        for name in ("device=tv", "device=phone", "page=#")
        for value, weight, owner in zip(*found, strict=True)
        if owner == 3 and value == xxh64_intdigest(name.encode())
    )
    # The request's values are taken away; the candidate's own page is the mean, which weighs nothing.
    assert own == [(-1, "device=phone"), (-1, "page=#"), (0, "page=#"), (1, "device=tv")]
    assert set(found.owners.tolist()) == {0, 1, 3}


def test_what_the_schema_cannot_read_is_missing_and_what_it_does_not_know_is_left_out() -> None:
    """The request may have been checked against another schema."""
    fields = reader()
    nothing = told(fields.read({}, {}, timestamp_ms=NOON))
    for context in (
        {"device": ["phone"]}, {"device": 1.5}, {"page": "3"}, {"page": True}, {"page": 1e31}, {"page": ["3"]},
        {"campaign": "spring", "hour": "3", "age": 3}, {"device": ""}, {"device": "x" * 257},
    ):  # fmt: skip
        assert told(fields.read(context, {}, timestamp_ms=NOON)) == nothing
    for user in (
        {"age": "17"}, {"likes": "a"}, {"likes": ["a", "b", "c", "d"]}, {"likes": ["a", None]}, {"likes": ["a", ["b"]]},
        {"likes": []}, {"likes": [""]}, {"device": "phone"},
    ):  # fmt: skip
        assert told(fields.read({}, user, timestamp_ms=NOON)) == nothing
    own = fields.read({}, {}, [{"device": ["tv"], "campaign": "x"}], timestamp_ms=NOON)
    assert sum(weight for weight, owner in zip(own.weights, own.owners, strict=True) if owner == 2) == 0
    assert fields.of_item({"price": "dear", "tags": "x", "weight": 3}) == fields.of_item({})


ODD: list[Any] = [
    None, "", "1", 1, 1.0, True, "true", False, 0, "0", -0.0, 17.9, 18, 30, 2**63, 1e30, "phone", "é", {},
    [], [None], [""], [[]], ["1"], [1], [True], [1.0], ["phone"], ["b", "a"], ["a", "b", "a"], ["a", ""],
    ["a", "b", "c"], ["a", "b", "c", "d"],
]  # fmt: skip


def test_what_a_reader_remembers_changes_nothing() -> None:
    """Not a bit, so that equal requests get equal answers."""
    random, old = Random(4), reader()
    for _ in range(1500):
        context = {"device": random.choice(ODD), "page": random.choice(ODD), "position": random.choice(ODD)}
        user = {"age": random.choice(ODD), "likes": random.choice(ODD)}
        own = [None, {"device": random.choice(ODD), "page": random.choice(ODD)}]
        found, fresh = (each.read(context, user, own, timestamp_ms=NOON) for each in (old, reader()))
        for one, other in zip(found, fresh, strict=True):
            assert one.tolist() == other.tolist()
        assert found.hashes.dtype == np.uint64 and found.weights.dtype == np.float32 and found.owners.dtype == np.int32


def test_so_many_values_are_remembered_and_no_more() -> None:
    fields = reader()
    for n in range(3 * MAX_CACHED_HASHES):
        fields.read({"device": f"d{n}"}, {"likes": [f"l{n}", f"m{n}"]}, timestamp_ms=NOON)
    kept = [len(known._hashes) for known in (*fields._of_context.values(), *fields._of_user.values())]
    assert max(kept) <= MAX_CACHED_HASHES and sum(kept) > MAX_CACHED_HASHES
    expected = reader().read({"device": "d1"}, {}, timestamp_ms=NOON).hashes.tolist()
    assert fields.read({"device": "d1"}, {}, timestamp_ms=NOON).hashes.tolist() == expected


def test_hour_and_weekday_are_those_of_each_moment() -> None:
    """By one reader, around every clock change of a day and every full hour."""
    fields, names = reader(), {xxh64_intdigest(f"{f}={n}".encode()): n for f in ("hour", "weekday") for n in range(24)}
    night = 1_792_886_400_000  # 25 October 2026, 2:00 in Berlin; an hour later it is 2 o'clock again
    for moment in (night, night + 3_600_000, night - 3 * 3_600_000, night + 2 * 3_600_000, NOON):
        for ms in (-60_001, -1, 0, 1, 59_999, 60_000):
            shown = datetime.fromtimestamp((moment + ms) / 1000, ZoneInfo("Europe/Berlin"))
            found = fields.read({}, {}, timestamp_ms=moment + ms)
            assert [names[value] for value in found.hashes.tolist()[:2]] == [shown.hour, shown.weekday()]


def test_a_reader_comes_back_from_json() -> None:
    again = FieldReader.from_json(reader().to_json())
    assert again.to_json() == reader().to_json()
    asked: tuple[dict[str, Any], dict[str, Any]] = {"device": "tv", "page": 7}, {"age": 40}
    for one, other in zip(again.read(*asked, timestamp_ms=NOON), reader().read(*asked, timestamp_ms=NOON), strict=True):
        assert one.tolist() == other.tolist()


# --- scores


def of_items() -> FieldColumns:
    """The columns price, tags, tags of every item; row 0 is one of which nothing is known."""
    rows = np.full((1 + len(ITEMS), 3), NO_VALUE, np.int32)
    weights = np.ones(rows.shape, np.float32)
    for item, features in enumerate([{}, *FEATURES]):
        for place, (name, weight) in enumerate(sorted(reader().of_item(features))):  # price before tags
            rows[item, place], weights[item, place] = ROW.get(name, 0), weight
    return FieldColumns(
        rows=torch.from_numpy(rows), weights=torch.from_numpy(weights), size=len(VALUES) + 1,
        sums=torch.full((3,), 2, dtype=torch.int32), neutral=torch.full((3,), OWN_VALUE, dtype=torch.int32),
        numbers=torch.full((3,), NO_VALUE, dtype=torch.int32), scale=unscaled(3),
    )  # fmt: skip


class Made:
    """A model with fields, its snapshot, and the library's forward pass."""

    def __init__(self, folder: Path, *, categories: bool, statistics: bool, dot: bool = True) -> None:
        counted = random_statistics(3, len(ITEMS)) if statistics else None
        plain = random_model(5, dim=6, hidden=(9, 4), categories=categories, dot=dot, statistics=counted)
        numeric = len(NAMES) if statistics else 0
        self.model = build_model(
            EmbeddingMLPConfig(dim=6, hidden=(9, 4), categories=categories, numeric=numeric, dot=dot, fields=True)
        )
        rng = torch.Generator().manual_seed(8)
        self.params: Params = dict(plain.params)
        for name, shape in self.model.dense_shapes.items():
            if name == "mlp.0.weight":
                self.params[name] = torch.randn(shape, generator=rng) * 1.5 / shape[1] ** 0.5
        self.params["field"] = torch.randn(len(VALUES) + 1, 6, generator=rng)
        self.plain, self.fields = plain, KnownFields(known(VALUES), reader(), of_items())
        path = folder / "snapshot.safetensors"
        path.write_bytes(self.encoded())
        self.snapshot = Snapshot.open(path, 1, 1)

    def encoded(self) -> bytes:
        return base_of(self.plain.trained(model=self.model, params=self.params, fields=self.fields))

    def expected(
        self, user: str, items: list[str], history: list[str], context: dict[str, Any], features: dict[str, Any]
    ) -> Tensor:
        row = {name: n for n, name in enumerate(ITEMS, start=1)}
        asked = torch.tensor([row.get(item, 0) for item in items])
        past = [row.get(item, 0) for item in history]
        read = reader().read(context, features, timestamp_ms=NOON)
        names = {xxh64_intdigest(name.encode()): place for name, place in ROW.items()}
        own = self.fields.of_items.batch(asked)
        rows = torch.tensor([names.get(value, 0) for value in read.hashes.tolist()]).expand(len(items), -1)
        weights = torch.from_numpy(read.weights).expand(len(items), -1)
        owners = torch.from_numpy(read.owners).long()
        batch = InteractionBatch(
            user=torch.full((len(items),), USERS.index(user) + 1 if user in USERS else 0),
            item=asked,
            history=torch.tensor(past * len(items), dtype=torch.int64),
            offsets=torch.arange(len(items) + 1) * len(past),
            label=torch.zeros(len(items)),
            numeric=replace(self.plain, model=self.model).numeric(items, history, (0, 0, 0)),
            fields=BatchFields(
                torch.cat([rows, own.rows], 1), torch.cat([weights, own.weights], 1), torch.cat([owners, own.sums])
            ),
        )
        features_of = None
        if self.plain.item_categories is not None:
            features_of = ItemFeatures(torch.arange(len(self.plain.item_categories)), self.plain.item_categories)
        return torch.sigmoid(self.model.logits(self.params, batch, features_of))


@pytest.fixture(params=[(False, False), (True, False), (False, True), (True, True)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    categories, statistics = request.param
    return Made(tmp_path, categories=categories, statistics=statistics)


CONTEXTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"device": "phone", "page": 9, "position": 4}, {"age": 17, "likes": ["a"]}),
    ({"device": "never heard of"}, {"likes": ["never heard of", "b"]}),
]


def test_scores_are_the_librarys(made: Made) -> None:
    reference = replace(made.snapshot, forward=reference_forward(made.snapshot.meta, made.snapshot.files))
    made.snapshot.check()
    reference.check()
    seen = []
    for n, (context, features) in enumerate(CONTEXTS):
        for count in (1, 63, 65):
            user = [*USERS, "stranger"][n]
            items = [[*ITEMS, "new"][(7 * n + k) % (len(ITEMS) + 1)] for k in range(count)]
            history = ITEMS[n : 5 * n]
            values = made.snapshot.fields.read(context, features, timestamp_ms=NOON)  # type: ignore[union-attr]
            expected = made.expected(user, items, history, context, features).numpy()
            for snapshot in (made.snapshot, reference):
                got = snapshot.predict(user, items, history, values=values).scores
                assert np.abs(got - expected).max() <= TOLERANCE
            seen.append(expected[0])
    assert max(seen) - min(seen) > 0.05


def test_a_candidates_own_context_is_as_if_the_request_had_it(made: Made) -> None:
    reference = replace(made.snapshot, forward=reference_forward(made.snapshot.meta, made.snapshot.files))
    of_request, own = {"device": "phone", "page": 2.0}, {"device": "tv", "page": 4.0}
    items = ITEMS[:12]
    for snapshot in (made.snapshot, reference):
        assert snapshot.fields is not None
        one, other = (
            snapshot.predict("u1", items, ITEMS[5:9], values=snapshot.fields.read(c, {}, timestamp_ms=NOON)).scores
            for c in (of_request, own)
        )
        mixed = snapshot.predict(
            "u1", items, ITEMS[5:9], values=snapshot.fields.read(of_request, {}, [None, own] * 6, timestamp_ms=NOON)
        ).scores
        expected = np.where(np.arange(12) % 2 == 1, other, one)
        np.testing.assert_allclose(mixed, expected, atol=TOLERANCE)
        assert np.abs(one - other).max() > 1e-3


def test_equal_models_have_equal_files_and_no_value_is_in_one_as_text(made: Made, tmp_path: Path) -> None:
    content = (tmp_path / "snapshot.safetensors").read_bytes()
    assert content == made.encoded()
    assert b"device=phone" not in content


def test_a_model_with_fields_needs_them_and_one_without_refuses_them(tmp_path: Path) -> None:
    made = Made(tmp_path, categories=False, statistics=False)
    with pytest.raises(ValueError, match=r"^fields: expected exactly for a model with fields; received False"):
        base_of(made.plain.trained(model=made.model, params=made.params))
    with pytest.raises(ValueError, match=r"^fields: expected exactly for a model with fields; received True"):
        base_of(made.plain.trained(fields=made.fields))


def test_rows_that_are_too_short_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, categories=False, statistics=False)
    wrong = {**made.params, "field": made.params["field"][:, :5]}
    monkeypatch.setattr("service.serving.encode.model.check_questions", lambda *_: [])
    with pytest.raises(ValueError, match=r"^field: expected rows of 6 numbers; received shape \[22, 5\]"):
        base_of(made.plain.trained(model=made.model, params=wrong, fields=made.fields))


def test_a_file_whose_rows_are_too_short_is_refused(tmp_path: Path) -> None:
    content = Made(tmp_path, categories=False, statistics=False).encoded()
    tensors = load_tensors(content)
    tensors["fields.vectors"] = tensors["fields.vectors"][:, :5].copy()
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(save_tensors(tensors, metadata_of(content)))
    with pytest.raises(CheckpointError, match=r"^snapshot: fields.vectors: expected float32 \[None, 6\]; received"):
        Snapshot.open(path, 1, 1)
