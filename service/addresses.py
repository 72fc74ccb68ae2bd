"""Checks of the URLs of Postgres, Redis and the object store in the settings, and of IP addresses.

The URL of a server holds a password. A password with a special character that is not encoded changes how the URL is
read: a part of the password becomes the host, which errors and logs name. So a URL is accepted only where it can be
read in one way, and the error for any other repeats nothing of it.
"""

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote_to_bytes

__all__ = [
    "MAX_PORT",
    "check_artifacts_url",
    "check_postgres_url",
    "check_redis_url",
    "in_url",
    "is_loopback",
    "parse_address",
]

POSTGRES_OPTIONS = ("gsslib", "host", "krbsrvname", "passfile", "port", "service", "servicefile", "ssl")
"""Options in the query of a Postgres URL; `ssl` is what libpq calls sslmode."""
REDIS_OPTIONS = ("client_name", "db")
"""Options in the query of a Redis URL."""
TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
)
"""Further options in the query of a `rediss://` URL."""

MAX_PORT = 65535
"""The largest TCP port."""

ENCODE = (
    "a user name, password or option has to be percent-encoded "
    "(@ as %40, # as %23, / as %2F, ? as %3F, % as %25, every other character but letters, digits and - . _ ~ too)"
)

_PLAIN = r"[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2}"
_PARTS = re.compile(
    rf"""(?P<scheme>[a-z+]+)://
    (?: (?P<user>(?:{_PLAIN})*) (?: :(?P<password>(?:{_PLAIN}|:)*) )? @ )?
    (?P<host> [A-Za-z0-9._-]+ | \[[0-9A-Fa-f:.]+\] )?
    (?: :(?P<port>[0-9]{{1,5}}) )?
    (?P<path> / (?:{_PLAIN}|[:/])* )?
    (?: \? (?P<query>(?:{_PLAIN}|[:/])*) )?""",
    re.VERBOSE,
)
_OBJECTS = re.compile(
    rf"(?:(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(?:/(?:{_PLAIN})+)*/?|file:///(?:{_PLAIN})+(?:/(?:{_PLAIN})+)*/?)"
)
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]")


def check_postgres_url(url: str) -> None:
    """Check that the URL can be read in one way only.

    Raises:
        ValueError: it cannot; the message repeats nothing of the URL.
    """
    parts = _read(url)
    options = _options(parts, POSTGRES_OPTIONS)
    if "/" in (parts["path"] or "")[1:]:
        raise ValueError(f"expected the name of a database behind the host, and no other path; {ENCODE}")
    if parts["host"] is None and not {"host", "service"} & options.keys():
        raise ValueError(f"expected a host (or ?host= with the folder of a Unix socket); {ENCODE}")


def check_redis_url(url: str) -> None:
    """Check that a URL of `redis://`, `rediss://` or `unix://` can be read in one way only.

    Raises:
        ValueError: it cannot; the message repeats nothing of the URL.
    """
    parts = _read(url)
    options = _options(parts, REDIS_OPTIONS + (TLS_OPTIONS if parts["scheme"] == "rediss" else ()))
    path = parts["path"] or ""
    if parts["user"] and not parts["password"]:
        raise ValueError("expected no user name without a password (a password alone is written :PASSWORD@)")
    if not options.get("db", "0").isdecimal():
        raise ValueError("expected the number of a database as the option db")
    if parts["scheme"] == "unix":
        if parts["host"] is not None or parts["port"] is not None or not path.strip("/"):
            raise ValueError(f"expected unix:// and an absolute path, that is three slashes; {ENCODE}")
        return
    if parts["host"] is None:
        raise ValueError(f"expected a host; {ENCODE}")
    if path not in ("", "/") and not path[1:].isdecimal():
        raise ValueError(f"expected the number of a database behind the host, and no other path; {ENCODE}")


def check_artifacts_url(url: str) -> None:
    """Check that the URL names a place in an object store that outlives the process, and nothing else.

    Raises:
        ValueError: it does not; the message repeats nothing of it.
    """
    if not _OBJECTS.fullmatch(url):
        raise ValueError(
            "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER, without "
            "credentials or options, which belong into the environment"
        )


def _read(url: str) -> dict[str, str | None]:
    if "#" in url:
        raise ValueError(f"expected no fragment (#); {ENCODE}")
    if _NO_ESCAPE.search(url):
        raise ValueError(f"expected two hexadecimal digits of a printable character behind each %; {ENCODE}")
    if url.count("@") > 1:
        raise ValueError(f"expected one @ at most; received more; {ENCODE}")
    try:
        unquote_to_bytes(url).decode()
    except UnicodeError:
        raise ValueError(f"expected percent-encoded UTF-8; {ENCODE}") from None
    found = _PARTS.fullmatch(url)
    if found is None:
        raise ValueError(f"expected SCHEME://USER:PASSWORD@HOST:PORT/DATABASE; {ENCODE}")
    parts = found.groupdict()
    if parts["port"] is not None and not 0 < int(parts["port"]) <= MAX_PORT:
        raise ValueError(f"expected a port of 1 to {MAX_PORT}; {ENCODE}")
    host = parts["host"] or ""
    if host.startswith("[") and parse_address(host[1:-1]) is None:
        raise ValueError("expected an IPv6 address in the brackets")
    return parts


def _options(parts: dict[str, str | None], known: Collection[str]) -> dict[str, str]:
    options = dict[str, str]()
    for option in (parts["query"] or "").split("&"):
        name, is_given, value = option.partition("=")
        if option and (name not in known or not is_given):
            raise ValueError(f"expected no options but {', '.join(known)}; received another; {ENCODE}")
        if option:
            options[name] = value
    return options


def parse_address(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address, IPv4 also where it is written as IPv6 (`::ffff:192.0.2.1`); None for a host name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether the address reaches only this host: `localhost`, 127.0.0.0/8 or ::1."""
    address = parse_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def in_url(host: str) -> str:
    """The host as it is written in a URL: IPv6 in brackets."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host
