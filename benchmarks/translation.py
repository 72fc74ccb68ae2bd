"""The state of `asmg/` in the words of the whole-table reference, and the check that both compute the same.

A ratio of two times means something only where both did the same work. So before anything is timed, ours and the
reference start from the same models, weights, hidden state and optimizers, learn the same batches, and have to arrive
at the same loss, the same weights and the same generated tables.

Ours keeps a cold row in row 0 of each table, which the paper's settings never read; the reference has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asmg.adam import Adam, AdamState
from asmg.base_state import BaseState
from asmg.batch import HISTORY_LENGTH, PeriodData
from asmg.generator import DENSE
from asmg.metrics import logloss
from asmg.models import BaseModel, Params, read_rows
from asmg.training import predict_logits
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks import whole_table
from benchmarks.whole_table import Batch, DenseAdam

__all__ = ["Agreement", "Disagreement", "Reference", "agreement", "reference_batch"]

STEPS = 2
"""Training steps made on both sides. After the first one, momentum has its say."""

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
    """How far apart ours and the reference were, all under the tolerances."""

    steps: int
    base_loss: float
    """Largest difference, as a fraction."""
    base_weights: float
    """Largest difference, in step sizes of Adam."""
    generator_loss: float
    generator_weights: float
    generated: float
    """Largest difference, as a fraction of the largest number of the tensor."""


@dataclass(frozen=True)
class Reference:
    """All that the reference trains and reads, translated from a state of ours. It shares no memory with it."""

    model: Params
    model_adam: DenseAdam
    """The base model and its optimizer."""
    weights: Params
    weights_adam: DenseAdam
    """ω and its optimizer."""
    models: Sequence[Params]
    """The window, oldest first."""
    hidden: Params
    """The state before it."""

    @classmethod
    def of(cls, updater: Asmg, state: AsmgState) -> "Reference":
        """From a state with a full window."""
        model, lr = updater.model, updater.base.config.lr
        params, adam = settled(state.base, lr)
        weights = _weights(updater, state.weights)
        window = [_model(model, params) for params in state.models]
        hidden: Params = {}
        for group, start in state.hidden.items():
            if group == DENSE:
                hidden |= {n: h.clone() for n, h in _by_tensor(model, start.transpose(0, 1)).items()}
            else:
                rows = torch.arange(1, len(state.models[-1][group]))
                hidden[group] = read_rows(start, rows).transpose(0, 1).contiguous()
        return cls(
            model=_model(model, params),
            model_adam=_dense(lr, adam.step, _model(model, adam.first), _model(model, adam.second)),
            weights=weights,
            weights_adam=_dense(
                updater.config.lr,
                state.adam.step,
                _weights(updater, state.adam.first),
                _weights(updater, state.adam.second),
            ),
            models=window,
            hidden=hidden,
        )


def settled(state: BaseState, lr: float) -> tuple[Params, AdamState]:
    """The whole tables and moments that dense Adam would hold now, copied."""
    params = {name: p.clone() for name, p in state.params.items()}
    optimizer = Adam(params, state.adam.clone(), lr=lr)
    optimizer.settle()
    return params, optimizer.state


def reference_batch(data: PeriodData, index: Tensor) -> Batch:
    """Some interactions with padded histories."""
    batch = data.batch(index)
    length = batch.offsets.diff()
    history = torch.zeros(len(index), HISTORY_LENGTH, dtype=torch.int64)
    history[torch.arange(HISTORY_LENGTH) < length[:, None]] = batch.history - 1
    return Batch(batch.user - 1, batch.item - 1, history, length, batch.label)


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
    found = _weights_apart("base update", _model(updater.model, ours_now), reference.model, lr)
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
        tables = max(tables, _tables_apart(_model(model, made), whole))
        state = updater.run_stage(
            "train_generator", replace(state, data=parts[:-1]), parts[-1], rng=torch.Generator()
        )  # fmt: skip
        batches = [reference_batch(part, torch.arange(len(part))) for part in parts]
        theirs = whole_table.generator_step(
            reference.weights, reference.weights_adam, reference.models, reference.hidden, batches
        )
        largest = max(largest, _loss("generator training", ours, theirs))
    found = _weights_apart(
        "generator training", _weights(updater, state.weights), reference.weights, updater.config.lr
    )  # fmt: skip
    return {"generator_loss": largest, "generator_weights": found, "generated": tables}


def _parts(data: PeriodData, batch_size: int) -> list[PeriodData]:
    """The first batches, as periods of a single batch each: then no shuffling matters."""
    size = min(batch_size, max(1, len(data) // STEPS))
    return [data.slice(n * size, min(len(data), (n + 1) * size)) for n in range(STEPS)]


def _loss(what: str, ours: float, theirs: float) -> float:
    apart = abs(ours - theirs) / abs(theirs)
    if not apart <= LOSS_TOLERANCE:
        raise Disagreement(f"{what}: ours and the whole-table reference disagree: loss {ours:.6f} and {theirs:.6f}")
    return apart


def _weights_apart(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], lr: float) -> float:
    apart = {name: float((ours[name] - p).abs().max()) / lr for name, p in theirs.items()}
    worst = max(apart, key=lambda name: apart[name])
    if not all(value <= STEP_TOLERANCE for value in apart.values()):
        raise Disagreement(
            f"{what}: ours and the whole-table reference disagree: {worst} differs by {apart[worst]:.1e} of Adam's step"
        )
    return apart[worst]


def _tables_apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    apart = {n: float((ours[n] - p).abs().max() / p.abs().max().clamp(min=1e-12)) for n, p in theirs.items()}
    worst = max(apart, key=lambda name: apart[name])
    if not all(value <= TABLE_TOLERANCE for value in apart.values()):
        raise Disagreement(
            f"generation: ours and the whole-table reference disagree: {worst} differs by {apart[worst]:.1e}"
        )
    return apart[worst]


def _dense(lr: float, steps: int, first: Params, second: Params) -> DenseAdam:
    optimizer = DenseAdam({}, lr)
    optimizer.t, optimizer.m, optimizer.v = steps, first, second
    return optimizer


def _model(model: BaseModel, params: Mapping[str, Tensor]) -> Params:
    """Tables without the cold row; of the MLP's layers, input × output."""
    translated = {name: params[name][1:].clone() for name in model.tables}
    for i in range(len(model.dense_shapes) // 2):
        translated[f"kernel{i}"] = params[f"mlp.{i}.weight"].t().clone()
        translated[f"bias{i}"] = params[f"mlp.{i}.bias"].clone()
    return translated


def _weights(updater: Asmg, weights: Mapping[str, Tensor]) -> Params:
    """Generator weights, gate by gate and tensor by tensor."""
    translated: dict[str, Any] = {}
    for group in updater.generator.groups:
        uz, ur, ug = weights[f"{group}.input"].chunk(3, 2)
        wz, wr = weights[f"{group}.gates"].chunk(2, 2)
        parts = {"uz": uz, "ur": ur, "ug": ug, "wz": wz, "wr": wr, "wg": weights[f"{group}.candidate"]}
        parts |= {"wy": weights[f"{group}.output"], "by": weights[f"{group}.bias"]}
        for part, w in parts.items():
            if group == DENSE:
                translated |= {f"{n}.{part}": v.clone() for n, v in _by_tensor(updater.model, w).items()}
            else:
                translated[f"{group}.{part}"] = w.clone()
    return translated


def _by_tensor(model: BaseModel, positions: Tensor) -> Params:
    """[P, …] over all scalars of the MLP → for each of its tensors, in the order that the reference has."""
    numbers = torch.arange(len(positions)).split([torch.Size(s).numel() for s in model.dense_shapes.values()])
    flat = {n: i.reshape(s) for (n, s), i in zip(model.dense_shapes.items(), numbers, strict=True)}
    found = {}
    for i in range(len(model.dense_shapes) // 2):
        found[f"kernel{i}"] = positions[flat[f"mlp.{i}.weight"].t().reshape(-1)]
        found[f"bias{i}"] = positions[flat[f"mlp.{i}.bias"]]
    return found
