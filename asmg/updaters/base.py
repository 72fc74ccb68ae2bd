"""The interface of every update method: previous state + a period's data → new state + serving models.

An update is a sequence of named stages, each a pure function of (state, data, rng). A caller can store the state
between stages and continue after a crash with bit-identical results. The cost of all stages except the last grows with
the period's traffic; the last one writes whole tables. Called by the service's worker, by `asmg.progressive` and by
`asmg.experiments`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from asmg.base_state import BASE_PARTS, BaseState, adopt_base
from asmg.base_training import BaseTraining
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import BaseModel, Params
from asmg.statistics import Statistics
from asmg.training import Progress

__all__ = ["ServedParts", "StateT", "Updater"]

StateT = TypeVar("StateT")


class ServedParts(NamedTuple):
    """Which parts of a dump a serving model is made of: part + fraction·(toward - part)."""

    part: str = "base"
    """Name of a part."""
    toward: str | None = None
    """Name of another part; None for the first alone."""
    fraction: float = 1.0
    lasting: bool = False
    """Whether a row that an update does not touch keeps what `toward` had of it; otherwise it is that of `part`."""


class Updater(ABC, Generic[StateT]):
    """An update method. Instances hold only configuration; everything that changes is in the state."""

    name: str
    """Its name in settings, dumps and reports."""
    stages: ClassVar[tuple[str, ...]]
    """The stages of one update, in order."""
    alone: tuple[str, ...] = ()
    """Those of the stages that one of several ranks does by itself: no training reads what they make of the state."""
    model: BaseModel
    """The base model."""
    base: BaseTraining
    """Training of the base model."""

    @abstractmethod
    def initial(self, rng: torch.Generator) -> StateT:
        """The state before the first period."""

    @abstractmethod
    def started(self, base: BaseState, periods: Sequence[PeriodData], *, rng: torch.Generator) -> StateT:
        """The state that continues from a base model which was trained elsewhere.

        Args:
            base: a state of `self.base` with nothing pending and at least one period learned.
            periods: the periods that it learned last, oldest first, for methods that look back; may be empty.
            rng: for the initial weights of other parts of the method.
        """

    def pretrained(self, periods: Sequence[PeriodData], validation: PeriodData, *, rng: torch.Generator) -> StateT:
        """The state after pretraining: several passes over all `periods` together.

        Args:
            periods: oldest first.
            validation: the period after them; its AUC decides the number of passes. Nothing is trained on it.
            rng: for the training, and for the initial weights of other parts of the method.
        """
        return self.started(self.base.pretrained(periods, validation, rng), periods, rng=rng)

    def adopted(self, parts: Mapping[str, Checkpoint], *, rng: torch.Generator) -> StateT:
        """The state that continues from the base model in a dump that `load` refuses.

        The dump is another method's, or was made before the base model had fields, which are then added. All other
        parts of the method start afresh.

        Args:
            parts: of a dump made between two updates.
            rng: for the initial weights of the other parts.

        Raises:
            CheckpointError: the base model has another kind or shape, or an update was under way.
        """
        self.check_parts({name: part for name, part in parts.items() if name == "pending"}, set())
        if missing := BASE_PARTS - set(parts):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(parts)}")
        base = adopt_base(self.model, parts, rng)
        return self.started(base, (), rng=rng) if base.periods else self.initial(rng)

    @abstractmethod
    def run_stage(
        self, stage: str, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """Run one stage of learning `data`.

        Args:
            stage: one of `stages`.
            state: the state after the stage before; left unchanged.
            data: the period, as `prepare` returns it.
            rng: for everything random in this stage.
            progress: called with the fraction of the stage done.

        Returns:
            the state after the stage.

        Raises:
            ValueError: the stage is not in `stages`.
            DivergedError: a loss or a parameter is NaN or infinite.
        """

    def update(
        self, state: StateT, data: PeriodData, *, rng: torch.Generator, progress: Progress | None = None
    ) -> StateT:
        """Learn one period: run all stages in order. `progress` is called with the fraction of all stages done."""
        for i, stage in enumerate(self.stages):

            def part(fraction: float, i: int = i) -> None:
                if progress:
                    progress((i + fraction) / len(self.stages))

            state = self.run_stage(stage, state, data, rng=rng, progress=part)
        return state

    def prepare(self, state: StateT, data: PeriodData) -> PeriodData:
        """The data with the inputs that this state's models read; call it before scoring or learning.

        A method whose models read statistics adds those that were known before the period.
        """
        return data

    def statistics_of(self, state: StateT) -> Statistics | None:
        """The statistics with which the models of this state are served; None if they read none."""
        return None

    def base_of(self, state: StateT) -> BaseState:
        """The base model within the state."""
        return state if isinstance(state, BaseState) else state.base  # type: ignore[attr-defined]  # all other states have one

    def rehearse(
        self,
        state: StateT,
        data: PeriodData,
        held_out: PeriodData,
        *,
        rng: torch.Generator,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Learn one part of a period and score the other part, to judge the models before the update learns all of it.

        By default the base model alone learns `data`, by one incremental update.

        Args:
            state: the state before the update; left unchanged.
            data: the part that is learned.
            held_out: the part that is scored, with the same table sizes.
            rng: for this training.
            progress: called with the fraction done.

        Returns:
            name of a serving model → its logits float32 on `held_out`, in its order.

        Raises:
            DivergedError: a loss or a parameter is NaN or infinite.
        """
        found = self.base.rehearsed(self.base_of(state), data, held_out, rng, progress)
        return {"incremental": self.base.predicted(found.params, found.held_out)}

    @abstractmethod
    def forgotten(self, state: StateT, rows: Mapping[str, Tensor]) -> StateT:
        """The state without these table rows, so that new ids can take them.

        In every table such a row becomes a copy of the cold row, without momentum, as a new row is. Logs that the state
        keeps for later periods read the cold row instead.

        Args:
            state: between two updates; left unchanged. Unchanged tensors are shared.
            rows: table name → int64 [n], rows ≥ 1; rows past a table's end are ignored.

        Raises:
            ValueError: an update is under way, or the cold row is among the rows.
        """

    def serving_models(self, state: StateT) -> dict[str, Params]:
        """The models that this state offers for serving, the one that the method prefers first.

        Keys are "generated" (for methods that generate a model) and "incremental" (the base model). Empty before the
        first period.
        """
        base = self.base_of(state)
        return {"incremental": base.params} if base.periods else {}

    def served_parts(self, state: StateT) -> dict[str, ServedParts]:
        """The parts of `dump` that each of the `serving_models` is made of."""
        return {name: ServedParts() for name in self.serving_models(state)}

    @property
    def rewrites_tables(self) -> bool:
        """Whether an update changes all rows of the tables, and not only those that its logs touch."""
        return False

    def for_training(self, state: StateT) -> StateT:
        """The state without what no stage reads but those in `alone`."""
        return state

    @abstractmethod
    def dump(self, state: StateT) -> dict[str, Checkpoint]:
        """The state as named checkpoints. A part that a period did not change has the same bytes as before."""

    @abstractmethod
    def load(self, parts: Mapping[str, Checkpoint]) -> StateT:
        """The inverse of `dump`.

        Raises:
            CheckpointError: the parts belong to another method or configuration.
        """

    def loads(self, meta: Mapping[str, Any]) -> bool:
        """Whether a dump whose part "updater" has this meta data is for `load`; otherwise it is for `adopted`."""
        return meta.get("updater") == self.name and not self.base.only_lacks_fields(meta.get("model"))

    def check_continuable(self, meta: Mapping[str, Any], names: Collection[str]) -> None:
        """Check, by its header alone, whether this method can continue from a dump by `load` or by `adopted`.

        Args:
            meta: meta data of the dump's part "updater".
            names: names of all of its parts.

        Raises:
            CheckpointError: it cannot. Faults of the tensors are found by `load` and `adopted`.
        """
        if self.loads(meta):
            self._check_meta(meta)
            return
        expected = self.model.config.to_json()
        if meta.get("model") != expected and not self.base.only_lacks_fields(meta.get("model")):
            raise CheckpointError(f"model: expected {expected}; received {meta.get('model')}")
        if missing := BASE_PARTS - set(names):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(names)}")

    def signature(self) -> dict[str, Any]:
        """The settings that a stored state must share with this method to be continued; plain JSON values."""
        return {"updater": self.name, "model": self.model.config.to_json()}

    def header(self, **meta: Any) -> Checkpoint:
        """The part "updater" of a dump: the signature and further meta data."""
        return Checkpoint("updater", {**self.signature(), **meta}, {})

    def check_header(self, parts: Mapping[str, Checkpoint]) -> Mapping[str, Any]:
        """The meta data of the part "updater".

        Raises:
            CheckpointError: the part is missing, or its signature is another method's.
        """
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

    def check_parts(
        self, parts: Mapping[str, Checkpoint], expected: Collection[str], optional: Collection[str] = ()
    ) -> None:
        """Check the names of a dump's parts.

        Args:
            parts: name → part.
            expected: names that must be there.
            optional: names that may be there.

        Raises:
            CheckpointError: an expected part is missing, or there is another one.
        """
        expected = set(expected)
        if missing := expected - set(parts):
            raise CheckpointError(f"{self.name}: expected the parts {sorted(missing)} too; received {sorted(parts)}")
        if unknown := set(parts) - expected - set(optional):
            raise CheckpointError(f"{self.name}: expected no parts {sorted(unknown)}; received {sorted(parts)}")
