"""Streams on which something goes wrong, and how a period is sent and waited for."""

import time
from collections.abc import Callable
from dataclasses import replace
from zlib import crc32

import httpx
import numpy as np

from asmg.datasets.synthetic import DriftPeriod

__all__ = ["SETTLED", "close", "decayed", "send", "turned", "wait_for", "with_noise"]

EVENTS_OF_A_CALL = 500
POLL_SECONDS = 0.05
WAIT_SECONDS = 300.0
"""How long an update, and what is judged after it, may take."""

NOISE = 0.95
"""Click rate of the period whose clicks are noise."""

STEP = 0.05
"""Share of the users whose labels are turned round in each further period of the decay."""

SETTLED = 10
"""Periods before anything goes wrong."""


def with_noise(period: DriftPeriod, seed: int) -> DriftPeriod:
    """The period with random labels, nearly all of them clicks."""
    labels = (np.random.default_rng(seed).random(len(period.labels)) < NOISE).astype(period.labels.dtype)
    return replace(period, labels=labels)


def decayed(period: DriftPeriod) -> DriftPeriod:
    """The period with the labels of some users turned round: of none up to `SETTLED`, then of more each period."""
    share = STEP * max(0, period.number - SETTLED)
    changed = np.array([crc32(user.encode()) / 2**32 < share for user in period.user_ids])
    return replace(period, labels=np.where(changed, 1 - period.labels, period.labels))


def turned(period: DriftPeriod) -> DriftPeriod:
    """The period with all labels turned round, as a logger writes them that has mistaken one for the other."""
    return replace(period, labels=1 - period.labels)


def send(client: httpx.Client, period: DriftPeriod) -> None:
    """Log a period, with its new items."""
    items = [{"item_id": item, "categories": list(names)} for item, names in period.new_items.items()]
    if items:
        client.put("/items", json={"items": items}).raise_for_status()
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True)
    events = [
        {"event_id": f"{period.number}-{n}", "user_id": user, "item_id": item, "label": label, "timestamp": at}
        for n, (user, item, label, at) in enumerate(rows)
    ]
    for start in range(0, len(events), EVENTS_OF_A_CALL):
        body = {"interactions": events[start : start + EVENTS_OF_A_CALL]}
        client.post("/interactions", json=body).raise_for_status()


def close(client: httpx.Client, period: int) -> int:
    """Close the open period, which has this number; the version that it became."""
    client.post("/periods/close", json={"expected_period": period}).raise_for_status()
    wait_for(lambda: client.get(f"/periods/{period}").json().get("version") is not None, "the update")
    return int(client.get(f"/periods/{period}").json()["version"])


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Return when the condition holds.

    Args:
        condition: is asked again and again.
        what: is waited for, in the message of the error.
        seconds: the longest time.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {what} within {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
