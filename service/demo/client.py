"""The public HTTP API as the demo calls it."""

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

__all__ = ["Api", "CallFailed"]

BATCH = 5_000
"""Interactions or items of a call."""
IN_FLIGHT = 3
"""Batches sent at once."""
CALL_SECONDS = 60.0
RETRY_SECONDS = 0.5
SILENCE_SECONDS = 600.0
"""So long without any news of an update, it is taken for lost."""

JSON = {"Content-Type": "application/json"}


class CallFailed(ServiceError):
    """A call did not answer as it should."""

    title = "Call failed"
    slug = "call-failed"


class Api:
    """A client of the service.

    Args:
        http: with the address of the service and a key of all scopes.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @classmethod
    def connect(cls, url: str, key: str) -> "Api":
        """A client with connections of its own."""
        # Kept alive for less than the server does, so that no call meets a connection that is just being closed; and
        # no proxy of the environment between two processes of this host.
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=2)
        headers = {"Authorization": f"Bearer {key}"}
        return cls(
            httpx.AsyncClient(base_url=url, headers=headers, timeout=CALL_SECONDS, limits=limits, trust_env=False)
        )

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The document that a call answers.

        Raises:
            CallFailed: it did not answer, or a problem.
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
        """Say what is new of items and users; their features hold from the period's first event on."""
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
        """Send the log of a period, some batches at once; events are called `name` and their row.

        Raises:
            CallFailed: a batch was not taken.
        """
        free = asyncio.Semaphore(IN_FLIGHT)

        async def send(body: bytes) -> None:
            try:
                await self.call("POST", "/interactions", body)
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                for rows in _batches(period.timestamps_ms):
                    await free.acquire()
                    group.create_task(send(_interactions(name, period, rows)))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def watch(self, period: int) -> AsyncIterator[dict[str, Any]]:
        """The document of a period after each change, the last one when its update has ended; by server-sent events.

        Raises:
            CallFailed: nothing has changed for a very long time.
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
                pass  # the stream was cut; it begins with the present state again
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


def _batches(timestamps_ms: NDArray[np.int64]) -> Iterator[slice]:
    """Rows of each batch. Events of one millisecond stay together, and a batch is stored in the order of its event
    ids: so the log has one order, whichever of the batches in flight comes first.
    """
    start, n = 0, len(timestamps_ms)
    while start < n:
        end = min(start + BATCH, n)
        if end < n:
            # The first row of the millisecond that the cut would fall into.
            first = int(np.searchsorted(timestamps_ms, timestamps_ms[end], side="left"))
            end = first if first > start else end
        yield slice(start, end)
        start = end


def _interactions(name: str, period: PlayedPeriod, rows: slice) -> bytes:
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
    for event, context in zip(events, period.contexts[rows], strict=False):  # none of a stream without fields
        event["context"] = context
    return orjson.dumps({"interactions": events})
