"""How the classes over Redis behave while it is away: they pause, and log one line a minute."""

import logging
import time

from redis.exceptions import RedisError

__all__ = ["ANSWER_SECONDS", "Outage"]

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 0.5
"""How long a request waits for an answer of Redis. A slower Redis counts as away, since predictions wait for it."""

PAUSE_SECONDS = 1.0
"""How long Redis is not called after a failure: one call a second waits for its timeout, and the others do not."""

LOG_EVERY_SECONDS = 60.0
"""Shortest time between two log lines about failures."""


class Outage:
    """The recent failures of Redis, as one of the classes over it has seen them.

    Args:
        consequence: what the service does instead; part of the log line.
    """

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._failed_at = self._logged_at = -float("inf")

    @property
    def pausing(self) -> bool:
        """Whether Redis has failed within the last `PAUSE_SECONDS` and is not to be called."""
        return time.monotonic() < self._failed_at + PAUSE_SECONDS

    def note(self, error: RedisError | TimeoutError) -> None:
        """Note a failed call. The pause begins."""
        self._failed_at = time.monotonic()
        if self._failed_at >= self._logged_at + LOG_EVERY_SECONDS:
            self._logged_at = self._failed_at
            logger.warning("Redis does not answer, %s: %s", self._consequence, str(error) or type(error).__name__)
