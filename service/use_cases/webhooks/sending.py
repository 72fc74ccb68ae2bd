"""One attempt to deliver: the message and the HTTP request, with httpx, which api processes do without."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import orjson

from service import __version__
from service.addresses import in_url
from service.storage.postgres.repositories import Delivery
from service.use_cases.webhooks.signing import sign
from service.use_cases.webhooks.targets import Address, Forbidden, Network, Target, parse_target, resolve

__all__ = ["Outcome", "body_of", "make_client", "send"]

MAX_ANSWER_BYTES = 4096
"""The most bytes of a response that are read."""

SHOWN_CHARACTERS = 200
"""The most characters of a response that are shown."""

MOST_ADDRESSES = 4
"""Addresses of a host that are tried before the attempt has failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    answer: int | None
    """Status of the response; None if there was none."""
    error: str | None
    """What went wrong; None if the endpoint has accepted the message."""


def body_of(delivery: Delivery) -> bytes:
    """The JSON body, the same at every attempt."""
    return orjson.dumps(
        {
            "id": delivery.message,
            "event": delivery.event,
            "occurred_at": delivery.occurred_at,
            "sequence": delivery.number,
            "data": delivery.data,
        },
        option=orjson.OPT_SORT_KEYS,
    )


def make_client() -> httpx.AsyncClient:
    """A client for `send`. It follows no redirects, reads no proxies from the environment and keeps no connections."""
    return httpx.AsyncClient(
        verify=httpx.create_ssl_context(),
        trust_env=False,
        timeout=None,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def send(
    client: httpx.AsyncClient,
    url: str,
    signed_by: Sequence[str],
    delivery: Delivery,
    *,
    networks: Sequence[Network],
    seconds: float,
) -> Outcome:
    """Send a message once, to an address that was checked.

    Args:
        client: of `make_client`.
        url: of the webhook.
        signed_by: secrets, the newest first.
        delivery: what is to be sent.
        networks: those that webhooks may reach beside public ones.
        seconds: that it may take.
    """
    body, timestamp = body_of(delivery), int(time.time())
    signatures = " ".join(sign(secret, delivery.message, timestamp, body) for secret in signed_by)
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"asmg-service/{__version__}",
        "webhook-id": delivery.message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures,
    }
    try:
        async with asyncio.timeout(seconds):
            target = parse_target(url)
            addresses = await resolve(target, networks)
            return await _post(client, target, addresses[:MOST_ADDRESSES], headers, body)
    except TimeoutError:
        return Outcome(None, f"no answer within {seconds:g} s")
    except (Forbidden, OSError, ValueError) as error:
        return Outcome(None, str(error))
    except httpx.HTTPError as error:
        return Outcome(None, f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS])


async def _post(
    client: httpx.AsyncClient, target: Target, addresses: Sequence[Address], headers: dict[str, str], body: bytes
) -> Outcome:
    """Post to the first address that can be connected to."""
    *others, last = addresses
    for address in others:
        try:
            return await _post_to(client, target, address, headers, body)
        except httpx.ConnectError:
            pass
    return await _post_to(client, target, last, headers, body)


async def _post_to(
    client: httpx.AsyncClient, target: Target, address: Address, headers: dict[str, str], body: bytes
) -> Outcome:
    """Post to one address. The name is in `Host` and in the TLS handshake, whose certificate has to be its own."""
    url = f"{target.scheme}://{in_url(str(address))}:{target.port}{target.path}"
    headers = {**headers, "host": target.place.partition("://")[2]}
    extensions = {"sni_hostname": target.host}
    async with client.stream("POST", url, headers=headers, content=body, extensions=extensions) as response:
        status = response.status_code
        if response.is_success:
            return Outcome(status, None)
        if response.is_redirect:
            return Outcome(status, f"HTTP {status}: a redirect, which is not followed")
        said = await anext(response.aiter_raw(MAX_ANSWER_BYTES), b"")
        shown = "".join(c if c.isprintable() else " " for c in said.decode(errors="replace"))[:SHOWN_CHARACTERS].strip()
        return Outcome(status, f"HTTP {status}: {shown}" if shown else f"HTTP {status}")
