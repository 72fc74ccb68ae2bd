"""When a call is sent again: exponential backoff with jitter, until a deadline; without sleeping or sending."""

import random
import time
from dataclasses import dataclass

from asmg_client.errors import AsmgError, ConnectionFailed, ProblemError

__all__ = ["Attempts", "Retry", "backoff", "is_passing"]

PASSING = frozenset({429, 502, 503, 504})
"""Statuses of failures that pass: too many requests, a dependency or an api process that is away, and what proxies say
of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How calls are repeated that may be."""

    deadline_seconds: float = 10.0
    """From the first attempt: no attempt begins later, and none waits longer at one point."""
    first_seconds: float = 0.1
    """Most that is waited before the second attempt; twice that before the third, and so on."""
    most_seconds: float = 2.0
    """Most that is waited before an attempt, unless `Retry-After` asks for more."""
    attempts: int = 8
    """Most attempts; 1 for no repetition."""


def is_passing(error: AsmgError) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, ConnectionFailed) or (isinstance(error, ProblemError) and error.status in PASSING)


def backoff(attempt: int, first_seconds: float, most_seconds: float, error: BaseException | None = None) -> float:
    """Seconds to wait after a failure: between half of an exponentially growing time and all of it, at random, and no
    less than `Retry-After`.

    Args:
        attempt: 1 for the first that failed.
        first_seconds: most after the first.
        most_seconds: most after any.
        error: of the attempt.
    """
    growing = min(most_seconds, first_seconds * 2.0 ** min(attempt - 1, 30))
    waited = growing * random.uniform(0.5, 1.0)
    asked = error.retry_after if isinstance(error, ProblemError) else None
    return waited if asked is None else max(waited, asked)


class Attempts:
    """The attempts of one call.

    Args:
        retry: how often, and how long.
        repeatable: whether the call may be sent again.
    """

    def __init__(self, retry: Retry, repeatable: bool) -> None:
        self._retry = retry
        self._most = retry.attempts if repeatable else 1
        self._made = 0
        self._deadline = time.monotonic() + retry.deadline_seconds

    def left(self) -> float:
        """Seconds until the deadline, at least a hundredth: what the next attempt may wait at one point."""
        return max(0.01, self._deadline - time.monotonic())

    def pause(self, error: AsmgError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            AsmgError: `error` itself, where there is to be no other attempt.
        """
        self._made += 1
        if self._made >= self._most or not is_passing(error):
            raise error
        pause = backoff(self._made, self._retry.first_seconds, self._retry.most_seconds, error)
        if time.monotonic() + pause >= self._deadline:
            raise error
        return pause
