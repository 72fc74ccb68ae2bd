"""Versions of the model, what becomes of them, and what they say of earlier periods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "Canary",
    "Model",
    "ModelDetail",
    "Models",
    "PeriodProfile",
    "Pinned",
    "Replay",
    "Replayed",
    "ReplayedPeriod",
    "RolledBack",
    "SampleCell",
    "SampleMatrix",
]


@dataclass(frozen=True, slots=True)
class Model:
    """A version of the model."""

    version: int
    period: int
    kind: str
    """`prior`, `generated`, `incremental` or `previous`."""
    parent_version: int | None
    champion: bool
    """Whether it is served."""
    head: bool
    """Whether the next update continues it."""
    scores: Mapping[str, Any]
    gate: Mapping[str, Any]
    """The gate's decision and its reason."""
    created_at: datetime
    created_by: str
    digest: str | None
    pinned: bool
    kept: Sequence[str]


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of the users first, or did."""

    version: int
    champion_version: int
    """The version that answers the others."""
    share: float
    state: str
    """`running`, `promoted`, `reverted` or `replaced`."""
    announced_at: datetime
    since: datetime | None
    until: datetime | None
    """From when on it answers, and when it is decided at the latest; None while it is loaded, and when it has ended."""
    ended_at: datetime | None
    ended_by: str | None
    reason: str | None
    numbers: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetail(Model):
    """A version with the digests of its training state."""

    state: Mapping[str, Any]
    canary: Canary | None = None
    """How it fared as a canary; None where it was none."""


@dataclass(frozen=True, slots=True)
class Models:
    """A page of versions, newest first."""

    models: Sequence[Model]
    next: int | None
    """`before` of the page that follows; None on the last."""
    canary: Canary | None = None
    """The version that answers a share of the users now; None where none does."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A rollback that every api process has carried out."""

    from_version: int
    to_version: int
    sequence: str
    active_from: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """A version that is pinned now, or no longer."""

    version: int
    pinned: bool
    changed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """A version on some interactions, beside what was served. LogLoss less is better, so a negative difference speaks
    for the version.
    """

    events: int
    logloss: float | None
    served_logloss: float | None
    difference: float | None
    """`logloss - served_logloss`."""
    low: float | None
    """Lower end of its 95 % confidence interval."""
    high: float | None
    """Upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedPeriod(Replayed):
    """A version on what was kept of one period."""

    period: int
    served_version: int | None
    auc: float | None
    failure: str | None
    """Why the version could not be replayed on the period."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have been, had a version stayed in service."""

    version: int
    status: str
    """`complete`, or `computing` while the worker has not scored all periods; ask again."""
    waiting: int
    """Periods that are still to be scored."""
    total: Replayed
    """Of all periods that are scored."""
    periods: Sequence[ReplayedPeriod]


@dataclass(frozen=True, slots=True)
class SampleCell:
    """What a version says of what was kept of a period."""

    version: int
    period: int
    events: int
    auc: float | None
    logloss: float | None
    served_logloss: float | None
    error: float | None
    """Standard error of the difference of both."""
    failure: str | None
    """Why the version could not be scored on it."""


@dataclass(frozen=True, slots=True)
class PeriodProfile:
    """How a period's inputs and served scores were distributed."""

    period: int
    served_version: int | None
    profile: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SampleMatrix:
    """What versions say of what was kept of periods, and how those periods were."""

    profiles: Sequence[PeriodProfile]
    cells: Sequence[SampleCell]
