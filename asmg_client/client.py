"""The client of programs without an event loop; any number of threads may use one."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self, TypeVar

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
from asmg_client.methods import blocking
from asmg_client.retries import Attempts, Retry
from asmg_client.streams import PeriodEvents, period_events

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A client of one service, with a pool of connections.

    It has a method for each function of `calls` and `admin_calls` in this package. After a fork the child process has a
    pool of its own.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        key: an API key; the one in `ASMG_KEY` if it is None.
        timeouts: of each attempt.
        pool: of connections.
        retry: of calls that may be repeated.
        transport: another way to send, such as `httpx.HTTPTransport(verify=…, proxy=…)`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeouts: Timeouts = Timeouts(),
        pool: Pool = Pool(),
        retry: Retry = Retry(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeouts, self._retry = timeouts, retry
        self._arguments: dict[str, Any] = http_arguments(url, key, timeouts, pool) | {"transport": transport}
        self._connect()

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._http = httpx.Client(**self._arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    predict = blocking(calls.predict)
    predict_batch = blocking(calls.predict_batch)
    interactions = blocking(calls.interactions)
    impressions = blocking(calls.impressions)
    clicks = blocking(calls.clicks)
    put_items = blocking(calls.put_items)
    get_item = blocking(calls.get_item)
    delete_item = blocking(calls.delete_item)
    put_users = blocking(calls.put_users)
    get_user = blocking(calls.get_user)
    delete_user = blocking(calls.delete_user)
    close_period = blocking(calls.close_period)
    retry_period = blocking(calls.retry_period)
    skip_period = blocking(calls.skip_period)
    list_periods = blocking(calls.list_periods)
    get_period = blocking(calls.get_period)
    list_models = blocking(calls.list_models)
    get_model = blocking(calls.get_model)
    list_processes = blocking(calls.list_processes)
    list_audit = blocking(calls.list_audit)
    rollback = blocking(calls.rollback)
    pin = blocking(calls.pin)
    unpin = blocking(calls.unpin)
    get_overview = blocking(admin_calls.get_overview)
    list_alerts = blocking(admin_calls.list_alerts)
    acknowledge_alert = blocking(admin_calls.acknowledge_alert)
    list_webhooks = blocking(admin_calls.list_webhooks)
    add_webhook = blocking(admin_calls.add_webhook)
    rotate_webhook_secret = blocking(admin_calls.rotate_webhook_secret)
    switch_webhook_on = blocking(admin_calls.switch_webhook_on)
    switch_webhook_off = blocking(admin_calls.switch_webhook_off)
    remove_webhook = blocking(admin_calls.remove_webhook)
    list_deliveries = blocking(admin_calls.list_deliveries)
    redeliver = blocking(admin_calls.redeliver)
    get_samples = blocking(admin_calls.get_samples)
    get_replay = blocking(admin_calls.get_replay)
    promote_canary = blocking(admin_calls.promote_canary)
    revert_canary = blocking(admin_calls.revert_canary)
    list_keys = blocking(admin_calls.list_keys)
    create_key = blocking(admin_calls.create_key)
    limit_key = blocking(admin_calls.limit_key)
    revoke_key = blocking(admin_calls.revoke_key)
    health = blocking(calls.health)
    readiness = blocking(calls.readiness)
    request = blocking(calls.request)

    def send(self, call: Call[T]) -> T:
        """Send a call, and again where it may be repeated and fails in a way that passes.

        Raises:
            AsmgError: the last attempt failed (`asmg_client.errors`).
        """
        attempts = Attempts(self._retry, call.repeatable)
        while True:
            try:
                return self.send_once(call, attempts.left())
            except AsmgError as error:
                pause = attempts.pause(error)
            time.sleep(pause)

    def send_once(self, call: Call[T], most_seconds: float = float("inf")) -> T:
        """Send a call one time.

        Args:
            call: that is sent.
            most_seconds: that it may wait at one point, where this is less than the client's timeouts.
        """
        http = self._connected()
        try:
            request = http.build_request(**request_arguments(call, self._timeouts, most_seconds))
            return answer_of(call, http.send(request))
        except httpx.HTTPError as error:
            raise raised(error) from error

    def period_events(self, number: int) -> Iterator[Period]:
        """The period now and after each change, until its update has ended. A stream that breaks off is opened anew."""
        told, call = PeriodEvents(), period_events(number)
        attempts: Attempts | None = None  # since something was read last
        while not told.ended:
            try:
                for text in self._streamed(call):
                    attempts = None
                    yield from told.read(text)
                if not told.ended:
                    raise ConnectionFailed("the stream ended before the update")
            except AsmgError as error:
                attempts = attempts or Attempts(self._retry, call.repeatable)
                pause = attempts.pause(error)
                told.begin()
                time.sleep(pause)

    def _streamed(self, call: Call[Period]) -> Iterator[str]:
        """A stream as it comes."""
        http = self._connected()
        timeouts = replace(self._timeouts, read_seconds=STREAM_READ_SECONDS)
        request = http.build_request(**request_arguments(call, timeouts))
        try:
            response = http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                    raise problem_of(response)
                yield from response.iter_text()
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise raised(error) from error

    def _connected(self) -> httpx.Client:
        """The connections of this process."""
        if self._pid != os.getpid():
            self._connect()
        return self._http
