"""Clients that ask for predictions without a pause, check every answer, and know what a right one is."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from service.demo.client import JSON, CallFailed

__all__ = ["Traffic", "VersionOrder", "Window"]

CLIENTS = 4
REQUEST_EVERY_SECONDS = 0.03
"""Of each client: about 130 requests a second together, which leave the cores to the update."""
ANSWER_SECONDS = 10.0
ITEMS = (20, 50)
"""Fewest and most candidates of a request."""
REQUESTS_OF_A_CONNECTION = 25
"""On average; then a new one, so that every client is answered by each api process in turn."""
KEPT_FAULTS = 5
POLL_SECONDS = 0.02


class VersionOrder:
    """The versions in the order in which clients may see them.

    A newer version than all before may come at any time; an older one only where it was announced. A request is
    judged by what had been answered when it was sent: no answer may be older than that, whichever process gives it.
    """

    def __init__(self, first: int) -> None:
        self._steps = [first]
        self.position = 0
        """Index of the last step that was seen."""

    @property
    def current(self) -> int:
        """The last version that was seen."""
        return self._steps[self.position]

    def announce(self, version: int) -> None:
        """`version` comes next."""
        self._steps.append(version)

    def accept(self, version: int, since: int) -> bool:
        """Whether an answer of `version` is right for a request sent when `position` was `since`."""
        for position in range(since, len(self._steps)):
            if self._steps[position] == version:
                break
        else:
            if version <= max(self._steps):
                return False
            self._steps.append(version)
            position = len(self._steps) - 1
        self.position = max(self.position, position)
        return True


@dataclass
class Window:
    """The requests of some stretch of time."""

    served: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    """From sending to the end of the answer, of those served."""

    def quantile_ms(self, fraction: float) -> float | None:
        """The latency that this fraction of the requests stayed below, milliseconds; None without any."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] * 1000, 2)


class Traffic:
    """The clients and what they have seen.

    Args:
        http: with the address of the service and a key.
        versions: what they may see.
        seed: of who asks for what.
    """

    def __init__(self, http: httpx.AsyncClient, versions: VersionOrder, seed: int) -> None:
        self._http = http
        self._random = random.Random(seed)
        self._users: Sequence[str] = ["nobody"]
        self._items: Sequence[str] = ["nothing"]
        self._contexts: Sequence[Mapping[str, Any]] = ()
        self.versions = versions
        self.total = Window()
        self.window = Window()
        self.faults: list[str] = []
        """What was wrong with the first failures."""

    def offer(self, users: Sequence[str], items: Sequence[str], contexts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Ask for these from now on, each time in some of these contexts where there are any."""
        self._users, self._items, self._contexts = users, items, contexts

    def begin_window(self) -> None:
        """Count the requests sent from now on by themselves too."""
        self.window = Window()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask throughout the `async with` block."""
        clients = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            ends = await asyncio.gather(*clients, return_exceptions=True)
        for end in ends:  # a client does not end by itself, and what a request can raise is counted
            if isinstance(end, Exception):
                raise end

    async def until(self, version: int, seconds: float = 60.0) -> None:
        """Return when an answer of `version` has come.

        Raises:
            CallFailed: none has come in time.
        """
        deadline = time.monotonic() + seconds
        while self.versions.current != version:
            if time.monotonic() > deadline:
                raise CallFailed(
                    f"version {version} was published but version {self.versions.current} still answers; "
                    f"failed requests: {self.total.failed} {'; '.join(self.faults)}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _client(self) -> None:
        while True:
            started = time.perf_counter()
            count = min(self._random.randint(*ITEMS), len(self._items))
            items = self._random.sample(self._items, count)
            question: dict[str, Any] = {"user_id": self._random.choice(self._users), "items": items}
            if self._contexts:
                question["context"] = self._random.choice(self._contexts)
            await self._ask(question)
            await asyncio.sleep(max(0.0, REQUEST_EVERY_SECONDS - (time.perf_counter() - started)))

    async def _ask(self, question: dict[str, Any]) -> None:
        window, since, started = self.window, self.versions.position, time.perf_counter()
        headers = JSON | ({"Connection": "close"} if self._random.random() < 1 / REQUESTS_OF_A_CONNECTION else {})
        try:
            response = await self._http.post(
                "/predict", content=orjson.dumps(question), headers=headers, timeout=ANSWER_SECONDS
            )
            fault = self._fault(response, len(question["items"]), since)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            fault = f"{type(error).__name__} {error}"
        for counted in (self.total, window):
            if fault is None:
                counted.served += 1
                counted.seconds.append(time.perf_counter() - started)
            else:
                counted.failed += 1
        if fault is not None and len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)

    def _fault(self, response: httpx.Response, items: int, since: int) -> str | None:
        """What is wrong with an answer."""
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        document = orjson.loads(response.content)
        scores = document["scores"]
        if len(scores) != items:
            return f"{len(scores)} scores for {items} items"
        if not all(0 < score < 1 for score in scores):
            return f"scores outside of (0, 1): {[score for score in scores if not 0 < score < 1][:3]}"
        expected = self.versions.current
        if not self.versions.accept(document["model_version"], since):
            return f"version {document['model_version']} after version {expected}"
        return None
