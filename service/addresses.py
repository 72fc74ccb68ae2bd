"""Checks of the URLs of Postgres, Redis and the object store in the settings, and of IP addresses.

The URL of a server holds a password. A password with a special character that is not encoded changes how the URL is
read: a part of the password becomes the host, which errors and logs name. So a URL is accepted only where it can be
read in one way, and the error for any other repeats nothing of it.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote, unquote_to_bytes

__all__ = [
    "MAX_PORT",
    "SentinelUrl",
    "check_artifacts_url",
    "check_redis_url",
    "checked_postgres_url",
    "in_url",
    "is_loopback",
    "parse_address",
    "parse_sentinel_url",
]

POSTGRES_OPTIONS = (
    "gsslib",
    "host",
    "krbsrvname",
    "passfile",
    "port",
    "service",
    "servicefile",
    "ssl",
    "target_session_attrs",
)
"""Options in the query of a Postgres URL; `ssl` is what libpq calls sslmode."""
SESSION_ATTRIBUTES = ("any", "primary", "read-write")
"""Values of `target_session_attrs`. libpq's others choose a standby, which cannot store anything."""
POSTGRES_PORT = 5432

REDIS_OPTIONS = ("client_name", "db")
"""Options in the query of a Redis URL."""
SENTINEL_OPTIONS = ("client_name", "sentinel_password", "sentinel_username")
"""Options in the query of a Sentinel URL."""
SENTINEL_PORT = 26379
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

_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
_PLAIN = r"[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2}"
_PARTS = re.compile(
    rf"""(?P<scheme>[a-z+]+)://
    (?: (?P<user>(?:{_PLAIN})*) (?: :(?P<password>(?:{_PLAIN}|:)*) )? @ )?
    (?P<places> {_HOST}? (?: :[0-9]{{1,5}} )? (?: ,{_HOST} (?: :[0-9]{{1,5}} )? )* )
    (?P<path> / (?:{_PLAIN}|[:/])* )?
    (?: \? (?P<query>(?:{_PLAIN}|[:/])*) )?""",
    re.VERBOSE,
)
_PLACE = re.compile(rf"(?P<host>{_HOST})?(?: :(?P<port>[0-9]{{1,5}}) )?", re.VERBOSE)
_OBJECTS = re.compile(
    rf"(?:(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(?:/(?:{_PLAIN})+)*/?|file:///(?:{_PLAIN})+(?:/(?:{_PLAIN})+)*/?)"
)
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]")


@dataclass(frozen=True)
class SentinelUrl:
    """What a URL of Redis Sentinel says."""

    sentinels: tuple[tuple[str, int], ...]
    """Host and port of each Sentinel."""
    service: str
    """The name of the master that they watch."""
    redis_url: str
    """How to connect to that master (user, password, database, TLS), as a URL with the first Sentinel as its host."""
    username: str | None
    """Of the Sentinels themselves."""
    password: str | None


@dataclass(frozen=True)
class _Url:
    scheme: str
    user: str | None
    password: str | None
    places: tuple[tuple[str, int | None], ...]
    """Host, empty if there is none, and port of each server."""
    path: str
    query: str

    @property
    def credentials(self) -> str:
        """`USER:PASSWORD@` as in the URL; empty if there are none."""
        password = "" if self.password is None else f":{self.password}"
        return "" if self.user is None else f"{self.user}{password}@"


def checked_postgres_url(url: str) -> str:
    """Check that the URL can be read in one way only; return it as SQLAlchemy reads it.

    That is the URL itself for one host. SQLAlchemy takes a list of hosts (`//h1:5432,h2:5432/d`, as libpq has it) as an
    option for each host instead (`///d?host=h1:5432&host=h2:5432`).

    Raises:
        ValueError: it cannot; the message repeats nothing of the URL.
    """
    parts = _read(url)
    options = _options(parts, POSTGRES_OPTIONS)
    if "/" in parts.path[1:]:
        raise ValueError(f"expected the name of a database behind the host, and no other path; {ENCODE}")
    if not parts.places[0][0] and not {"host", "service"} & options.keys():
        raise ValueError(f"expected a host (or ?host= with the folder of a Unix socket); {ENCODE}")
    if options.get("target_session_attrs", "any") not in SESSION_ATTRIBUTES:
        raise ValueError(f"expected target_session_attrs to be {' or '.join(SESSION_ATTRIBUTES)}; received another")
    if len(parts.places) == 1:
        return url
    if {"host", "port"} & options.keys():
        raise ValueError("expected hosts either before the path or as options; received both")
    if any(not host or "[" in host for host, _ in parts.places):
        raise ValueError("expected only names and IPv4 addresses in a list of hosts")
    hosts = "&".join(f"host={host}:{port or POSTGRES_PORT}" for host, port in parts.places)
    return f"{parts.scheme}://{parts.credentials}{parts.path or '/'}?{hosts}{'&' if parts.query else ''}{parts.query}"


def check_redis_url(url: str) -> None:
    """Check that a URL of `redis://`, `rediss://` or `unix://` can be read in one way only.

    Raises:
        ValueError: it cannot; the message repeats nothing of the URL.
    """
    parts = _read(url)
    options = _options(parts, REDIS_OPTIONS + (TLS_OPTIONS if parts.scheme == "rediss" else ()))
    _check_redis_user(parts)
    (host, port), *others = parts.places
    if others:
        raise ValueError(f"expected one host; received more (redis+sentinel:// takes a list of Sentinels); {ENCODE}")
    if not options.get("db", "0").isdecimal():
        raise ValueError("expected the number of a database as the option db")
    if parts.scheme == "unix":
        if host or port is not None or not parts.path.strip("/"):
            raise ValueError(f"expected unix:// and an absolute path, that is three slashes; {ENCODE}")
        return
    if not host:
        raise ValueError(f"expected a host; {ENCODE}")
    if parts.path not in ("", "/") and not parts.path[1:].isdecimal():
        raise ValueError(f"expected the number of a database behind the host, and no other path; {ENCODE}")


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Read `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB`; with `rediss+sentinel` all use TLS.

    User and password are those of Redis. The Sentinels' own are the options `sentinel_username` and
    `sentinel_password`.

    Raises:
        ValueError: the URL can be read in several ways, or lacks a host or the service; the message repeats nothing
            of the URL.
    """
    parts = _read(url)
    scheme = parts.scheme.partition("+")[0]
    options = _options(parts, SENTINEL_OPTIONS + (TLS_OPTIONS if scheme == "rediss" else ()))
    _check_redis_user(parts)
    if not all(host for host, _ in parts.places):
        raise ValueError(f"expected the hosts of the Sentinels, separated by commas; {ENCODE}")
    service, slash, number = parts.path[1:].partition("/")
    if not service or (slash and not number.isdecimal()):
        raise ValueError(
            f"expected /SERVICE or /SERVICE/DB behind the Sentinels, with the number of a database; {ENCODE}"
        )
    sentinels = tuple((host.strip("[]"), port or SENTINEL_PORT) for host, port in parts.places)
    own = {name: unquote(value) for name, value in options.items() if name.startswith("sentinel_")}
    others = "&".join(f"{name}={value}" for name, value in options.items() if name not in own)
    redis_url = f"{scheme}://{parts.credentials}{parts.places[0][0]}/{number or 0}{'?' if others else ''}{others}"
    return SentinelUrl(
        sentinels, unquote(service), redis_url, own.get("sentinel_username"), own.get("sentinel_password")
    )


def _check_redis_user(parts: _Url) -> None:
    if parts.user and not parts.password:
        raise ValueError("expected no user name without a password (a password alone is written :PASSWORD@)")


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


def _read(url: str) -> _Url:
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
    places = tuple(_place(text) for text in found["places"].split(","))
    return _Url(found["scheme"], found["user"], found["password"], places, found["path"] or "", found["query"] or "")


def _place(text: str) -> tuple[str, int | None]:
    found = _PLACE.fullmatch(text)
    assert found is not None, "a part of what _PARTS has matched"
    host, port = found["host"] or "", found["port"]
    if port is not None and not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"expected a port of 1 to {MAX_PORT}; {ENCODE}")
    if host.startswith("[") and parse_address(host[1:-1]) is None:
        raise ValueError("expected an IPv6 address in the brackets")
    return host, None if port is None else int(port)


def _options(parts: _Url, known: Collection[str]) -> dict[str, str]:
    options = dict[str, str]()
    for option in parts.query.split("&"):
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
