"""Tell the webhooks what happened, in the transaction in which it happens; `deliver` sends it after the commit."""

import math
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from service.storage.postgres.database import UnitOfWork

__all__ = ["Event", "announce", "as_json"]


class Event(StrEnum):
    """What webhooks are told of."""

    PUBLISHED = "version.published"
    """A period has produced a version: `version`, `period`, `kind`, `reason`, `scores`."""
    GATE_REFUSED = "gate.refused"
    """The version serves what was served before: `version`, `period`, `reason`, `checks`, `trial`, `strange`."""
    ROLLED_BACK = "version.rolled_back"
    """Another version is the champion: `from_version`, `to_version`, `sequence`, `reason`, `actor`."""
    CANARY_STARTED = "canary.started"
    """A new version answers a share of the users: `version`, `champion`, `share`, `minutes`."""
    CANARY_PROMOTED = "canary.promoted"
    """It answers all of them: `version`, `champion`, `reason`, `numbers`, `actor`."""
    CANARY_REVERTED = "canary.reverted"
    """It answers none any more: the same."""
    QUARANTINED = "period.quarantined"
    """A period was given up: `period`, `error`, `attempts`."""
    ALERT_OPENED = "alert.opened"
    """Something is wrong, or has become critical: the alert as `GET /admin/alerts` shows it."""
    ALERT_CLOSED = "alert.closed"
    """It is not any more: the same."""


async def announce(work: UnitOfWork, event: Event, data: Mapping[str, Any]) -> None:
    """Tell the webhooks that are on of an event, if the transaction is committed.

    Args:
        work: the transaction of what happened.
        event: what happened.
        data: about it, as JSON. No secrets, and no ids of users or items.
    """
    await work.deliveries.add(f"msg_{secrets.token_hex(12)}", event, as_json(data))


def as_json(value: Any) -> Any:
    """The value with numbers that JSON lacks (`nan`, `inf`) as text, so that no transaction fails for one."""
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
