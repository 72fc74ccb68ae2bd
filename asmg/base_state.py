"""The state of a base model between periods, and how it is stored as parts of a checkpoint.

Every update method keeps a `BaseState`; its dump has the parts "base" (the model), "optimizer" and, between two stages
of an update, "pending".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from asmg.adam import AdamState
from asmg.checkpoint import Checkpoint, CheckpointError, dump_adam, load_adam, tensors_of
from asmg.models import BaseModel, EmbeddingMLP, Params
from asmg.training import RowUpdate

__all__ = ["BASE_PARTS", "BaseState", "adopt_base", "dump_base", "load_base", "only_lacks_fields"]

BASE_PARTS = frozenset({"base", "optimizer"})
"""Parts that the dump of every base state has."""


@dataclass(frozen=True)
class BaseState:
    """The base model after some number of periods."""

    params: Params
    """The model Θ_t."""
    adam: AdamState
    """Its optimizer."""
    periods: int
    """Number of periods learned."""
    pending: RowUpdate | None = None
    """What was learned since and is not yet in the tables; None between two updates."""
    passes: tuple[float, ...] = ()
    """For 1, 2, … passes over a period: the loss on the period's newest part, minus the loss after one pass, summed
    over the periods with `asmg.base_training.PASSES_DECAY`. Empty unless `TrainingConfig.most_epochs` is set."""


def dump_base(model: BaseModel, state: BaseState) -> dict[str, Checkpoint]:
    """The parts "base" and "optimizer", and "pending" if something is pending."""
    parts = {
        "base": Checkpoint("model", {"model": model.config.to_json()}, state.params),
        "optimizer": dump_adam(state.adam, periods=state.periods, **_passes_meta(state.passes)),
    }
    if state.pending is not None:
        update = state.pending
        tensors = {f"rows.{n}": t for n, t in update.rows.items()}
        tensors |= {f"param.{n}": t for n, t in update.params.items()}
        tensors |= dump_adam(update.adam).tensors
        meta = {"step": update.adam.step, "sizes": update.sizes, **_passes_meta(update.passes)}
        parts["pending"] = Checkpoint("row-update", meta, tensors)
    return parts


def load_base(model: BaseModel, parts: Mapping[str, Checkpoint]) -> BaseState:
    """The inverse of `dump_base`; other parts are ignored.

    Raises:
        CheckpointError: the parts belong to a model of another configuration.
        ValueError: a tensor has another shape, or a number is not finite.
    """
    base, config = parts["base"], model.config.to_json()
    if base.meta.get("model") != config:
        raise CheckpointError(f"model: expected {config}; received {base.meta.get('model')}")
    params, pending = dict(base.tensors), None
    model.check(params)
    if "pending" in parts:
        stored = parts["pending"]
        pending = RowUpdate(
            tensors_of(stored, "rows."),
            tensors_of(stored, "param."),
            load_adam(stored),
            dict(stored.meta["sizes"]),
            tuple(stored.meta.get("passes", ())),
        )
        model.check(pending.params)
        pending.adam.check(pending.params)
    optimizer = parts["optimizer"]
    adam = load_adam(optimizer)
    adam.check(params)
    return BaseState(params, adam, optimizer.meta["periods"], pending, tuple(optimizer.meta.get("passes", ())))


def only_lacks_fields(model: BaseModel, config: Any) -> bool:
    """Whether a stored configuration equals this model's except that it has no fields."""
    plain = model.without_fields() if isinstance(model, EmbeddingMLP) else None
    return plain is not None and plain.config.to_json() == config


def adopt_base(model: BaseModel, parts: Mapping[str, Checkpoint], rng: torch.Generator) -> BaseState:
    """As `load_base`, but a model that was stored without fields gets them; its predictions stay the same.

    Args:
        model: the model to go on with.
        parts: of a dump.
        rng: for the initial rows of the field table.

    Raises:
        CheckpointError: see `load_base`.
    """
    if not (isinstance(model, EmbeddingMLP) and only_lacks_fields(model, parts["base"].meta.get("model"))):
        return load_base(model, parts)
    plain = load_base(EmbeddingMLP(replace(model.config, fields=False)), parts)
    table = {"field": model.initial(rng)["field"]}
    adam, at_rest = plain.adam, AdamState.zeros(table)
    return replace(
        plain,
        params=model.widened(plain.params) | table,
        adam=AdamState(
            step=adam.step,
            first=model.widened(adam.first) | at_rest.first,
            second=model.widened(adam.second) | at_rest.second,
            moved=adam.moved | {name: torch.full_like(m, adam.step) for name, m in at_rest.moved.items()},
            restless=adam.restless | at_rest.restless,
        ),
    )


def _passes_meta(passes: tuple[float, ...]) -> dict[str, Any]:
    """The passes as meta data; no entry without any, so that such a state keeps the bytes of earlier releases."""
    return {"passes": list(passes)} if passes else {}
