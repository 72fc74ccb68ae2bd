"""The client of programs with an event loop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Self, TypeVar

import httpx

from asmg_client import admin_calls, calls
from asmg_client.answers import Period
from asmg_client.call import Call
from asmg_client.errors import AsmgError, ConnectionFailed
from asmg_client.exchange import (
    STREAM_READ_SECONDS,
    Pool,
    Timeouts,
    answer_of,
    http_arguments,
    problem_of,
    raised,
    request_arguments,
)
from asmg_client.methods import awaitable
from asmg_client.retries import Attempts, Retry
from asmg_client.streams import PeriodEvents, period_events

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """A client of one service, with a pool of connections.

    It has a method for each function of `calls` and `admin_calls` in this package. All calls come from one event loop.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        key: an API key; the one in `ASMG_KEY` if it is None.
        timeouts: of each attempt.
        pool: of connections.
        retry: of calls that may be repeated.
        transport: another way to send, such as `httpx.AsyncHTTPTransport(verify=…, proxy=…)`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeouts: Timeouts = Timeouts(),
        pool: Pool = Pool(),
        retry: Retry = Retry(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeouts, self._retry = timeouts, retry
        self._http = httpx.AsyncClient(**http_arguments(url, key, timeouts, pool), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    predict = awaitable(calls.predict)
    predict_batch = awaitable(calls.predict_batch)
    interactions = awaitable(calls.interactions)
    impressions = awaitable(calls.impressions)
    clicks = awaitable(calls.clicks)
    put_items = awaitable(calls.put_items)
    get_item = awaitable(calls.get_item)
    delete_item = awaitable(calls.delete_item)
    put_users = awaitable(calls.put_users)
    get_user = awaitable(calls.get_user)
    delete_user = awaitable(calls.delete_user)
    close_period = awaitable(calls.close_period)
    retry_period = awaitable(calls.retry_period)
    skip_period = awaitable(calls.skip_period)
    list_periods = awaitable(calls.list_periods)
    get_period = awaitable(calls.get_period)
    list_models = awaitable(calls.list_models)
    get_model = awaitable(calls.get_model)
    list_processes = awaitable(calls.list_processes)
    list_audit = awaitable(calls.list_audit)
    rollback = awaitable(calls.rollback)
    pin = awaitable(calls.pin)
    unpin = awaitable(calls.unpin)
    get_overview = awaitable(admin_calls.get_overview)
    list_alerts = awaitable(admin_calls.list_alerts)
    acknowledge_alert = awaitable(admin_calls.acknowledge_alert)
    list_webhooks = awaitable(admin_calls.list_webhooks)
    add_webhook = awaitable(admin_calls.add_webhook)
    rotate_webhook_secret = awaitable(admin_calls.rotate_webhook_secret)
    switch_webhook_on = awaitable(admin_calls.switch_webhook_on)
    switch_webhook_off = awaitable(admin_calls.switch_webhook_off)
    remove_webhook = awaitable(admin_calls.remove_webhook)
    list_deliveries = awaitable(admin_calls.list_deliveries)
    redeliver = awaitable(admin_calls.redeliver)
    get_samples = awaitable(admin_calls.get_samples)
    get_replay = awaitable(admin_calls.get_replay)
    promote_canary = awaitable(admin_calls.promote_canary)
    revert_canary = awaitable(admin_calls.revert_canary)
    list_keys = awaitable(admin_calls.list_keys)
    create_key = awaitable(admin_calls.create_key)
    limit_key = awaitable(admin_calls.limit_key)
    revoke_key = awaitable(admin_calls.revoke_key)
    health = awaitable(calls.health)
    readiness = awaitable(calls.readiness)
    request = awaitable(calls.request)

    async def send(self, call: Call[T]) -> T:
        """Send a call, and again where it may be repeated and fails in a way that passes.

        Raises:
            AsmgError: the last attempt failed (`asmg_client.errors`).
        """
        attempts = Attempts(self._retry, call.repeatable)
        while True:
            try:
                return await self.send_once(call, attempts.left())
            except AsmgError as error:
                pause = attempts.pause(error)
            await asyncio.sleep(pause)

    async def send_once(self, call: Call[T], most_seconds: float = float("inf")) -> T:
        """Send a call one time.

        Args:
            call: that is sent.
            most_seconds: that it may wait at one point, where this is less than the client's timeouts.
        """
        try:
            request = self._http.build_request(**request_arguments(call, self._timeouts, most_seconds))
            return answer_of(call, await self._http.send(request))
        except httpx.HTTPError as error:
            raise raised(error) from error

    async def period_events(self, number: int) -> AsyncIterator[Period]:
        """The period now and after each change, until its update has ended. A stream that breaks off is opened anew."""
        told, call = PeriodEvents(), period_events(number)
        attempts: Attempts | None = None  # since something was read last
        while not told.ended:
            try:
                async for text in self._streamed(call):
                    attempts = None
                    for period in told.read(text):
                        yield period
                if not told.ended:
                    raise ConnectionFailed("the stream ended before the update")
            except AsmgError as error:
                attempts = attempts or Attempts(self._retry, call.repeatable)
                pause = attempts.pause(error)
                told.begin()
                await asyncio.sleep(pause)

    async def _streamed(self, call: Call[Period]) -> AsyncIterator[str]:
        """A stream as it comes."""
        timeouts = replace(self._timeouts, read_seconds=STREAM_READ_SECONDS)
        request = self._http.build_request(**request_arguments(call, timeouts))
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise problem_of(response)
                async for text in response.aiter_text():
                    yield text
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise raised(error) from error
