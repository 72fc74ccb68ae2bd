"""The contract of every update method: previous state + a period's data → new state + serving model.

An update is a sequence of named stages, each a pure function of (state, data, rng), so that a caller can store the
state between stages and go on after a crash with the same result to the bit. All stages of a method but its last cost
what the period's traffic costs; the last one writes whole tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from asmg.base_training import BaseState, BaseTraining
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import BaseModel, Params
from asmg.statistics import Statistics
from asmg.training import Progress

__all__ = ["StateT", "Updater"]

StateT = TypeVar("StateT")


class Updater(ABC, Generic[StateT]):
    """An update method. Instances hold configuration only; all that changes is in the state."""

    name: str
    """How settings and reports call it."""
    stages: ClassVar[tuple[str, ...]]
    """The stages of one update, in order."""
    model: BaseModel
    """The base model that is kept up to date."""
    base: BaseTraining
    """Its training."""

    @abstractmethod
    def initial(self, rng: torch.Generator) -> StateT:
        """The state before the first period."""

    @abstractmethod
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> StateT:
        """The state that goes on from a base model which was trained elsewhere.

        Args:
            base: a state of `self.base`, nothing pending, at least one period learned.
            periods: what it has learned last, oldest first, for methods that look back; may be empty.
            rng: for what the method has beside the base model.
        """

    def pretrained(self, periods: Sequence[PeriodData], validation: PeriodData, *, rng: torch.Generator) -> StateT:
        """The state after pretraining: several passes over all `periods` together.

        Args:
            periods: oldest first.
            validation: the period after them, which says after how many passes the model was best. Nothing is trained
                on it.
            rng: of the training, and of what the method has beside the base model.
        """
        return self.started(self.base.pretrained(periods, validation, rng), periods, rng=rng)

    def adopted(self, parts: Mapping[str, Checkpoint], *, rng: torch.Generator) -> StateT:
        """The state that goes on from the base model in a dump that `load` does not take, made after a whole update:
        another method's, or one from before the base model had fields, which it gets. All else of a method begins anew.

        Raises:
            CheckpointError: the other's base model is of another kind or shape, or its update was not finished.
        """
        self.check_parts({name: part for name, part in parts.items() if name == "pending"}, set())
        if missing := {"base", "optimizer"} - set(parts):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(parts)}")
        base = self.base.adopted(parts, rng)
        return self.started(base, (), rng=rng) if base.periods else self.initial(rng)

    @abstractmethod
    def run_stage(
        self, stage: str, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """One stage of learning `data`; `state` is left as it was.

        Raises:
            ValueError: for a stage that is not in `stages`.
            DivergedError: when training met a loss that is not finite.
        """

    def update(
        self, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """Learn one period: all stages in order. `progress` is told the fraction of all stages done."""
        for i, stage in enumerate(self.stages):

            def part(fraction: float, i: int = i) -> None:
                if progress:
                    progress((i + fraction) / len(self.stages))

            state = self.run_stage(stage, state, data, rng=rng, progress=part)
        return state

    def prepare(self, state: StateT, data: PeriodData) -> PeriodData:
        """The data as the models of this state read it; to be called before any of them is asked about it.

        A method whose models read statistics adds those that were known before the period.
        """
        return data

    def statistics_of(self, state: StateT) -> Statistics | None:
        """The statistics that the models of this state are served with; None where they read none."""
        return None

    def base_of(self, state: StateT) -> BaseState:
        """The base model within the state."""
        return state if isinstance(state, BaseState) else state.base  # type: ignore[attr-defined]  # every other has one

    def rehearse(
        self,
        state: StateT,
        data: PeriodData,
        held_out: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Ask models that learned only a part of a period about the other part, before the update learns all of it.

        By default the base model learns `data` in one incremental pass, whatever else the method does with a period.

        Args:
            state: the one before the update; left as it was.
            data: the part that is learned.
            held_out: the part that is not, with the same table sizes.
            rng: of this training.
            progress: told the fraction done.

        Returns:
            name of a serving model → its logits float32 on `held_out`, in its order.

        Raises:
            DivergedError: when training met a loss that is not finite.
        """
        found = self.base.rehearsed(self.base_of(state), data, held_out, rng, progress)
        return {"incremental": self.base.predicted(found.params, found.held_out)}

    @abstractmethod
    def forgotten(self, state: StateT, rows: Mapping[str, Tensor]) -> StateT:
        """The state as if nobody had ever had these rows, so that new ids can have them.

        In every table each is the cold row at rest, as a new row is, and past logs that are kept for later say the cold
        row instead: what happened is learned again as what happened to strangers.

        Args:
            state: one between two updates; left as it was, and shared where no row is concerned.
            rows: "user", "item" and perhaps "category" → int64 [n], rows ≥ 1. A row past a table's end is new anyway.

        Raises:
            ValueError: an update is under way, or the cold row is among the rows.
        """

    @abstractmethod
    def serving_models(self, state: StateT) -> dict[str, Params]:
        """The models that this state offers for serving, best first by the method's own lights.

        Keys are "generated" (where the method generates) and "incremental". Empty before the first period.
        """

    @abstractmethod
    def dump(self, state: StateT) -> dict[str, Checkpoint]:
        """The state in named parts; a part that a period did not change has the same bytes as before."""

    @abstractmethod
    def load(self, parts: Mapping[str, Checkpoint]) -> StateT:
        """The inverse of `dump`.

        Raises:
            CheckpointError: when the parts belong to another method or configuration.
        """

    def loads(self, meta: Mapping[str, Any]) -> bool:
        """Whether a dump whose part "updater" has this header is one for `load`; else it is one for `adopted`."""
        return meta.get("updater") == self.name and not self.base.only_lacks_fields(meta.get("model"))

    def check_continuable(self, meta: Mapping[str, Any], names: Collection[str]) -> None:
        """See, by its header alone, whether this method could go on from a dump: by `load`, or by `adopted`.

        Args:
            meta: of the dump's part "updater".
            names: of all of its parts.

        Raises:
            CheckpointError: it could not. What only the tensors tell, `load` and `adopted` find out.
        """
        if self.loads(meta):
            self._check_meta(meta)
            return
        expected = self.model.config.to_json()
        if meta.get("model") != expected and not self.base.only_lacks_fields(meta.get("model")):
            raise CheckpointError(f"model: expected {expected}; received {meta.get('model')}")
        if missing := {"base", "optimizer"} - set(names):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(names)}")

    def signature(self) -> dict[str, Any]:
        """What a state has to have been made with to be continued by this method; plain JSON values."""
        return {"updater": self.name, "model": self.model.config.to_json()}

    def header(self, **meta: Any) -> Checkpoint:
        """The part "updater" of a dump: whose state it is, and any further meta data."""
        return Checkpoint("updater", {**self.signature(), **meta}, {})

    def check_header(self, parts: Mapping[str, Checkpoint]) -> Mapping[str, Any]:
        """The meta data of the part "updater"; CheckpointError where the state is that of another."""
        if "updater" not in parts:
            raise CheckpointError(f"{self.name}: expected a part updater; received {sorted(parts)}")
        meta = parts["updater"].meta
        self._check_meta(meta)
        return meta

    def _check_meta(self, meta: Mapping[str, Any]) -> None:
        expected = self.signature()
        received = {name: meta.get(name) for name in expected}
        if received != expected:
            raise CheckpointError(f"updater: expected a state of {expected}; received one of {received}")

    def check_parts(self, parts: Mapping[str, Checkpoint], expected: set[str]) -> None:
        """Raise CheckpointError unless these parts are there and no others."""
        if missing := expected - set(parts):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(parts)}")
        if unknown := set(parts) - expected:
            raise CheckpointError(f"{self.name}: expected no parts {sorted(unknown)}; received {sorted(parts)}")
