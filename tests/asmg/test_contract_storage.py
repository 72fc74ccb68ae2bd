"""The contract of every update method (`updater:check`): what is stored of a state goes on to the same result, and what
is not a whole state of this very method is refused."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import Tensor

from asmg.checkpoint import FORMAT_VERSION, Checkpoint, CheckpointError
from asmg.updaters import UPDATERS, build_updater
from tests.asmg.cases import Case, Contract, from_bytes, stages_of, to_bytes
from tests.asmg.support import snapshot, torch_rng, unchanged

contract = Contract()
check, check_reference_too = contract.check, contract.check_reference_too


@check_reference_too
def a_stored_state_goes_on_to_the_same_bits(case: Case) -> None:
    """dump → bytes → load between all stages of four periods, from the very first state on."""
    updater, another = case.build(), case.build()
    state = restored = updater.initial(torch_rng(5))
    for t in (1, 2, 3, 4):
        for stage in updater.stages:
            restored = from_bytes(another, to_bytes(another, restored))
            state = updater.run_stage(stage, state, case.period(t, 60), rng=torch_rng(t))
            restored = another.run_stage(stage, restored, case.period(t, 60), rng=torch_rng(t))
            assert to_bytes(updater, state) == to_bytes(another, restored)
    for name, params in updater.serving_models(state).items():
        assert unchanged(snapshot(params), another.serving_models(restored)[name])


@check
def a_dump_is_deterministic_and_load_is_its_inverse(case: Case) -> None:
    updater = case.build()
    for periods in (0, 1, 2, 4):
        parts = to_bytes(updater, case.state(periods))
        assert to_bytes(updater, case.state(periods)) == parts
        assert to_bytes(updater, from_bytes(updater, parts)) == parts


@check_reference_too
def a_dump_names_its_owner(case: Case) -> None:
    updater = case.build()
    assert updater.name == case.updater
    for periods in (0, 3):
        meta = Checkpoint.from_bytes(to_bytes(updater, case.state(periods))["updater"]).meta
        assert meta["updater"] == case.updater
        assert meta["model"] == updater.model.config.to_json()
        assert meta.items() >= json.loads(json.dumps(updater.signature())).items()


@check
def a_part_that_a_period_did_not_change_keeps_its_bytes(case: Case) -> None:
    """What is in a state twice, or moved on from the state before, is stored once by a store that goes by content."""
    updater = case.build()
    for t in (2, 3, 4, 5):
        before, after = (updater.dump(case.state(n)) for n in (t - 1, t))
        same = 0
        for part in after.values():
            for old in before.values():
                equal = old.tensors.keys() == part.tensors.keys() and all(
                    torch.equal(old.tensors[n], part.tensors[n]) for n in part.tensors
                )
                if equal and part.tensors and old.meta == part.meta:
                    same += 1
                    assert old.to_bytes() == part.to_bytes()
        moved = {f"model.{age}" for age in range(1, 9)} | {f"data.{age}" for age in range(1, 9)}
        assert same >= len(moved & after.keys())


@check
def the_state_of_another_method_or_configuration_is_refused(case: Case) -> None:
    updater = case.build()
    for periods in (0, 3):
        parts = updater.dump(case.state(periods))
        for name in UPDATERS.keys() - {case.updater}:
            with pytest.raises(CheckpointError):
                build_updater(name, case.config).load(parts)
        refused = 0
        for config in (
            replace(case.config, dim=4),
            replace(case.config, hidden=(5, 3)),
            replace(case.config, categories=not case.config.categories),
        ):
            other = build_updater(case.updater, config)
            if other.model.config != updater.model.config:  # a factorization has no hidden layers
                refused += 1
                with pytest.raises(CheckpointError):
                    other.load(parts)
        assert refused >= 2


@check
def a_dump_that_lacks_a_part_is_refused(case: Case) -> None:
    """At once; or by the next stage, where a part is rightly missing at other times."""
    updater = case.build()
    with pytest.raises(CheckpointError):
        updater.load({})
    parts = updater.dump(case.state(4))
    for missing in parts.keys() - {"generated"}:  # which the initial state lacks rightly
        with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
            updater.load({name: part for name, part in parts.items() if name != missing})
    for state, stage in zip(stages_of(case, 4)[:-1], updater.stages[1:], strict=True):
        parts = updater.dump(state)
        for missing in parts.keys() - {"generated"}:
            rest = {name: part for name, part in parts.items() if name != missing}
            with pytest.raises((CheckpointError, ValueError)):
                updater.run_stage(stage, updater.load(rest), case.period(4), rng=torch_rng(0))


@check
def a_dump_with_a_part_too_many_is_refused(case: Case) -> None:
    updater = case.build()
    for periods in (0, 4):
        parts = updater.dump(case.state(periods))
        with pytest.raises(CheckpointError, match="surprise"):
            updater.load({**parts, "surprise": parts["base"]})


def of_version(data: bytes, version: int) -> bytes:
    """A checkpoint as another version of the format would begin it."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["asmg"] = json.dumps(json.loads(header["__metadata__"]["asmg"]) | {"version": version})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@check
def a_state_of_another_format_version_is_refused(case: Case) -> None:
    updater = case.build()
    for state in (case.state(0), *stages_of(case, 4)):
        parts = to_bytes(updater, state)
        for name, data in parts.items():
            assert Checkpoint.from_bytes(of_version(data, FORMAT_VERSION)).to_bytes() == data
            with pytest.raises(CheckpointError, match=r"^checkpoint: expected format version"):
                from_bytes(updater, {**parts, name: of_version(data, FORMAT_VERSION + 1)})


def numbers_in(parts: dict[str, Checkpoint]) -> list[tuple[str, str]]:
    """Part and name of every tensor of floating-point numbers."""
    return [
        (part, name)
        for part, stored in parts.items()
        for name, tensor in stored.tensors.items()
        if tensor.is_floating_point() and tensor.numel()
    ]


@check
def stored_numbers_that_are_not_finite_are_refused(case: Case) -> None:
    """In whatever part: what is generated is served, what is pending is committed, moments move the weights."""
    updater, accepted = case.build(), set()
    for state in (case.state(0), *stages_of(case, 4)):
        parts = updater.dump(state)
        for (part, name), bad in zip(numbers_in(parts), cycle((math.nan, math.inf)), strict=False):
            tensor = parts[part].tensors[name].clone()
            tensor.view(-1)[-1] = bad
            damaged: dict[str, Tensor] = {**parts[part].tensors, name: tensor}
            try:
                updater.load({**parts, part: replace(parts[part], tensors=damaged)})
                accepted.add((part, name))
            except ValueError:  # CheckpointError is one
                pass
    assert not accepted


@pytest.mark.parametrize(("case", "function"), contract.params())
def test_contract(case: Case, function: Callable[[Case], None]) -> None:
    function(case)
