"""What the gate costs beside the update itself, and how many periods of a public log it refuses.

    python -m benchmarks.gate FOLDER [--periods 31] [--methods asmg-gru-multi,iu]

Every period is scored, judged and learned as the worker does it, in this process and without storage.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from asmg.batch import PeriodData
from asmg.models import Params
from asmg.progressive import stage_rng
from asmg.training import evaluate, predict_logits
from benchmarks.learning.logs import folder_periods
from benchmarks.learning.updaters import default_updater, warm_up
from service.storage.postgres.repositories import ModelKind
from service.use_cases.update.gate import decide
from service.use_cases.update.trial import rehearsal_rows, try_out


def play(method: str, periods: Sequence[PeriodData]) -> None:
    """Learn all periods; print the seconds of an update without the gate, those of the gate, and its decisions."""
    updater = default_updater(method)
    warm_up(updater)
    state = updater.initial(stage_rng(0, 0, "initial"))
    gate: dict[str, Any] = {}
    served: Params | None = None
    learning, asking = [], []
    decisions: Counter[str] = Counter()
    for number, log in enumerate(periods, start=1):
        data = updater.prepare(state, log)
        progressive = {n: evaluate(updater.model, p, data) for n, p in updater.serving_models(state).items()}
        answers = None if served is None else predict_logits(updater.model, served, data)
        if served is not None:
            progressive["previous"] = evaluate(updater.model, served, data)

        started = time.perf_counter()
        first, cut = rehearsal_rows(len(data))
        older, newest = data.slice(first, cut), data.slice(cut, len(data))
        rehearsals = updater.rehearse(state, older, newest, rng=stage_rng(0, number, "rehearse"))
        trial = try_out(data.label, data.user, answers, rehearsals)
        asked = time.perf_counter()
        for stage in updater.stages:
            state = updater.run_stage(stage, state, data, rng=stage_rng(0, number, stage))
        learned = time.perf_counter()
        if number > 1:  # the first is learned in several passes
            asking.append(asked - started)
            learning.append(learned - asked)

        models = updater.serving_models(state)
        decision = decide(progressive, {n: evaluate(updater.model, p, data) for n, p in models.items()}, trial, gate)
        gate = decision.to_json()
        decisions[str(decision.kind)] += 1
        if decision.kind is ModelKind.PREVIOUS:
            print(f"  period {number}: {decision.reason}")
        else:
            served = models[decision.kind]
    update, questions = median(learning), median(asking)
    print(
        f"{method}: learning {update:.3f} s, the gate's questions {questions:.3f} s ({questions / update:.0%}); "
        f"{decisions['previous']} of {len(periods)} periods refused; {dict(decisions)}",
        flush=True,
    )


def main() -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--periods", type=int, default=31)
    parser.add_argument("--methods", default="asmg-gru-multi")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the worker has it
    name, periods = folder_periods(options.folder, options.periods, seed=0)
    print(f"{name}: {options.periods} periods of {len(periods[0]):,} rows")
    for method in options.methods.split(","):
        play(method, periods)


if __name__ == "__main__":
    main()
