"""The TCP socket on which `asmg serve` accepts connections, and the question whether the service behind it is ready."""

import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from service.addresses import in_url, parse_address
from service.errors import ConfigurationError

__all__ = ["LOOPBACK", "is_ready", "listen"]

LOOPBACK = "127.0.0.1"
"""The IPv4 address that only this host can reach."""

BACKLOG = 2048
"""Connections that may wait to be accepted; uvicorn's own default."""

PROBE_SECONDS = 2.0
"""Timeout of one request to /readyz."""


def listen(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket; where the host supports it, `::` accepts IPv4 too.

    Args:
        host: an address or name of this host.
        port: 0 for any free port.

    Raises:
        ConfigurationError: the address is in use, or is not one of this host.
    """
    try:
        host = str(parse_address(host) or host)  # 127.0.0.1 also where it is written ::ffff:127.0.0.1
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {in_url(host)}:{port}: {error.strerror or error}") from None


def is_ready(host: str, port: int, *, tls: bool) -> bool:
    """Return whether GET /readyz answers 200.

    Args:
        host: the address that was given to `listen`; an unspecified one (0.0.0.0, ::) is asked on its loopback.
        port: the port of the socket.
        tls: whether the service speaks HTTPS.
    """
    address = parse_address(host)
    if address is not None and address.is_unspecified:
        host = "::1" if address.version == 6 else LOOPBACK
    connection: HTTPConnection
    if tls:
        # It asks a child of this process, whose certificate is made out to another name.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=PROBE_SECONDS, context=context)
    else:
        connection = HTTPConnection(host, port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
