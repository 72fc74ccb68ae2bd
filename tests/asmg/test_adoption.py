"""A state that was made before the base model had fields goes on: the model gets them, and says what it said before."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from asmg.adam import AdamState
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.field_columns import FieldColumns
from asmg.models import EmbeddingMLP
from asmg.statistics import NAMES
from asmg.training import predict_logits
from asmg.updaters.base import Updater
from tests.asmg.cases import SMALL_CATEGORIES, Case, check_served, from_bytes, to_bytes
from tests.asmg.support import torch_rng

METHODS = ["iu", "bu-3", "spmf", "incctr", "sml", "asmg-linear", "asmg-gru-multi"]
BEFORE = replace(SMALL_CATEGORIES, numeric=len(NAMES), dot=True)
NOW = replace(BEFORE, fields=True)
FIRST = "mlp.0.weight"


def cases(name: str, statistics: bool = True) -> tuple[Case, Case]:
    """A method before and now. Without statistics the data brings the numeric inputs."""
    return Case(name, BEFORE, statistics=statistics), Case(name, NOW, statistics=statistics)


def adopted(before: Case, now: Case, periods: int = 3) -> tuple[Updater[Any], Any]:
    updater = now.build()
    parts = to_bytes(before.build(), before.state(periods))
    return updater, updater.adopted({n: Checkpoint.from_bytes(part) for n, part in parts.items()}, rng=torch_rng(5))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_model_says_what_it_said(name: str, statistics: bool) -> None:
    before, now = cases(name, statistics)
    updater, state = adopted(before, now)
    old = before.build()
    data = old.prepare(before.state(3), before.period(4))
    said = predict_logits(old.model, old.serving_models(before.state(3))["incremental"], data)
    models = updater.serving_models(state)
    assert models
    for fields in (FieldColumns.none(len(data)), now.period(4).fields):  # without fields, and with any
        given = replace(updater.prepare(state, before.period(4)), fields=fields)
        for served in models.values():
            torch.testing.assert_close(predict_logits(updater.model, served, given), said, rtol=0, atol=1e-6)
    assert said.std() > 0.05


@pytest.mark.parametrize("name", ["iu", "asmg-gru-multi"])
def test_what_is_new_begins_and_all_else_stays(name: str) -> None:
    before, now = cases(name)
    updater, state = adopted(before, now)
    old, base = before.build().base_of(before.state(3)), updater.base_of(state)
    assert isinstance(updater.model, EmbeddingMLP)
    ids, fields, numeric = base.params[FIRST].split([updater.model.ids_width, 3 * NOW.dim, len(NAMES)], 1)
    assert torch.equal(torch.cat([ids, numeric], 1), old.params[FIRST]) and not fields.any()
    for moments, of_old in ((base.adam.first, old.adam.first), (base.adam.second, old.adam.second)):
        ids, fields, numeric = moments[FIRST].split([updater.model.ids_width, 3 * NOW.dim, len(NAMES)], 1)
        assert torch.equal(torch.cat([ids, numeric], 1), of_old[FIRST]) and not fields.any()
        assert of_old[FIRST].any() and not moments["field"].any()
        assert all(torch.equal(t, moments[n]) for n, t in of_old.items() if n != FIRST)
    assert all(torch.equal(t, base.params[n]) for n, t in old.params.items() if n != FIRST)
    assert torch.equal(base.params["field"], updater.model.initial(torch_rng(5))["field"])
    assert (base.adam.step, base.periods, base.passes) == (old.adam.step, old.periods, old.passes)
    assert base.adam.moved["field"].tolist() == [old.adam.step]
    base.adam.check(base.params)
    assert isinstance(base.adam, AdamState) and updater.statistics_of(state) is not None
    parts, then = (u.dump(s)["statistics"].to_bytes() for u, s in ((updater, state), (before.build(), before.state(3))))
    assert parts == then


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_the_fields(name: str) -> None:
    before, now = cases(name)
    updater, state = adopted(before, now)
    for t in (4, 5, 6):
        state = updater.update(state, now.period(t), rng=torch_rng(t))
        check_served(updater, state, now.period(t))
        state = from_bytes(updater, to_bytes(updater, state))
    params = updater.base_of(state).params
    assert isinstance(updater.model, EmbeddingMLP)
    start = updater.model.ids_width
    assert params[FIRST][:, start : start + 3 * NOW.dim].abs().max() > 1e-3
    assert params["field"].std(0).min() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_the_header_tells_that_it_can(name: str) -> None:
    before, now = cases(name)
    updater, parts = now.build(), before.build().dump(before.state(3))
    meta = parts["updater"].meta
    updater.check_continuable(meta, parts)
    assert not updater.loads(meta) and updater.loads(updater.dump(now.state(1))["updater"].meta)
    with pytest.raises(CheckpointError):
        updater.load(parts)
    other = Case("iu", BEFORE, statistics=True)  # another method's too
    updater.check_continuable(other.build().dump(other.state(1))["updater"].meta, parts)
    for change in ({"dim": 4}, {"hidden": [8]}, {"numeric": 0}, {"dot": False}):
        wrong = {**meta, "model": {**meta["model"], **change}}
        with pytest.raises(CheckpointError, match=r"^(model|updater): expected"):
            updater.check_continuable(wrong, parts)
    with pytest.raises(CheckpointError, match="expected the parts"):
        updater.check_continuable(meta, set(parts) - {"optimizer"})
    with pytest.raises(CheckpointError):  # the other way there is none
        before.build().check_continuable(updater.dump(now.state(1))["updater"].meta, parts)


def test_before_the_first_period_it_begins() -> None:
    before, now = cases("asmg-gru-multi")
    updater, state = adopted(before, now, periods=0)
    assert updater.serving_models(state) == {}
    check_served(updater, updater.update(state, now.period(1), rng=torch_rng(0)), now.period(1))
