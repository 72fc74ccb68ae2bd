"""Where webhooks may point: their URLs, and the addresses that the names in them stand for.

Whoever may add a webhook could make the worker post to servers that only the worker reaches: the metadata service of a
cloud, or a database. So an address has to be a public one, or one of `ASMG_WEBHOOK_NETWORKS`. It is checked when it is
connected to, after the name was resolved, because a name may stand for another address each time.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from service.addresses import MAX_PORT, parse_address
from service.limits import MAX_URL_LENGTH

__all__ = ["Address", "Forbidden", "Network", "Target", "parse_target", "permit", "resolve"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}

_PART = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/{_PART})?(?P<query>\?(?:{_PART}|\?)*)?"
)

TRANSLATED = tuple(ip_network(network) for network in ("2002::/16", "64:ff9b::/96", "64:ff9b:1::/48"))
"""IPv6 networks whose addresses stand for any IPv4 address."""


class Forbidden(Exception):
    """An address that webhooks may not reach."""


@dataclass(frozen=True, slots=True)
class Target:
    """The URL of a webhook, in parts."""

    scheme: str
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def place(self) -> str:
        """The URL up to the port: what may be logged, since path and query may hold a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")


def parse_target(url: str) -> Target:
    """The parts of a URL.

    Raises:
        ValueError: it is no URL of HTTP that can be read in one way; the message repeats nothing of it.
    """
    found = _URL.fullmatch(url) if len(url) <= MAX_URL_LENGTH else None
    if found is None:
        raise ValueError(
            f"expected a URL of at most {MAX_URL_LENGTH} characters: https://HOST/PATH, or http://…, with percent-"
            "encoded special characters and without a user, a password and a fragment"
        )
    host = found["host"].lower()
    if host.startswith("[") and parse_address(host[1:-1]) is None:
        raise ValueError("expected an IPv6 address in the brackets")
    port = DEFAULT_PORTS[found["scheme"]] if found["port"] is None else int(found["port"])
    if not 0 < port <= MAX_PORT:
        raise ValueError(f"expected a port of 1 to {MAX_PORT}")
    return Target(found["scheme"], host.strip("[]"), port, (found["path"] or "/") + (found["query"] or ""))


def permit(target: Target, address: Address, networks: Sequence[Network]) -> None:
    """Return if a webhook may connect to the address.

    Args:
        target: of the webhook.
        address: one that its host stands for.
        networks: those that are allowed beside public ones.

    Raises:
        Forbidden: it may not.
    """
    if any(address in network for network in networks):
        return
    translated = any(address in network for network in TRANSLATED)
    if not address.is_global or address.is_multicast or translated:
        raise Forbidden(f"{address} is no public address, nor in ASMG_WEBHOOK_NETWORKS")
    if target.scheme != "https":
        raise Forbidden(f"expected https:// to {address}, which is not in ASMG_WEBHOOK_NETWORKS")


async def resolve(target: Target, networks: Sequence[Network]) -> Sequence[Address]:
    """The addresses of a target, in the order of preference.

    Raises:
        Forbidden: it has one that webhooks may not reach.
        OSError: its name cannot be resolved.
    """
    given = parse_address(target.host)
    if given is None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        parsed = [parse_address(str(sockaddr[0])) for *_, sockaddr in found]
    else:
        parsed = [given]
    addresses = [address for address in dict.fromkeys(parsed) if address is not None]
    for address in addresses:
        permit(target, address, networks)
    if not addresses:
        raise OSError("the name has no address")
    return addresses
