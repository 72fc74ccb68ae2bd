"""The errors of the client. A problem document of the service (RFC 9457) becomes the class with its type.

    AsmgError
    ├── ConnectionFailed          no answer: refused, broken off, or not in time
    │   └── TimedOut
    ├── InvalidAnswer             an answer that is not the service's
    ├── BufferFull                an event that a full buffer did not take
    ├── EventConflict             an event whose id is stored with other content
    └── ProblemError              any answer with a status of 400 or more
        ├── InvalidInput          422  `errors` names the fields
        ├── IdempotencyMismatch   422  one key, two different requests
        ├── BodyTooLarge          413
        ├── Unauthorized          401
        ├── Forbidden             403
        ├── RateLimited           429  `retry_after` says when to ask again
        ├── ModelNotFound         404
        ├── PeriodNotFound        404
        ├── NothingStored         404
        ├── EmptyPeriod           409
        ├── PeriodConflict        409
        ├── PeriodStateConflict   409
        ├── ModelPruned           409
        ├── ArtifactUnreadable    409
        ├── NotReady              503  `retry_after` says when to ask again
        └── InternalError         500

A problem of a type that is not listed, such as one of a newer service or of a proxy, is a `ProblemError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "ArtifactUnreadable",
    "AsmgError",
    "BodyTooLarge",
    "BufferFull",
    "ConnectionFailed",
    "EmptyPeriod",
    "EventConflict",
    "FieldError",
    "Forbidden",
    "IdempotencyMismatch",
    "InternalError",
    "InvalidAnswer",
    "InvalidInput",
    "ModelNotFound",
    "ModelPruned",
    "NotReady",
    "NothingStored",
    "PeriodConflict",
    "PeriodNotFound",
    "PeriodStateConflict",
    "Problem",
    "ProblemError",
    "RateLimited",
    "TimedOut",
    "Unauthorized",
]


class AsmgError(Exception):
    """Root of the tree."""


class ConnectionFailed(AsmgError):
    """There is no answer. Whether the service has carried out the call is not known."""


class TimedOut(ConnectionFailed):
    """The service did not answer in time."""


class InvalidAnswer(AsmgError):
    """An answer with a status below 400 that is not as the service gives it; most likely something else answered."""


class BufferFull(AsmgError):
    """The buffer is full, and the event was not added."""


class EventConflict(AsmgError):
    """The service has stored another event with the id of this one, and keeps that."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request that is wrong."""

    field: str
    """Path of the field, such as `interactions[3].label`."""
    expected: str
    received: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document."""

    status: int
    """HTTP status."""
    type: str = "about:blank"
    """URN of the kind of problem."""
    title: str = ""
    detail: str = ""
    errors: Sequence[FieldError] = ()
    """The first 50 wrong fields; empty where the problem is not one of fields."""
    instance: str = ""
    """Path of the request."""
    request_id: str | None = None
    """By which the log of the service calls the request."""


class ProblemError(AsmgError):
    """The service, or a proxy in front of it, has refused or failed to answer.

    Args:
        problem: the document.
        retry_after: seconds to wait before asking again; None where the answer does not say it.
    """

    slug: ClassVar[str | None] = None
    """The last part of `type`: `urn:asmg:problem:<slug>`."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """URN of the kind of problem."""
        return self.problem.type

    @property
    def title(self) -> str:
        """The kind of problem in words."""
        return self.problem.title

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """What was expected and what was received."""
        return self.problem.detail

    @property
    def errors(self) -> Sequence[FieldError]:
        """The first 50 wrong fields."""
        return self.problem.errors

    @property
    def request_id(self) -> str | None:
        """By which the log of the service calls the request."""
        return self.problem.request_id


class InvalidInput(ProblemError):
    """Fields of the request are missing, unknown or out of range; `errors` names them."""

    slug = "invalid-input"


class IdempotencyMismatch(ProblemError):
    """The idempotency key was used before with a different request."""

    slug = "idempotency-mismatch"


class BodyTooLarge(ProblemError):
    """The body has more bytes than the call allows."""

    slug = "body-too-large"


class Unauthorized(ProblemError):
    """There is no key, or it is not valid."""

    slug = "unauthorized"


class Forbidden(ProblemError):
    """The key lacks the scope of the call."""

    slug = "forbidden"


class RateLimited(ProblemError):
    """The key makes more requests than it may."""

    slug = "rate-limited"


class ModelNotFound(ProblemError):
    """There is no such version."""

    slug = "model-not-found"


class PeriodNotFound(ProblemError):
    """There is no such period."""

    slug = "period-not-found"


class NothingStored(ProblemError):
    """Nothing is stored about the user or the item."""

    slug = "nothing-stored"


class EmptyPeriod(ProblemError):
    """The open period has no events, and cannot be closed."""

    slug = "empty-period"


class PeriodConflict(ProblemError):
    """Another period is open than the caller expected."""

    slug = "period-conflict"


class PeriodStateConflict(ProblemError):
    """The period is not in a state in which that can be done."""

    slug = "period-state"


class ModelPruned(ProblemError):
    """The version is known, but a needed artifact of it is no longer stored."""

    slug = "model-pruned"


class ArtifactUnreadable(ProblemError):
    """A needed artifact of the version is damaged."""

    slug = "artifact-unreadable"


class NotReady(ProblemError):
    """The service, or a server that it needs, does not answer now."""

    slug = "not-ready"


class InternalError(ProblemError):
    """The service failed; its log has the cause, under `request_id`."""

    slug = "internal-error"
