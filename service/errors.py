"""The errors of the service as one tree; each class has its HTTP status, each error its context.

    ServiceError                500
    ├── InvalidInput            422  a request that no state of the service could accept
    ├── IdempotencyMismatch     422  one key, two different requests
    ├── BodyTooLarge            413
    ├── Unauthorized            401  no key, or not one of ours
    ├── Forbidden               403  a key without the scope
    ├── RateLimited             429  a key that has used up its rate limit
    ├── ModelNotFound           404
    ├── PeriodNotFound          404
    ├── KeyNotFound             404  no key with this id, or it is revoked
    ├── NothingStored           404  about a user or an item
    ├── NoSuchNumber            404  an alert, a webhook or a delivery
    ├── EmptyPeriod             409  nothing to learn from
    ├── PeriodConflict          409  another period is open than the caller expected
    ├── PeriodStateConflict     409  the period is not in a state in which that can be done
    ├── StateConflict           409  an alert, a webhook or a delivery is not in a state in which that can be done
    ├── ModelPruned             409  the version is known, but a needed artifact of it was evicted
    ├── ArtifactUnreadable      409  a needed artifact of a version is stored, but damaged
    ├── NotReady                503  a dependency does not answer, or no model is loaded yet
    ├── ArtifactError           500
    │   ├── ArtifactMissing          named but not stored
    │   └── ArtifactCorrupt          stored bytes do not have their digest
    ├── BackupError             500  a backup that cannot be written, or not be restored
    └── ConfigurationError      500  the service was started with settings that cannot work
        └── EmbeddedServerError      an embedded Postgres or Redis did not start or stop

The module knows statuses as plain numbers and imports no web framework, so storage, the worker and the command line
raise the same errors that the API renders as problem documents (RFC 9457).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "ArtifactCorrupt",
    "ArtifactError",
    "ArtifactMissing",
    "ArtifactUnreadable",
    "BackupError",
    "BodyTooLarge",
    "ConfigurationError",
    "EmbeddedServerError",
    "EmptyPeriod",
    "FieldError",
    "Forbidden",
    "IdempotencyMismatch",
    "InvalidInput",
    "KeyNotFound",
    "ModelNotFound",
    "ModelPruned",
    "NoSuchNumber",
    "NotReady",
    "NothingStored",
    "PeriodConflict",
    "PeriodNotFound",
    "PeriodStateConflict",
    "RateLimited",
    "ServiceError",
    "StateConflict",
    "Unauthorized",
]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request that is invalid."""

    field: str
    """Path of the field, such as `interactions[3].label`."""
    expected: str
    received: str


class ServiceError(Exception):
    """Root of the tree, with the members of a problem document.

    `status`, `title` and `slug` are those of the class; `detail` and `errors` those of one error.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    slug: ClassVar[str] = "internal-error"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)

    def problem(self) -> dict[str, Any]:
        """The members of a problem document: type, title, status, detail and, where fields are wrong, errors."""
        document: dict[str, Any] = {
            "type": f"urn:asmg:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = [
                {"field": error.field, "expected": error.expected, "received": error.received} for error in self.errors
            ]
        return document


class InvalidInput(ServiceError):
    """A request with fields that are missing, unknown or out of range."""

    status = 422
    title = "Invalid input"
    slug = "invalid-input"


class IdempotencyMismatch(ServiceError):
    """An idempotency key that was used before with a different request."""

    status = 422
    title = "Idempotency key reused"
    slug = "idempotency-mismatch"

    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency key {key!r} was used before with a different request")
        self.key = key


class BodyTooLarge(ServiceError):
    """A request body over `limit` bytes."""

    status = 413
    title = "Body too large"
    slug = "body-too-large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"expected a body of at most {limit} bytes; received more")
        self.limit = limit


class Unauthorized(ServiceError):
    """A request without a valid key. The detail never tells what was wrong with the key."""

    status = 401
    title = "Unauthorized"
    slug = "unauthorized"

    def __init__(self, detail: str = "expected a valid API key; received none that is known") -> None:
        super().__init__(detail)


class Forbidden(ServiceError):
    """A valid key that lacks the scope of the call."""

    status = 403
    title = "Forbidden"
    slug = "forbidden"

    def __init__(self, scope: str) -> None:
        super().__init__(f"expected a key with scope {scope!r}; received one without it")
        self.scope = scope


class RateLimited(ServiceError):
    """More requests than are allowed; the next one is allowed in `wait` seconds."""

    status = 429
    title = "Too many requests"
    slug = "rate-limited"

    def __init__(self, detail: str, wait: float) -> None:
        super().__init__(detail)
        self.retry_after = max(1, math.ceil(wait))
        """`wait` in whole seconds, at least one."""


class ModelNotFound(ServiceError):
    """A model version that does not exist."""

    status = 404
    title = "Model not found"
    slug = "model-not-found"

    def __init__(self, version: int) -> None:
        super().__init__(f"there is no model version {version}")
        self.version = version


class ModelPruned(ServiceError):
    """A model version whose artifacts were evicted to make room; only its record is left."""

    status = 409
    title = "Model version pruned"
    slug = "model-pruned"

    def __init__(self, version: int, what: str) -> None:
        super().__init__(f"the {what} of model version {version} is no longer stored")
        self.version = version


class ArtifactUnreadable(ServiceError):
    """A model version to which no rollback is possible, because an artifact of it cannot be read."""

    status = 409
    title = "Artifact unreadable"
    slug = "artifact-unreadable"

    def __init__(self, version: int, what: str, digest: str, reason: str) -> None:
        super().__init__(f"the {what} of model version {version} cannot be read: {reason}")
        self.version = version
        self.what = what
        self.digest = digest

    def problem(self) -> dict[str, Any]:
        """The members of every problem document, and the artifact."""
        return {**super().problem(), "version": self.version, "artifact": self.what, "digest": self.digest}


class PeriodNotFound(ServiceError):
    """A period that does not exist."""

    status = 404
    title = "Period not found"
    slug = "period-not-found"

    def __init__(self, number: int) -> None:
        super().__init__(f"there is no period {number}")
        self.number = number


class KeyNotFound(ServiceError):
    """A key that does not exist, or is revoked already."""

    status = 404
    title = "Key not found"
    slug = "key-not-found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id}, or it is revoked")
        self.key_id = key_id


class NothingStored(ServiceError):
    """A user or an item about which nothing is stored."""

    status = 404
    title = "Nothing stored"
    slug = "nothing-stored"

    def __init__(self, kind: str) -> None:
        super().__init__(f"nothing is stored about this {kind}")


class NoSuchNumber(ServiceError):
    """An alert, a webhook or a delivery that does not exist."""

    status = 404
    title = "Not found"
    slug = "not-found"

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"there is no {what} {number}")
        self.number = number


class StateConflict(ServiceError):
    """A call that is not possible in the state of an alert, a webhook or a delivery."""

    status = 409
    title = "Not possible in this state"
    slug = "state-conflict"


class EmptyPeriod(ServiceError):
    """A period without events, which cannot be closed."""

    status = 409
    title = "Empty period"
    slug = "empty-period"

    def __init__(self, number: int) -> None:
        super().__init__(f"expected at least one interaction, impression or click in period {number}; received none")
        self.number = number


class PeriodStateConflict(ServiceError):
    """A call that is not possible in the period's state."""

    status = 409
    title = "Period in another state"
    slug = "period-state"


class PeriodConflict(ServiceError):
    """The open period is not the one that the caller expected."""

    status = 409
    title = "Period conflict"
    slug = "period-conflict"

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"expected period {expected} to be open; period {actual} is")
        self.expected = expected
        self.actual = actual


class NotReady(ServiceError):
    """The service, or a server that it needs, does not answer now; a later attempt may succeed."""

    status = 503
    title = "Not ready"
    slug = "not-ready"


class ArtifactError(ServiceError):
    """A stored artifact that cannot be used."""

    title = "Artifact unusable"
    slug = "artifact-unusable"

    def __init__(self, digest: str, detail: str) -> None:
        super().__init__(detail)
        self.digest = digest


class ArtifactMissing(ArtifactError):
    """No artifact has this digest, or `where`, which should have its content, is not there."""

    slug = "artifact-missing"

    def __init__(self, digest: str, where: str | None = None) -> None:
        missing = "" if where is None else f": {where} is not there"
        super().__init__(digest, f"there is no artifact {digest}{missing}")


class ArtifactCorrupt(ArtifactError):
    """An artifact whose stored bytes do not have its digest."""

    slug = "artifact-corrupt"

    def __init__(self, digest: str, actual: str) -> None:
        super().__init__(digest, f"expected bytes with digest {digest}; received {actual}")
        self.actual = actual


class BackupError(ServiceError):
    """A backup that cannot be written, or not be restored; raised by commands, never by a request."""

    title = "Backup unusable"
    slug = "backup-unusable"


class ConfigurationError(ServiceError):
    """Settings that cannot work; raised at start, never by a request."""

    title = "Configuration error"
    slug = "configuration-error"


class EmbeddedServerError(ConfigurationError):
    """An embedded server could not be started or stopped."""

    title = "Embedded server error"
    slug = "embedded-server-error"
