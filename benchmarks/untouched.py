"""What it costs in accuracy that a period changes only the rows that it reads, or that it rounds an optimizer.

    python -m benchmarks.untouched --data DATA --seeds 3
    python -m benchmarks.untouched --stream small --seeds 3
    python -m benchmarks.untouched --data DATA --seeds 3 --rounding

DATA is a folder of `asmg experiment prepare`, learned by the protocol of `asmg experiment run`; a stream is one of
`benchmarks.streams`. Each line is one choice of `AsmgConfig.untouched` and `TrainingConfig.restless`: the share of the
table rows that an update trains, and AUC and LogLoss over the test periods of what is served, of the generated model in
full (α = 1) and of the incremental one. The first line is exact: dense Adam, and all rows generated. The others are
differences from it, ± their standard deviation over the seeds. With --rounding the choices are bits of mantissa, of
the generator's moments (`AsmgConfig.moment_bits`), of the hidden states (`hidden_bits`), and of the base model's
moments (`TrainingConfig.moment_bits`), with the other settings as they are served; the first line is exact there too.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from asmg.base_state import BaseState
from asmg.batch import PeriodData
from asmg.datasets.prepared import read_prepared
from asmg.experiments.periods import Periods, with_statistics
from asmg.experiments.protocol import Protocol
from asmg.models import EmbeddingMLPConfig, default_config, table_sizes
from asmg.progressive import stage_rng
from asmg.statistics import NAMES
from asmg.training import evaluate
from asmg.updaters import build_updater
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks import streams


class Choice(NamedTuple):
    """One choice of what happens to rows that a period does not read."""

    untouched: Literal["generate", "keep", "plain"]
    """See `asmg.updaters.asmg_config.AsmgConfig`."""
    restless: bool
    """See `asmg.training.TrainingConfig`."""
    moment_bits: int | None = None
    """Of the generator, see `asmg.updaters.asmg_config.AsmgConfig`."""
    hidden_bits: int | None = None
    """See `asmg.updaters.asmg_config.AsmgConfig`."""
    base_bits: int | None = None
    """`moment_bits` of `asmg.training.TrainingConfig`."""

    @property
    def base(self) -> tuple[bool, int | None]:
        """What the incremental model depends on."""
        return self.restless, self.base_bits

    @property
    def bits(self) -> str:
        """The bits of the three, or "all"."""
        chosen = (self.moment_bits, self.hidden_bits, self.base_bits)
        return "all" if chosen == (None, None, None) else " ".join(str(bits or "all") for bits in chosen)


CHOICES = (
    Choice("generate", True),
    Choice("keep", True),
    Choice("plain", True),
    Choice("generate", False),
    Choice("keep", False),
    Choice("plain", False),
)
"""The exact choice first."""

ROUNDINGS = tuple(Choice("plain", False, *bits) for bits in ((None, None, None), (7, 12, 7), (5, 12, 7)))
"""The settings that are served, exact and rounded."""

NUMBERS = ("served AUC", "LogLoss", "α = 1 AUC", "LogLoss", "incremental AUC", "LogLoss")


class Learning(NamedTuple):
    """Periods to learn, and how."""

    data: Sequence[PeriodData]
    """D_1 …, oldest first."""
    model: EmbeddingMLPConfig
    """The base model."""
    pretrain: int
    """Number of periods for pretraining; 0 to begin with the first period."""
    test_from: int
    """Number of the first period whose scores count."""


def of_stream(name: str, seed: int) -> Learning:
    """A synthetic stream, without pretraining; its later half counts."""
    data = with_statistics(Periods([*streams.periods(streams.STREAMS[name], seed)], [], [])).data
    return Learning(data, default_config(categories=False, numeric=len(NAMES)), 0, streams.PERIODS // 2 + 1)


def measure(learning: Learning, method: str, seed: int, choices: Sequence[Choice] = CHOICES) -> np.ndarray:
    """The share of rows and `NUMBERS` for each of the choices, [choices, 7]. All choices learn side by side."""
    built, data, begin = build_updater(method, learning.model), learning.data, learning.pretrain
    if not isinstance(built, Asmg):
        raise ValueError(f"method: expected one that generates a model; received {method}")
    updaters = [
        Asmg(
            learning.model,
            replace(
                built.config,
                untouched=choice.untouched,
                moment_bits=choice.moment_bits,
                hidden_bits=choice.hidden_bits,
            ),
            replace(built.base.config, restless=choice.restless, moment_bits=choice.base_bits),
            name=method,
        )
        for choice in choices
    ]
    exact = updaters[0]
    if begin:
        base = exact.base.pretrained(data[:begin], data[begin], stage_rng(seed, 0, "pretrain"))
        state = exact.started(base, data[:begin], rng=stage_rng(seed, 0, "start"))
    else:
        state = exact.initial(stage_rng(seed, 0, "initial"))
    states, scores, shares = [state] * len(choices), [], []
    for number, period in enumerate(data[begin:], start=begin + 1):
        if tested := number >= learning.test_from:
            scores.append([_scores(*pair, period) for pair in zip(updaters, states, strict=True)])
        bases: dict[
            tuple[bool, int | None], BaseState
        ] = {}  # the incremental models are the same whatever is generated
        for i, (choice, updater) in enumerate(zip(choices, updaters, strict=True)):
            state = states[i]
            for stage in updater.stages:
                rng = stage_rng(seed, number, stage)
                if stage == "update_base" and choice.base in bases:
                    state = replace(state, base=bases[choice.base])
                else:
                    state = updater.run_stage(stage, state, period, rng=rng)
                if stage == "update_base":
                    bases[choice.base] = state.base
            states[i] = state
        if tested:
            shares.append([_share(bases[choice.base], states[0].base) for choice in choices])
    return np.concatenate([np.mean(shares, 0)[:, None], np.mean(scores, 0)], 1)


def _scores(updater: Asmg, state: AsmgState, period: PeriodData) -> list[float]:
    models = (updater.serving_models(state)["generated"], updater.blended(state, 1.0), state.base.params)
    found = [evaluate(updater.model, params, period, updater.execution) for params in models]
    return [number for score in found for number in (np.nan if score.auc is None else score.auc, score.logloss)]


def _share(trained: BaseState, after: BaseState) -> float:
    assert trained.pending is not None
    return sum(map(len, trained.pending.rows.values())) / sum(table_sizes(after.params).values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a folder of `asmg experiment prepare`")
    source.add_argument("--stream", choices=[*streams.STREAMS])
    parser.add_argument("--method", default="asmg-gru-multi")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fields", action="store_true", help="with the fields of the log")
    parser.add_argument("--categories", action="store_true", help="items have their categories")
    parser.add_argument("--rounding", action="store_true", help="compare rounded states with exact ones")
    parser.add_argument("--upto", type=int, help="last period of the log, of which the last 7 count (default: all 31)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.data:
        protocol = Protocol(fields=options.fields, categories=options.categories)
        periods = protocol.cut(read_prepared(options.data)).data
        last = options.upto or protocol.periods
        first = protocol.test_from + 1 - (protocol.periods - last)
        log = Learning(periods[:last], protocol.model, protocol.pretrain, first)
    choices = ROUNDINGS if options.rounding else CHOICES
    of_seeds = np.stack(
        [
            measure(log if options.data else of_stream(options.stream, seed), options.method, seed, choices)
            for seed in seeds
        ]
    )
    print(f"| untouched | restless | bits | rows | {' | '.join(NUMBERS)} |")
    print(f"| --- | --- | --- |{' --: |' * (1 + len(NUMBERS))}")
    for i, choice in enumerate(choices):
        found = of_seeds[:, i, 1:] - (of_seeds[:, 0, 1:] if i else 0)
        cells = [
            f"{mean:+.4f} ± {std:.4f}" if i else f"{mean:.4f}"
            for mean, std in zip(found.mean(0), found.std(0), strict=True)
        ]
        text = " | ".join(cells).replace("-", "−")
        rows = f"{of_seeds[:, i, 0].mean():.0%}"
        choices_shown = f"{choice.untouched} | {'yes' if choice.restless else 'no'} | {choice.bits}"
        print(f"| {choices_shown} | {rows} | {text} |")


if __name__ == "__main__":
    main()
