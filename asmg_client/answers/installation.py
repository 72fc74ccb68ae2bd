"""How the service is, who has done what, and the keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asmg_client.answers.periods import Period

__all__ = [
    "Audit",
    "AuditEntry",
    "Health",
    "Installation",
    "Key",
    "Keys",
    "ModelInService",
    "NewKey",
    "Overview",
    "Process",
    "ProcessCounts",
    "Processes",
    "Readiness",
    "WorkerState",
]


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
class ModelInService:
    """The version that is served."""

    version: int
    kind: str
    period: int
    created_at: datetime
    active_from: datetime | None
    """From when on every api process serves it; None while they load it."""
    previous_version: int | None
    pinned: bool
    head: int | None
    """The version that the next update continues from."""


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """Api processes of all hosts."""

    live: int
    ready: int
    behind: int


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The leading worker."""

    seconds_ago: float | None
    """Seconds since it last got any further; None where nothing is known of one."""
    stalled: bool


@dataclass(frozen=True, slots=True)
class Installation:
    """The state of the installation at a moment."""

    at: datetime
    model: ModelInService
    open_period: Period
    newest: Period | None
    """The newest closed period, whose update may be under way; None before the first close."""
    periods: Mapping[str, int]
    """Number of periods by status."""
    gate_decisions: Mapping[str, int]
    """Versions by what the gate let serve."""
    refused_in_a_row: int
    """Newest versions in a row that do not serve what they have learned."""
    processes: ProcessCounts
    worker: WorkerState


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the installation, and of the process that answers."""

    checks: Mapping[str, str]
    served_version: int
    installation: Installation


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key."""

    key_id: str
    name: str
    scopes: Sequence[str]
    rate_limit: float | None
    """Requests a second; 0 for no limit, None for that of the service."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    valid: bool


@dataclass(frozen=True, slots=True)
class Keys:
    """All API keys ever created, oldest first."""

    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new API key, which is shown only now."""

    key_id: str
    key: str = field(repr=False)
