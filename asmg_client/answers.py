"""What the service answers, as frozen dataclasses; each is a document of the API with the same name of its members."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "Audit",
    "AuditEntry",
    "BatchPrediction",
    "Canary",
    "Closed",
    "Deletion",
    "Health",
    "Ingested",
    "Model",
    "ModelDetail",
    "Models",
    "Period",
    "Periods",
    "Pinned",
    "Prediction",
    "Predictions",
    "Process",
    "Processes",
    "PutItems",
    "PutUsers",
    "Readiness",
    "Recent",
    "RolledBack",
    "Score",
    "Stage",
    "StoredItem",
    "StoredLog",
    "StoredPeriod",
    "StoredUser",
]


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """Click probabilities of the items of one question."""

    scores: Sequence[float]
    """One for each item, in the order of the question."""
    cold_user: bool
    """Whether the model does not know the user."""
    cold_items: Sequence[int]
    """Indexes of the items that the model does not know."""
    history: str
    """`used`, or `unavailable` where no server gave the user's history in time."""
    request_id: str
    """Clicks on a logged impression refer to it."""
    logged: bool | None = None
    """Whether the impression is stored; None where that was not asked for."""
    model_version: int | None = None
    """The canary, where it has made this answer of a batch; else None."""
    period: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(BatchPrediction):
    """Click probabilities by one version."""

    model_version: int
    period: int
    """The period that the model was last trained on."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers to several questions, in their order, all by one version but for those of a canary's users."""

    model_version: int
    period: int
    predictions: Sequence[BatchPrediction]


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of the events of a call."""

    accepted: int
    duplicates: int
    """Events that were stored before, or are in the call twice."""
    period: int
    conflicts: Sequence[str] = ()
    """Ids of events that differ from the stored event with the same id, which stays as it is."""


@dataclass(frozen=True, slots=True)
class PutItems:
    """What a call changed in the catalogue."""

    items: int
    changed: int


@dataclass(frozen=True, slots=True)
class PutUsers:
    """What a call changed in the features of users."""

    users: int
    changed: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far a deletion has come."""

    deletion: str
    """By which the audit calls it."""
    status: str
    """`done`, or `pending` where the service goes on with it."""
    removed: Mapping[str, int]
    """Rows removed so far, by what they were."""


@dataclass(frozen=True, slots=True)
class StoredPeriod:
    """What the log of one period has about an id."""

    period: int
    interactions: int
    positives: int
    impressions: int
    clicks: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class StoredLog:
    """What all kept logs have about an id."""

    interactions: int
    positives: int
    impressions: int
    clicks: int
    first: datetime | None
    last: datetime | None
    periods: Sequence[StoredPeriod]
    next: int | None
    """`before` of the page that follows; None on the last."""


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest interactions of a user, clicks or not."""

    interactions: int
    clicks_of_newest: int
    clicks: int


@dataclass(frozen=True, slots=True)
class StoredUser:
    """What is stored about a user."""

    user_id: str
    row: int | None
    known_to_model: bool
    history: Sequence[str]
    """The items clicked last, newest first."""
    recent: Recent
    features: Mapping[str, Any] | None
    feature_versions: int
    log: StoredLog


@dataclass(frozen=True, slots=True)
class StoredItem:
    """What is stored about an item."""

    item_id: str
    row: int | None
    known_to_model: bool
    categories: Sequence[str] | None
    features: Mapping[str, Any] | None
    feature_versions: int
    histories: int
    passes: int
    unresolved: int
    log: StoredLog


@dataclass(frozen=True, slots=True)
class Closed:
    """The period that a close has sealed."""

    period: int
    status: str
    status_url: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of an update."""

    stage: str
    status: str
    """`running` or `done`."""
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of a model on the log of a period, before any model learned it."""

    version: int | None
    events: int
    auc: float | None
    logloss: float
    calibration: float | None
    """Mean prediction over click rate."""


@dataclass(frozen=True, slots=True)
class Period:
    """A period and its update."""

    period: int
    status: str
    """`open`, `sealed`, `updating`, `updated`, `quarantined` or `skipped`."""
    stage: str | None
    progress: float | None
    """How much of the update is done, 0 to 1; None where it is not known."""
    opened_at: datetime
    sealed_at: datetime | None
    finished_at: datetime | None
    events: int
    attempts: int
    crashes: int
    error: str | None
    version: int | None
    """The version that the update published."""
    stages: Sequence[Stage]
    scores: Mapping[str, Score]
    """By model: `generated`, `incremental`, `previous`, `baseline`; `shadow:iu` of a method that runs beside."""
    labels: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Periods:
    """A page of periods, newest first."""

    periods: Sequence[Period]
    next: int | None
    """`before` of the page that follows; None on the last."""


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
class Process:
    """An api process that runs."""

    process: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    seen_seconds_ago: float
    ready_version: int
    served_version: int
    ready: bool
    behind: bool


@dataclass(frozen=True, slots=True)
class Processes:
    """The api processes that run, and what they are to serve."""

    champion: int | None
    active_from: datetime | None
    processes: Sequence[Process]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action in the audit."""

    id: int
    at: datetime
    actor: str
    action: str
    detail: Mapping[str, Any]
    reason: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Audit:
    """A page of the audit, newest first."""

    entries: Sequence[AuditEntry]
    next: int | None
    """`before` of the page that follows; None on the last."""


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
class Health:
    """The process answers."""

    status: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """The process can predict and store."""

    status: str
    model_version: int
    period: int
    checks: Mapping[str, str]
