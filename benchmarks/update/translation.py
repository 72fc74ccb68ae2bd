"""The state of `asmg/` in the form of the whole-table reference.

Ours has a cold row in row 0 of each table, which the paper's settings never read; the reference has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asmg.adam import Adam, AdamState
from asmg.base_state import BaseState
from asmg.batch import HISTORY_LENGTH, PeriodData
from asmg.generator import DENSE
from asmg.models import BaseModel, Params, read_rows
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks.update.whole_table import Batch, DenseAdam


@dataclass(frozen=True)
class Reference:
    """All that the reference trains and reads, translated from a state of ours, with which it shares no memory."""

    model: Params
    model_adam: DenseAdam
    """The base model and its optimizer."""
    weights: Params
    weights_adam: DenseAdam
    """ω and its optimizer."""
    models: Sequence[Params]
    """The models of the window, oldest first."""
    hidden: Params
    """The hidden state before the first of them."""

    @classmethod
    def of(cls, updater: Asmg, state: AsmgState) -> "Reference":
        """From a state with a full window."""
        model, lr = updater.model, updater.base.config.lr
        params, adam = settled(state.base, lr)
        weights = generator_weights(updater, state.weights)
        window = [base_params(model, params) for params in state.models]
        hidden: Params = {}
        for group, start in state.hidden.items():
            if group == DENSE:
                hidden |= {n: h.clone() for n, h in _by_tensor(model, start.transpose(0, 1)).items()}
            else:
                rows = torch.arange(1, len(state.models[-1][group]))
                hidden[group] = read_rows(start, rows).transpose(0, 1).contiguous()
        return cls(
            model=base_params(model, params),
            model_adam=_dense(lr, adam.step, base_params(model, adam.first), base_params(model, adam.second)),
            weights=weights,
            weights_adam=_dense(
                updater.config.lr,
                state.adam.step,
                generator_weights(updater, state.adam.first),
                generator_weights(updater, state.adam.second),
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
    """The interactions at `index`, with padded histories."""
    batch = data.batch(index)
    length = batch.offsets.diff()
    history = torch.zeros(len(index), HISTORY_LENGTH, dtype=torch.int64)
    history[torch.arange(HISTORY_LENGTH) < length[:, None]] = batch.history - 1
    return Batch(batch.user - 1, batch.item - 1, history, length, batch.label)


def _dense(lr: float, steps: int, first: Params, second: Params) -> DenseAdam:
    optimizer = DenseAdam({}, lr)
    optimizer.t, optimizer.m, optimizer.v = steps, first, second
    return optimizer


def base_params(model: BaseModel, params: Mapping[str, Tensor]) -> Params:
    """The parameters of a base model: tables without the cold row, kernels as input × output."""
    translated = {name: params[name][1:].clone() for name in model.tables}
    for i in range(len(model.dense_shapes) // 2):
        translated[f"kernel{i}"] = params[f"mlp.{i}.weight"].t().clone()
        translated[f"bias{i}"] = params[f"mlp.{i}.bias"].clone()
    return translated


def generator_weights(updater: Asmg, weights: Mapping[str, Tensor]) -> Params:
    """The weights of a generator, gate by gate and tensor by tensor."""
    translated: Params = {}
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
