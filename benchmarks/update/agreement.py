"""Checks that ours and the whole-table reference compute the same.

A ratio of two times means something only where both did the same work. So before anything is timed, both start from
the same models, weights, hidden state and optimizers, learn the same batches, and have to arrive at the same loss, the
same weights and the same generated tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asmg.batch import PeriodData
from asmg.metrics import logloss
from asmg.training import predict_logits
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks.update import whole_table
from benchmarks.update.translation import Reference, base_params, generator_weights, reference_batch, settled

STEPS = 2
"""Training steps made on both sides. From the second on Adam's momentum plays a part."""

LOSS_TOLERANCE = 1e-4
"""Most that two losses may differ, as a fraction."""

STEP_TOLERANCE = 1e-2
"""Most that two weights may differ after the steps, as a fraction of Adam's step size. Adam divides a gradient by its
own size, so rounding shows in steps and not in weights, and most where a gradient is next to nothing."""

TABLE_TOLERANCE = 1e-4
"""Most that two generated numbers may differ, as a fraction of the largest in their tensor."""


class Disagreement(ValueError):
    """Ours and the reference do not compute the same thing."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far apart ours and the reference were; all within the tolerances."""

    steps: int
    base_loss: float
    """Largest difference, as a fraction."""
    base_weights: float
    """Largest difference, in step sizes of Adam."""
    generator_loss: float
    generator_weights: float
    generated: float
    """Largest difference, as a fraction of the largest number of the tensor."""


def agreement(updater: Asmg, state: AsmgState, data: PeriodData) -> Agreement:
    """Learn the first batches of `data` on both sides and compare.

    Args:
        updater: in the paper's settings.
        state: with a full window.

    Raises:
        Disagreement: the results differ by more than rounding.
    """
    return Agreement(steps=STEPS, **_base(updater, state, data), **_generator(updater, state, data))


def _base(updater: Asmg, state: AsmgState, data: PeriodData) -> dict[str, float]:
    reference, base, largest = Reference.of(updater, state), state.base, 0.0
    for part in _parts(data, updater.base.config.batch(len(data))):
        session = updater.base.session(base, [part])
        (small,) = session.periods
        ours = session.epoch(small, batch_size=len(small), rng=torch.Generator())
        base = updater.base.committed(replace(base, pending=session.finish()))
        theirs = whole_table.base_step(
            reference.model, reference.model_adam, reference_batch(part, torch.arange(len(part)))
        )  # fmt: skip
        largest = max(largest, _loss("base update", ours, theirs))
    lr = updater.base.config.lr
    ours_now, _ = settled(base, lr)
    found = _weights_apart("base update", base_params(updater.model, ours_now), reference.model, lr)
    return {"base_loss": largest, "base_weights": found}


def _generator(updater: Asmg, state: AsmgState, data: PeriodData) -> dict[str, float]:
    reference, model, largest, tables = Reference.of(updater, state), updater.model, 0.0, 0.0
    targets = [_parts(period, updater.config.batch_size) for period in (*state.data, data)]
    for parts in zip(*targets, strict=True):
        losses = []
        for n, part in enumerate(parts, start=1):
            made, _ = updater.generator.generate(
                state.weights, state.models[:n], state.hidden, compiled=updater.execution.compiled
            )
            losses.append(logloss(predict_logits(model, made, part), part.label))
        ours = sum(w * loss for w, loss in zip(updater.loss_weights(len(parts)), losses, strict=True))
        with torch.no_grad():
            whole = whole_table.generated(reference.weights, reference.models, reference.hidden)[-1]
        tables = max(tables, _tables_apart(base_params(model, made), whole))
        state = updater.run_stage(
            "train_generator", replace(state, data=parts[:-1]), parts[-1], rng=torch.Generator()
        )  # fmt: skip
        batches = [reference_batch(part, torch.arange(len(part))) for part in parts]
        theirs = whole_table.generator_step(
            reference.weights, reference.weights_adam, reference.models, reference.hidden, batches
        )
        largest = max(largest, _loss("generator training", ours, theirs))
    found = _weights_apart(
        "generator training", generator_weights(updater, state.weights), reference.weights, updater.config.lr
    )  # fmt: skip
    return {"generator_loss": largest, "generator_weights": found, "generated": tables}


def _parts(data: PeriodData, batch_size: int) -> list[PeriodData]:
    """The first batches as periods of one batch each, so that shuffling does not matter."""
    size = min(batch_size, max(1, len(data) // STEPS))
    return [data.slice(n * size, min(len(data), (n + 1) * size)) for n in range(STEPS)]


def _loss(what: str, ours: float, theirs: float) -> float:
    apart = abs(ours - theirs) / abs(theirs)
    if not apart <= LOSS_TOLERANCE:
        raise Disagreement(f"{what}: ours and the whole-table reference disagree: loss {ours:.6f} and {theirs:.6f}")
    return apart


def _weights_apart(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], lr: float) -> float:
    apart = {name: float((ours[name] - p).abs().max()) / lr for name, p in theirs.items()}
    return _largest(what, apart, STEP_TOLERANCE, " of Adam's step")


def _tables_apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    apart = {n: float((ours[n] - p).abs().max() / p.abs().max().clamp(min=1e-12)) for n, p in theirs.items()}
    return _largest("generation", apart, TABLE_TOLERANCE)


def _largest(what: str, apart: Mapping[str, float], tolerance: float, unit: str = "") -> float:
    """The largest difference of some tensors; Disagreement where one is above the tolerance, or no number."""
    worst = max(apart, key=lambda name: apart[name])
    if not all(value <= tolerance for value in apart.values()):
        raise Disagreement(
            f"{what}: ours and the whole-table reference disagree: {worst} differs by {apart[worst]:.1e}{unit}"
        )
    return apart[worst]
