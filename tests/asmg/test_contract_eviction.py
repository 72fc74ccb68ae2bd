"""The contract of every update method (`updater:check`): rows whose ids are gone are as good as new."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, PeriodData
from asmg.models import Params
from asmg.training import predict_logits
from tests.asmg.cases import Case, Contract, mapped, stages_of, to_bytes
from tests.asmg.support import period, random_fields, snapshot, torch_rng, unchanged, unrounded

contract = Contract()
check, check_reference_too = contract.check, contract.check_reference_too

GONE = {"user": torch.tensor([2, 5, 900]), "item": torch.tensor([1, 4, 6, 900])}
"""Rows that lose their ids; the last of each is past the tables' ends."""


def overwritten(state: Any, rows: Mapping[str, Tensor]) -> Any:
    """The state with something else in these rows of whatever has a row for each id."""

    def change(name: str, t: Tensor) -> Tensor:
        if name not in rows or t.dim() == 0:
            return t
        if t.dtype == torch.int64:  # not a table, but a list of rows
            return torch.cat([t[~torch.isin(t, rows[name])], rows[name]])
        return t.index_fill(0, rows[name][rows[name] < len(t)], 7)

    return mapped(state, change)


def logs_in(updater: Any, state: Any) -> dict[str, dict[str, Tensor]]:
    """What a state keeps of past periods: part → tensors."""
    kinds = ("period-data", "reservoir")
    return {n: dict(part.tensors) for n, part in updater.dump(state).items() if part.kind in kinds}


# --- what becomes of the rows


@check_reference_too
def nothing_is_left_of_what_the_rows_held(case: Case) -> None:
    updater = case.build()
    for periods in (1, 2, 4):
        state = case.state(periods)
        before = snapshot([state, GONE])
        after = updater.forgotten(state, GONE)
        assert unchanged(before, [state, GONE])
        # Whatever was there, in whatever tensor: the outcome is the same.
        other = overwritten(state, GONE)
        assert to_bytes(updater, other) != to_bytes(updater, state)
        assert to_bytes(updater, updater.forgotten(other, GONE)) == to_bytes(updater, after)
        for params in updater.serving_models(after).values():
            for table in ("user", "item"):
                inside = GONE[table][GONE[table] < len(params[table])]
                assert len(inside) >= 2
                assert torch.equal(params[table][inside], params[table][COLD_ROW].expand(len(inside), -1))


@check_reference_too
def no_other_row_is_touched(case: Case) -> None:
    updater = case.build()
    for periods in (1, 4):
        state = case.state(periods)
        after = updater.forgotten(state, GONE)
        logs = logs_in(updater, state)
        before, now = (to_bytes(updater, overwritten(s, GONE)) for s in (state, after))
        apart = {*logs, "statistics"}  # of statistics there is a test of its own: a row is in the lists of others too
        assert {n: b for n, b in now.items() if n not in apart} == {n: b for n, b in before.items() if n not in apart}
        for name, log in logs_in(updater, after).items():
            for of, table in (("user", "user"), ("item", "item"), ("history", "item")):
                gone = torch.isin(logs[name][of], GONE[table])
                assert torch.equal(log[of], logs[name][of].masked_fill(gone, COLD_ROW))
            assert torch.equal(log["label"], logs[name]["label"])


@check
def past_logs_do_not_speak_of_the_rows(case: Case) -> None:
    updater = case.build()
    state = case.state(4)
    before, after = logs_in(updater, state), logs_in(updater, updater.forgotten(state, GONE))
    looks_back = not updater.name.startswith(("iu", "incctr", "sml"))
    assert bool(before) == looks_back
    for name, log in after.items():
        for of, table in (("user", "user"), ("item", "item"), ("history", "item")):
            assert torch.isin(before[name][of], GONE[table]).any()
            assert not torch.isin(log[of], GONE[table]).any()


@check_reference_too
def of_no_rows_nothing_changes_and_nothing_is_copied(case: Case) -> None:
    updater = case.build()
    nothing = {"user": torch.tensor([], dtype=torch.int64), "item": torch.tensor([900])}
    for periods in (0, 1, 4):
        state = case.state(periods)
        after = updater.forgotten(state, nothing)
        assert to_bytes(updater, after) == to_bytes(updater, state)
        parts = updater.dump(after)
        assert all(part.same_as(parts[name]) for name, part in updater.dump(state).items() if "optim" not in name)


@check
def it_is_refused_in_the_midst_of_an_update_and_for_the_cold_row(case: Case) -> None:
    updater = case.build()
    for rows in ({**GONE, "item": torch.tensor([0, 3])}, {**GONE, "user": torch.tensor([-1])}):
        with pytest.raises(ValueError, match=r"^rows\.(item|user): expected rows past 0; received (0|-1)"):
            updater.forgotten(case.state(3), rows)
    refused = 0
    for state in stages_of(case, 4)[:-1]:
        if "pending" in updater.dump(state) or "chain" in updater.dump(state):
            refused += 1
            with pytest.raises(ValueError, match=r"^state: expected one"):
                updater.forgotten(state, GONE)
    assert refused


# --- a stream in which ids go and come back

EVICT_AFTER = 2
PERIODS = 9
ROOM = {"user": 26, "item": 36}
"""Rows of a table in which rows are used again: half of what the stream has ids."""


@dataclass
class World:
    """Which id has which row: as the service has it, or in other ways that must come to the same."""

    reuse: bool
    """Whether new ids get the rows of evicted ones, or such as nobody ever had."""
    room: Mapping[str, int] | None
    """Rows that the tables have from the second period on; None: they grow id by id."""
    rows: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    seen: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    highest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    reused: int = 0

    def turn(self, t: int, ids: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
        """Evict and allocate for a period; the rows that are nobody's to the model before it."""
        strange = {}
        for kind, present in ids.items():
            rows, seen = self.rows[kind], self.seen[kind]
            known = dict(rows)
            seen.update(dict.fromkeys(present, t))
            for i in [i for i in rows if seen[i] <= t - EVICT_AFTER]:
                del rows[i], known[i]
            free = sorted(set(range(1, self.highest[kind] + 1)) - set(rows.values())) if self.reuse else []
            for i in (i for i in present if i not in rows):
                if free:
                    rows[i] = free.pop(0)
                    self.reused += 1
                else:
                    self.highest[kind] += 1
                    rows[i] = self.highest[kind]
            last = self.highest[kind] if self.room is None or t == 1 else self.room[kind] - 1
            strange[kind] = torch.tensor(sorted(set(range(1, last + 1)) - set(known.values())))
        return strange

    def data(self, t: int, log: "Log", categories: int) -> PeriodData:
        """A log in this world's rows."""
        users, items = (
            self.highest[kind] + 1 if self.room is None or t == 1 else self.room[kind] for kind in ("user", "item")
        )
        user, item = self.rows["user"], self.rows["item"]
        matrix = [[-1, -1] for _ in range(items)]
        for i, row in item.items():
            matrix[row] = [1 + i % 3, 1 + i % (categories - 1) if i % 4 else -1] if categories else []
        return period(
            [user[i] for i in log.user],
            [item[i] for i in log.item],
            [[item[i] for i in history] for history in log.history],
            log.label,
            users=users,
            items=items,
            **({"item_categories": matrix, "categories": categories} if categories else {}),
        )


@dataclass(frozen=True)
class Log:
    """A period's interactions, in ids."""

    user: list[int]
    item: list[int]
    history: list[list[int]]
    label: list[float]

    @property
    def ids(self) -> dict[str, list[int]]:
        """All ids, by first appearance."""
        past = [i for history in self.history for i in history]
        return {"user": list(dict.fromkeys(self.user)), "item": list(dict.fromkeys([*self.item, *past]))}


def log_of(t: int) -> Log:
    """Regulars (1 to 4), some that come for three periods and never again, and some that are there now and then."""
    rng, n = np.random.default_rng(t), 600 if t == 1 else 150

    def draw(new: int, size: int) -> np.ndarray:
        present = [*range(1, 5), *range(100 + new * (t - 2), 100 + new * (t + 1))]
        present += [50, 51, 52] if t % 4 in (1, 2) else []
        return rng.choice(present, size)

    user, item, past = draw(4, n), draw(6, n), draw(6, 3 * n)
    bounds = np.sort(rng.integers(0, len(past) + 1, n - 1))
    label = rng.random(n) < np.array([0.1, 0.5, 0.9])[item % 2 + user % 2]
    return Log(user.tolist(), item.tolist(), [h.tolist() for h in np.split(past, bounds)], label.astype(float).tolist())


def course(
    case: Case, world: World, periods: int = PERIODS
) -> list[tuple[World, dict[str, Params], dict[str, Tensor]]]:
    """The stream through one world: after each period its models, and what these say of the period."""
    updater, categories, steps = unrounded(case.build()), 5 if case.config.categories else 0, []
    state = updater.initial(torch_rng(17))
    for t in range(1, periods + 1):
        log = log_of(t)
        strange = world.turn(t, log.ids)
        if t > 1:
            state = updater.forgotten(state, strange)
        data = world.data(t, log, categories)
        rng = np.random.default_rng(t)
        if case.statistics:
            data = replace(data, recent=torch.from_numpy(rng.integers(0, 31, (len(data), 3), dtype=np.int32)))
        if case.config.fields:
            data = replace(data, fields=random_fields(t, len(data)))
        if not case.statistics and (width := updater.model.numeric):
            data = replace(data, numeric=torch.tensor(rng.normal(size=(len(data), width)), dtype=torch.float32))
        data = updater.prepare(state, data)
        state = updater.update(state, data, rng=torch_rng(t))
        models = updater.serving_models(state)
        said = {name: predict_logits(updater.model, params, data) for name, params in models.items()}
        at = replace(world, rows={kind: dict(rows) for kind, rows in world.rows.items()})
        steps.append((at, models, said))
    return steps


def equal(one: Tensor, other: Tensor) -> None:
    """Fail unless both are the same, to the bit."""
    assert torch.equal(one, other)


@check
def rows_of_evicted_ids_are_as_good_as_rows_that_nobody_ever_had(case: Case) -> None:
    """To the bit, in every number of every id that is known, and in all others.

    Up to rounding where each period rewrites whole tables: a product of matrices rounds a row that the period did not
    read by its place in a table, and these tables differ in size.
    """
    same = torch.testing.assert_close if case.build().rewrites_tables else equal
    size = {kind: 20 * room for kind, room in ROOM.items()}
    again, spare = World(reuse=True, room=ROOM), World(reuse=False, room=size)
    for (w, models, said), (v, others, heard) in zip(course(case, again), course(case, spare), strict=True):
        assert models.keys() == others.keys()
        for name, params in models.items():
            same(said[name], heard[name])
            for table, p in params.items():
                q = others[name][table]
                if table in ROOM:
                    ids = list(w.rows[table])
                    p, q = (m[[0, *(x.rows[table][i] for i in ids)]] for m, x in ((p, w), (q, v)))
                same(p, q)
    assert again.reused > 40
    assert spare.reused == 0
    for kind, room in ROOM.items():
        assert again.highest[kind] < room < spare.highest[kind]


@check
def a_row_of_an_evicted_id_is_as_good_as_a_new_one_at_the_end(case: Case) -> None:
    """Up to rounding: what is past a table's end is read as the cold row itself, and gradients sum in another order."""
    again, grown = World(reuse=True, room=None), World(reuse=False, room=None)
    steps = zip(course(case, again, 6), course(case, grown, 6), strict=True)
    for (_, _, said), (_, _, heard) in steps:
        for name, logits in said.items():
            assert float(logits.std()) > 0.02
            torch.testing.assert_close(logits, heard[name], rtol=1e-3, atol=1e-3)
    assert again.reused > 20
    assert grown.highest["user"] > 1.4 * again.highest["user"]


@pytest.mark.parametrize(("case", "function"), contract.params())
def test_contract(case: Case, function: Callable[[Case], None]) -> None:
    function(case)
