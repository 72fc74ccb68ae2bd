"""The clients of a chaos run. They retry until they are answered, as clients of a real installation should."""

import asyncio
import random
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import httpx

from benchmarks.chaos.stream import BATCH, Log, context_of
from benchmarks.chaos.verdict import SHOWN, Record, content_of
from service.demo.client import CallFailed

CALL_SECONDS = 10.0
"""Timeout of a call."""
RETRY_SECONDS = 0.3
IN_FLIGHT = 3
"""Batches sent at the same time."""
PREDICTERS = 3
"""Clients that ask for predictions."""
PREDICT_EVERY_SECONDS = 0.06
"""Time between two predictions of all of them together."""
RESENT = 0.1
"""Share of the acknowledged batches that are sent once more."""
MAY_BE_BEHIND = ("took over", "taken over", "is not registered")
"""In the answers of a process that refuses to be behind the others."""
NOT_LOADED = "no model is loaded yet"
"""In the answer of a process that has not loaded a snapshot yet."""


class Clients:
    """Clients that send the log, and clients that ask for predictions.

    Args:
        hosts: for each api host a client with its address and a key of all scopes. They are asked in turn.
        log: what to send.
        record: receives what was sent and answered.
        seed: of the predictions, and of what is sent twice.
    """

    def __init__(self, hosts: Sequence[httpx.AsyncClient], log: Log, record: Record, *, seed: int) -> None:
        self._hosts, self._log, self._record = cycle(hosts), log, record
        self._random = random.Random(seed)
        self._users = sorted({event["user_id"] for period in log.periods for event in period})
        self._items = [item["item_id"] for item in log.items[0]]

    async def send(self, seconds: float) -> None:
        """Send the catalogue, then one period after the other, and close each; spread over `seconds`."""
        for items in self._log.items:
            await self._put("item", items)
        started = time.monotonic()
        window = seconds / len(self._log.periods)
        for number, events in enumerate(self._log.periods, 1):
            free = asyncio.Semaphore(IN_FLIGHT)
            async with asyncio.TaskGroup() as group:
                users, halfway = self._log.users[number - 1], started + window * (number - 0.5)
                group.create_task(self._put("user", users, halfway))
                for start in range(0, len(events), BATCH):
                    due = started + window * (number - 1 + start / len(events))
                    group.create_task(self._ingest(number, events[start : start + BATCH], free, due))
            await asyncio.sleep(max(0.0, started + window * number - time.monotonic()))
            headers = {"Idempotency-Key": f"chaos-{number}"}
            await self._call_until("POST", "/periods/close", {"expected_period": number}, 202, headers)
            self._record.closes += 1

    async def _ingest(self, number: int, events: list[dict[str, Any]], free: asyncio.Semaphore, due: float) -> None:
        """Send a batch when it is due, a moment of `time.monotonic`."""
        again = self._random.random() < RESENT
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with free:
            for event in events:
                self._record.sent[event["event_id"]] = (
                    number,
                    event["user_id"],
                    event["item_id"],
                    event["label"],
                    event["timestamp"],
                    content_of(event["context"], event["weight"]),
                )
            body = {"interactions": events}
            self._record.retried_batches += await self._call_until("POST", "/interactions", body, 200)
            self._record.acknowledged.update(event["event_id"] for event in events)
            if again:
                await self._call_until("POST", "/interactions", body, 200)
                self._record.resent_batches += 1

    async def _put(self, kind: str, documents: list[dict[str, Any]], due: float = 0.0) -> None:
        """Send users or items with features when they are due, some of them twice."""
        again = self._random.random() < RESENT
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        for _ in range(1 + again):
            await self._call_until("PUT", f"/{kind}s", {f"{kind}s": documents}, 200)
        for document in documents:
            key = (kind, document[f"{kind}_id"], document["timestamp"])
            self._record.features[key] = content_of(document["features"])

    async def _call_until(
        self, method: str, path: str, body: Any, status: int, headers: dict[str, str] | None = None
    ) -> int:  # fmt: skip
        """Call until the answer has this status; return how many calls failed before."""
        failed, started = 0, time.monotonic()
        while True:
            try:
                response = await next(self._hosts).request(
                    method, path, json=body, headers=headers, timeout=CALL_SECONDS
                )
            except httpx.HTTPError:
                pass
            else:
                if response.status_code == status:
                    if failed:
                        self._record.recovery_seconds.append(round(time.monotonic() - started, 3))
                    return failed
                if response.status_code < 500 and response.status_code != 429:
                    raise CallFailed(f"{method} {path} answered {response.status_code}: {response.text[:300]}")
            failed += 1
            await asyncio.sleep(RETRY_SECONDS)

    async def predict(self) -> None:
        """Ask for predictions at a limited rate until cancelled."""
        await asyncio.gather(*(self._ask() for _ in range(PREDICTERS)))

    async def _ask(self) -> None:
        while True:
            sent = time.monotonic()
            items: list[Any] = self._random.sample(self._items, 10)
            items[:2] = [{"id": item, "context": context_of(self._random)} for item in items[:2]]
            user, context = self._random.choice(self._users), context_of(self._random)
            body = {"user_id": user, "items": items, "context": context}
            newest = self._record.newest_version
            try:
                response = await next(self._hosts).post("/predict", json=body, timeout=CALL_SECONDS)
            except httpx.TimeoutException:
                self._record.predictions["timeout"] += 1
            except httpx.HTTPError:
                self._record.predictions["refused"] += 1
            else:
                self._note(response, newest)
            await asyncio.sleep(max(0.0, PREDICT_EVERY_SECONDS * PREDICTERS - (time.monotonic() - sent)))

    def _note(self, response: httpx.Response, newest: int) -> None:
        """Record an answer; `newest` is the newest version that had been answered when the question was sent."""
        record = self._record
        record.predictions[str(response.status_code)] += 1
        if response.status_code == 200:
            version = response.json()["model_version"]
            record.newest_version = max(record.newest_version, version)
            if version < newest:
                record.gone_back += 1
        elif response.status_code == 503 and any(words in response.text for words in MAY_BE_BEHIND):
            record.may_be_behind += 1
        elif response.status_code >= 500:
            if response.status_code == 503 and NOT_LOADED in response.text:
                record.not_loaded += 1
                return
            record.failed_predictions += 1
            if len(record.server_errors) < SHOWN:
                record.server_errors.append(f"{response.status_code} {response.text[:200]}")
