"""Clients that keep sending prediction requests, check every answer, and measure the latency."""

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
"""Clients that ask at the same time."""
REQUEST_EVERY_SECONDS = 0.03
"""Seconds between two requests of a client: 130 requests a second in all, which leaves the cores to the update."""
ANSWER_SECONDS = 10.0
"""Timeout of a request."""
ITEMS = (20, 50)
"""Fewest and most candidates of a request."""
REQUESTS_OF_A_CONNECTION = 25
"""Mean number of requests on one connection; a new one may be answered by another api process."""
KEPT_FAULTS = 5
"""First failures that are described; all are counted."""
POLL_SECONDS = 0.02
"""Seconds between two looks at the version that answers."""


class VersionOrder:
    """Checks that clients see versions in order.

    A version newer than all before may appear at any time, an older one only after it was announced. No answer may be
    older than the newest answer that had come when its request was sent, whichever api process gives it.
    """

    def __init__(self, first: int) -> None:
        self._steps = [first]
        self.position = 0
        """Index of the newest step that was seen."""

    @property
    def current(self) -> int:
        """The newest version that was seen."""
        return self._steps[self.position]

    def announce(self, version: int) -> None:
        """Say that `version` comes next."""
        self._steps.append(version)

    def accept(self, version: int, since: int) -> bool:
        """Note an answer of `version`; return whether it is right for a request sent when `position` was `since`."""
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
    """Counts and latencies of the requests of some time."""

    served: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    """Latency of each request that was served, from sending it to the end of the answer."""

    def quantile_ms(self, fraction: float) -> float | None:
        """The latency in milliseconds that this fraction of the requests stayed below; None without any request."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] * 1000, 2)


class Traffic:
    """The clients, and the answers that they have seen.

    Args:
        http: client with the address of the service and a key.
        versions: checks the version of each answer.
        seed: of the requests.
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
        """Descriptions of the first failures."""

    def offer(self, users: Sequence[str], items: Sequence[str], contexts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Ask about these users and items from now on, each time in one of the contexts if there are any."""
        self._users, self._items, self._contexts = users, items, contexts

    def begin_window(self) -> None:
        """Count the requests sent from now on in a new `window` too."""
        self.window = Window()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep asking during the `async with` block."""
        clients = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            ends = await asyncio.gather(*clients, return_exceptions=True)
        for end in ends:  # a client ends by an error only: failures of requests are counted
            if isinstance(end, Exception):
                raise end

    async def wait_for_version(self, version: int, seconds: float = 60.0) -> None:
        """Return once `version` has answered.

        Raises:
            CallFailed: it has not answered in time.
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
            request: dict[str, Any] = {"user_id": self._random.choice(self._users), "items": items}
            if self._contexts:
                request["context"] = self._random.choice(self._contexts)
            await self._ask(request)
            await asyncio.sleep(max(0.0, REQUEST_EVERY_SECONDS - (time.perf_counter() - started)))

    async def _ask(self, request: dict[str, Any]) -> None:
        window, since, started = self.window, self.versions.position, time.perf_counter()
        headers = JSON | ({"Connection": "close"} if self._random.random() < 1 / REQUESTS_OF_A_CONNECTION else {})
        try:
            response = await self._http.post(
                "/predict", content=orjson.dumps(request), headers=headers, timeout=ANSWER_SECONDS
            )
            fault = self._fault(response, len(request["items"]), since)
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
        """Return what is wrong with an answer; None if it is right."""
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
