"""A client of the public HTTP API, for the demo and the benchmarks."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from service.demo.streams import PlayedPeriod
from service.errors import ServiceError

__all__ = ["Api", "CallFailed", "split_batches"]

BATCH = 5_000
"""Most interactions, items or users of a call."""
IN_FLIGHT = 3
"""Most batches of interactions that are sent at the same time."""
CALL_SECONDS = 60.0
"""Timeout of a call."""
RETRY_SECONDS = 0.5
"""Seconds before an event stream that was cut is opened again."""
SILENCE_SECONDS = 600.0
"""Seconds without any change after which an update is given up."""

JSON = {"Content-Type": "application/json"}


class CallFailed(ServiceError):
    """A call failed, or its answer was not the expected one."""

    title = "Call failed"
    slug = "call-failed"


class Api:
    """A client of the service.

    Args:
        http: client with the address of the service and a key of all scopes.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @classmethod
    def connect(cls, url: str, key: str) -> "Api":
        """Make a client with its own connections."""
        # Idle connections are closed earlier than the server closes them, so that no call uses one that is just being
        # closed. Proxies of the environment are ignored, because both processes are on this host.
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=2)
        headers = {"Authorization": f"Bearer {key}"}
        return cls(
            httpx.AsyncClient(base_url=url, headers=headers, timeout=CALL_SECONDS, limits=limits, trust_env=False)
        )

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Make a call and return the JSON document of the answer.

        Raises:
            CallFailed: there was no answer, or not a successful one.
        """
        content = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        try:
            response = await self.http.request(method, path, content=content, headers={**JSON, **headers})
        except httpx.HTTPError as error:
            raise CallFailed(f"{method} {path}: {type(error).__name__} {error}") from error
        if not response.is_success:
            raise CallFailed(f"{method} {path} answered {response.status_code}: {response.text[:500]}")
        return response.json()

    async def put_catalogue(self, period: PlayedPeriod) -> None:
        """Send the new items and users of a period; their features hold from its first event on."""
        since = int(period.timestamps_ms[0])
        items: list[dict[str, Any]] = [
            {"item_id": item, "categories": categories} for item, categories in period.new_items.items()
        ]
        for document in items:
            if (features := period.item_features.get(document["item_id"])) is not None:
                document |= {"features": features, "timestamp": since}
        users = [
            {"user_id": user, "features": features, "timestamp": since} for user, features in period.new_users.items()
        ]
        for kind, documents in (("items", items), ("users", users)):
            for start in range(0, len(documents), BATCH):
                await self.call("PUT", f"/{kind}", {kind: documents[start : start + BATCH]})

    async def ingest(self, name: str, period: PlayedPeriod) -> None:
        """Send the log of a period in batches; the id of an event is `name` and its row.

        Raises:
            CallFailed: a batch was not accepted.
        """
        free = asyncio.Semaphore(IN_FLIGHT)

        async def send(body: bytes) -> None:
            try:
                await self.call("POST", "/interactions", body)
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                for rows in split_batches(period.timestamps_ms):
                    await free.acquire()
                    group.create_task(send(_interactions(name, period, rows)))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def watch(self, period: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the document of a period after each change until its update has ended, by server-sent events.

        Raises:
            CallFailed: nothing has changed for `SILENCE_SECONDS`.
        """
        path = f"/periods/{period}"
        loop = asyncio.get_running_loop()
        last: dict[str, Any] | None = None
        changed_at = loop.time()
        while True:
            try:
                async with self.http.stream("GET", f"{path}/events") as response:
                    if response.status_code == 200:
                        async for document in _documents(response):
                            if document is not None and document != last:
                                last, changed_at = document, loop.time()
                                yield document
                                if document["status"] in ("updated", "quarantined", "skipped"):
                                    return
                            _require_news(path, loop.time() - changed_at)
            except httpx.HTTPError:
                pass  # the stream was cut; a new one begins with the present state
            _require_news(path, loop.time() - changed_at)
            await asyncio.sleep(RETRY_SECONDS)


def _require_news(path: str, silence: float) -> None:
    if silence > SILENCE_SECONDS:
        raise CallFailed(f"GET {path}: nothing has changed for {silence:.0f} seconds")


async def _documents(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """The data of the `status` events of a stream; None for every other line, such as a heartbeat."""
    event = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        if name == "event":
            event = value.strip()
        elif name == "data" and event == "status":
            yield json.loads(value)
        else:
            yield None


def split_batches(timestamps_ms: NDArray[np.int64]) -> Iterator[slice]:
    """Yield the rows of each batch, at most `BATCH`; events of one millisecond stay together where they fit.

    A batch is stored in the order of its event ids. So the order of the log does not depend on which of the batches in
    flight arrives first.
    """
    start, n = 0, len(timestamps_ms)
    while start < n:
        end = min(start + BATCH, n)
        if end < n:
            # The first row of the millisecond that would be cut in two.
            first = int(np.searchsorted(timestamps_ms, timestamps_ms[end], side="left"))
            end = first if first > start else end
        yield slice(start, end)
        start = end


def _interactions(name: str, period: PlayedPeriod, rows: slice) -> bytes:
    """The request body for some rows of a period."""
    columns = zip(
        range(rows.start, rows.stop),
        period.user_ids[rows],
        period.item_ids[rows],
        period.labels[rows].tolist(),
        period.timestamps_ms[rows].tolist(),
        strict=True,
    )
    events: list[dict[str, Any]] = [
        {"event_id": f"{name}-{row:07d}", "user_id": user, "item_id": item, "label": label, "timestamp": timestamp}
        for row, user, item, label, timestamp in columns
    ]
    # Not strict: a stream without fields has no contexts.
    for event, context in zip(events, period.contexts[rows], strict=False):
        event["context"] = context
    return orjson.dumps({"interactions": events})
