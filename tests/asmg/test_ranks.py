"""Several processes train one model: with the result of one process, and equal on all of them."""

import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from asmg.checkpoint import Checkpoint
from asmg.layers import excerpt_state, together
from asmg.ranks import ALONE, RankLost, Ranks
from asmg.statistics import StatisticsConfig
from asmg.team import Team
from asmg.training import DivergedError, Execution
from asmg.updaters import build_updater
from tests.asmg.cases import CASES, to_bytes
from tests.asmg.ranks import ended, start_ranks
from tests.asmg.support import torch_rng, unrounded

RUNS = {
    "iu": ("iu+categories+statistics+dot+fields", True),
    "iu, eager": ("iu+categories+statistics+dot+fields", False),
    "iu, every rank for itself": ("iu+categories+statistics+dot+fields", True),
    "asmg": ("asmg-gru-multi+categories+statistics+dot+fields", True),
    "asmg-linear": ("asmg-linear+categories", True),
}
"""What is learned: a method with all that a base model can have, and whether by machine code. The linear generator has
none."""

PERIODS, LEARNED, DIGEST, DIED = 3, 150, "digest", 7


def team_of(run: str, ranks: Ranks) -> Team[Any]:
    name, compiled = RUNS[run]
    case, shared = CASES[name], {} if "itself" in run else {"least_shared": 1}
    updater = build_updater(
        case.updater,
        case.config,
        execution=Execution(device="cpu", compiled=compiled, ranks=ranks, **shared),
        statistics=StatisticsConfig() if case.statistics else None,
    )
    return Team(unrounded(updater), ranks)  # or the last bit of a sum may decide how a number is rounded


def stored(team: Team[Any], state: Any, folder: Path) -> Any:
    """The state, written to files of which the ranks read all rows together."""
    files = {}
    for name, data in to_bytes(team.updater, state).items():
        # A name of its own, as the files of the last period are still mapped.
        files[name] = [folder / f"{hashlib.sha256(data).hexdigest()}.{name}.stored"]
        files[name][0].write_bytes(data)
    opened = {name: [Checkpoint.open(path) for path in paths] for name, paths in files.items()}
    found = excerpt_state(opened, everything=True, read=partial(team.excerpt, files)).parts
    return team.updater.load({name: part.checkpoint for name, part in found.items()})


def learn(team: Team[Any], run: str, folder: Path) -> dict[str, bytes]:
    """The state after some periods as checkpoints, with the logits of their rehearsals; each period begins from a
    stored state, as in the service.
    """
    case, updater, rehearsed = CASES[RUNS[run][0]], team.updater, {}
    state = updater.initial(torch_rng(17))
    for t in range(1, PERIODS + 1):
        data = updater.prepare(state, case.period(t, 201 if t > 1 else 300))
        older, newest = data.slice(0, LEARNED), data.slice(LEARNED, len(data))
        if older.numeric is not None:
            with pytest.raises(DivergedError):  # which ends no more than this call
                endless = replace(older, numeric=torch.full_like(older.numeric, 3e38))
                team.rehearse(state, endless, newest, rng=torch_rng(t))
        found = team.rehearse(state, older, newest, rng=torch_rng(t))
        rehearsed |= {f"{t}.{name}": logits for name, logits in found.items()}
        for stage in updater.stages:
            state = team.run_stage(stage, state, data, rng=torch_rng(t))
        state = stored(team, state, folder)
    return to_bytes(updater, state) | {"rehearsed": Checkpoint("logits", {}, rehearsed).to_bytes()}


def missing(path: Path) -> Checkpoint:
    raise FileNotFoundError(path)


def learn_all(ranks: Ranks, folder: Path) -> None:
    """What each process does: rank 0 learns, the others follow, and each writes down what it has in the end."""
    together.STRIPE = 2  # the tables are small
    if ranks.rank == 2:  # is on another host, which has no files
        Checkpoint.open = missing  # type: ignore[method-assign,assignment]
    told: list[bytes] = []
    tell = ranks.tell

    def noted(message: Sequence[bytes]) -> None:
        told.extend(message)
        tell(message)

    ranks.tell = noted  # type: ignore[method-assign]
    for run in RUNS:
        team = team_of(run, ranks)
        if ranks.rank:
            team.follow()
        else:
            for part, data in learn(team, run, folder).items():
                (folder / f"{run}.{part}").write_bytes(data)
            team.end()
            for path in folder.glob("*.base.stored"):  # which all ranks have read: it is never sent
                table = Checkpoint.open(path).tensors["user"].numpy().tobytes()
                assert not any(table in message for message in told)
        state = team.updater.for_training(team.state)
        own = hashlib.sha256(b"".join(to_bytes(team.updater, state).values())).hexdigest()
        (folder / f"{run}.{ranks.rank}.{DIGEST}").write_text(own)


@pytest.mark.slow
@pytest.mark.compiles
def test_several_processes_learn_what_one_learns(tmp_path: Path) -> None:
    folders = {size: tmp_path / str(size) for size in (2, 3)}
    for size, folder in folders.items():
        folder.mkdir()
        assert ended(start_ranks(size, learn_all, folder)) == [0] * size
    torch.set_num_threads(1)
    for run in RUNS:
        alone = learn(team_of(run, ALONE), run, tmp_path)
        for size, folder in folders.items():
            assert len({(folder / f"{run}.{rank}.{DIGEST}").read_text() for rank in range(size)}) == 1
            for part, data in alone.items():
                one, several = (Checkpoint.from_bytes(d) for d in (data, (folder / f"{run}.{part}").read_bytes()))
                torch.testing.assert_close(dict(several.tensors), dict(one.tensors), rtol=1e-4, atol=1e-5)


def die_or_notice(ranks: Ranks, folder: Path) -> None:
    """Rank 1 dies in the tenth step of the training; rank 0 cannot go on, and says so each time."""
    team, case = team_of("asmg", ranks), CASES[RUNS["asmg"][0]]
    if ranks.rank:
        add_up, steps = ranks.add_up, count(1)

        def dying(numbers: torch.Tensor) -> None:
            if next(steps) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            add_up(numbers)

        ranks.add_up = dying  # type: ignore[method-assign]
        team.follow()
    state, data = team.updater.initial(torch_rng()), case.period(1)
    for _ in range(2):
        with pytest.raises(RankLost):
            team.run_stage("update_base", state, data, rng=torch_rng())
    team.end()  # sends nothing: nobody is in step
    os._exit(DIED)


def test_a_rank_that_died_is_noticed(tmp_path: Path) -> None:
    assert ended(start_ranks(2, die_or_notice, tmp_path)) == [DIED, -signal.SIGKILL]
