"""URLs of servers have one reading or are refused, no password is shown, and local addresses are recognised."""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import typer
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import make_url

from service.addresses import in_url, is_loopback, parse_sentinel_url
from service.cli.errors import plain_errors
from service.processes.child import environment_of
from service.settings import Settings
from service.storage.embedded.servers import EmbeddedServers
from service.storage.redis.connection import connect, connection_problem
from tests.service.programs import asmg

LETTERS = frozenset("QXZJ")
"""Of no message, so that what is found of them was in the password."""
PASSWORDS = st.text("QXZJ79@#/?%:[]&=+,;!$*'()~^|\\\"<> {}é", min_size=5, max_size=24)
PLACES = ("{}", ":{}", "u:{}")


def told(**given_settings: str) -> tuple[Settings | None, str]:
    """The settings, or else everything that a program says of them."""
    said = StringIO()
    settings = None
    try:
        with redirect_stderr(said), plain_errors():
            settings = Settings(**given_settings)
    except typer.Exit:
        pass
    try:
        Settings(**given_settings)
    except ValidationError as error:
        said.write(f"{error} {error!r} {error.json(include_input=False)}")
    return settings, said.getvalue()


def assert_told_nothing(password: str, said: str) -> None:
    pieces = {password[start : start + 4] for start in range(len(password) - 3)}
    for piece in pieces:
        assert piece not in said or LETTERS.isdisjoint(piece), said


@given(password=PASSWORDS)
@example("pa@ss:6379")
@example("QX#9@Z")
@example("QX79/Z7")
@example("79/7?ZXQJ")
@example("7/7")
@example("QX%zzQX")
@example("QX%FFQX")
@example("QX%0AQX")
def test_a_redis_url_is_read_as_it_was_meant_or_refused_without_a_word_of_it(password: str) -> None:
    url = f"redis://:{password}@redis-7.internal:6380/3"
    settings, said = told(postgres_dsn="postgresql://h/d", redis_url=url)
    if settings is None:
        assert "ASMG_REDIS_URL: " in said
        assert_told_nothing(password, said)
    else:
        place = connect(url).connection_pool.connection_kwargs
        wanted = {"host": "redis-7.internal", "port": 6380, "db": 3, "password": unquote(password)}
        assert {name: place[name] for name in wanted} == wanted
        assert_told_nothing(password, repr(settings))


@given(password=PASSWORDS)
@example("QX@79/d")
@example("QX/79@ZZZZ")
def test_so_is_one_of_postgres(password: str) -> None:
    dsn = f"postgresql://u:{password}@db.internal:5433/d"
    settings, said = told(postgres_dsn=dsn, redis_url="redis://h")
    if settings is None:
        assert "ASMG_POSTGRES_DSN: " in said
        assert_told_nothing(password, said)
    else:
        url = make_url(str(settings.postgres_dsn))
        assert (url.username, url.password, url.host) == ("u", unquote(password), "db.internal")
        assert (url.port, url.database, dict(url.query)) == (5433, "d", {})
        assert_told_nothing(password, repr(settings))


@given(password=PASSWORDS)
def test_every_password_can_be_given_percent_encoded(password: str) -> None:
    assume(not password.isspace())
    given_settings = {
        "postgres_dsn": f"postgresql://u:{quote(password, safe='')}@h:5432/d",
        "redis_url": f"rediss://u:{quote(password, safe='')}@h/0?ssl_cert_reqs=none",
    }
    settings = Settings(**given_settings)
    assert make_url(str(settings.postgres_dsn)).password == password
    assert connect(str(settings.redis_url)).connection_pool.connection_kwargs["password"] == password


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:QXZ79#QXZ79@h:6379/0", "no fragment (#)"),
        ("redis://:QX@Z79@h", "one @ at most"),
        ("redis://:79/Z79@h", "@ as %40"),
        ("redis://:79?QXZ79@h", "@ as %40"),
        ("redis://h:QXZ79", "@ as %40"),
        ("redis://h:0", "a port of 1 to 65535"),
        ("redis://h:70000", "a port of 1 to 65535"),
        ("redis://", "a host"),
        ("redis://:QXZ79@/0", "a host"),
        ("redis://QXZ79@h", "no user name without a password"),
        ("redis://h/QXZ79", "the number of a database"),
        ("redis://h/0/1", "the number of a database"),
        ("redis://h?db=QXZ79", "the number of a database"),
        ("redis://h?QXZ79=1", "no options but client_name, db"),
        ("redis://h?ssl_cert_reqs=none", "no options but client_name, db"),
        ("redis://h?db", "no options but client_name, db"),
        ("redis://[QXZ79]/0", "@ as %40"),
        ("redis://[1:2]/0", "an IPv6 address in the brackets"),
        ("redis://h/%zz", "two hexadecimal digits"),
        ("redis://:%ff@h", "percent-encoded UTF-8"),
        ("redis://:QX%00Z79@h", "printable"),
        ("unix://tmp/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("QXZ79://h", "starts with redis://"),
        ("redis://h,QXZ79", "one host"),
        ("redis+sentinel://:QXZ79@h", "/SERVICE or /SERVICE/DB"),
        ("redis+sentinel://h/s/QXZ79", "/SERVICE or /SERVICE/DB"),
        ("redis+sentinel://QXZ79@h/s", "no user name without a password"),
        ("redis+sentinel://:QXZ79@/s", "the hosts of the Sentinels"),
        ("redis+sentinel://h/s?ssl_keyfile=QXZ79", "no options but client_name, sentinel_password"),
    ],
)
def test_what_is_wrong_with_a_redis_url_is_said(url: str, said: str) -> None:
    settings, error = told(postgres_dsn="postgresql://h/d", redis_url=url)
    assert settings is None
    assert said in error
    assert "QX" not in error and "Z79" not in error


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://u:QXZ79#QXZ79@h/d", "no fragment (#)"),
        ("postgresql://u:QX@Z79@h/d", "one @ at most"),
        ("postgresql://u:79/Z79@h/d", "@ as %40"),
        ("postgresql://u:p@h/d/QXZ79", "the name of a database"),
        ("postgresql://u:p@/d", "a host"),
        ("postgresql:///QXZ79", "a host"),
        ("postgresql://h,QX Z79/d", "@ as %40"),
        ("postgresql://h:QXZ79/d", "@ as %40"),
        ("postgresql://h,QXZ79/d?host=h", "either before the path or as options"),
        ("postgresql://h,QXZ79:0/d", "a port of 1 to 65535"),
        ("postgresql://QXZ79,[::1]/d", "only names and IPv4 addresses"),
        ("postgresql://h/d?target_session_attrs=QXZ79", "any or primary or read-write"),
        ("postgresql://h:99999/d", "a port of 1 to 65535"),
        ("postgresql://h/d?sslmode=QXZ79", "no options but gsslib, host,"),
        ("postgresql://h/d?host=/tmp&QXZ79", "no options but gsslib, host,"),
        ("mysql://QXZ79/d", "starts with postgresql://"),
    ],
)
def test_what_is_wrong_with_a_dsn_is_said(dsn: str, said: str) -> None:
    settings, error = told(postgres_dsn=dsn, redis_url="redis://h")
    assert settings is None
    assert said in error
    assert "QX" not in error and "Z79" not in error


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/",
        "redis://[::1]:6379/15",
        "redis://:p@h/0?client_name=asmg",
        "redis://u:p:q@h?db=3",
        "rediss://u:p%40q@h:6380/0?ssl_ca_certs=/etc/ssl/ca.pem",
        "unix:///tmp/a%20b.sock?db=2",
        "unix://:p@/tmp/redis.sock",
    ],
)
def test_urls_of_redis_that_can_be_read(url: str) -> None:
    settings = Settings(postgres_dsn="postgresql://h/d", redis_url=url)
    assert settings.redis_url == url
    connect(url)


@pytest.mark.parametrize(
    "rest",
    [
        "h/d",
        "h",
        "u:p:q@h_1.internal:5432/d-1",
        "u:p%2F@[::1]:5432/d",
        "u@/d?host=/var/run/postgresql",
        "/d?service=asmg",
        "u:p@h/d?ssl=require",
    ],
)
def test_dsns_that_can_be_read(rest: str) -> None:
    settings = Settings(postgres_dsn=f"postgres://{rest}", redis_url="redis://h")
    assert settings.postgres_dsn == f"postgresql+asyncpg://{rest}"


def test_embedded_servers_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """The child processes get the addresses of the embedded servers as settings."""
    servers = EmbeddedServers(tmp_path / "ein Ordner #1 @home %41")
    assert Settings(postgres_dsn="postgresql://h/d", redis_url=servers.redis_url).redis_url == servers.redis_url


def test_a_program_says_nothing_of_a_password(tmp_path: Path) -> None:
    place = {"ASMG_DATA_DIR": str(tmp_path), "ASMG_POSTGRES_DSN": "postgresql://h/d"}
    result = asmg("serve", "--port", "0", code=2, **place, ASMG_REDIS_URL="redis://:top@secret:6379#rest@h/0")
    assert result.stderr.startswith("asmg: ASMG_REDIS_URL: ")
    assert "percent-encoded" in result.stderr
    for piece in ("top", "secret", "6379", "rest"):
        assert piece not in result.stdout + result.stderr


def test_children_get_the_settings_of_their_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        root_path="/a",
        trusted_proxies=("10.0.0.0/8", "::1"),
        cors_origins=("https://a.example", "https://b.example"),
        hidden_layers=(32, 16, 8),
        statistics=False,
        evict_after_periods=9,
        start_without_redis=True,
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


async def test_why_a_redis_cannot_be_used(redis_url: str) -> None:
    assert await connection_problem(redis_url) is None
    refused = redis_url.replace("unix://", "unix://nobody:wr0ng@").replace("redis://", "redis://nobody:wr0ng@")
    assert await connection_problem(refused) == "refuses the user name or password"
    assert await connection_problem("redis://127.0.0.1:1") == "does not answer: ConnectionError"
    outside = redis_url.partition("?")[0] + "?db=9999999"
    assert await connection_problem(outside) == "refuses the connection: DB index is out of range"


@pytest.mark.parametrize(
    ("host", "own", "written"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.9.9.9", True, "127.9.9.9"),
        ("localhost", True, "localhost"),
        ("LocalHost", True, "LocalHost"),
        ("::1", True, "[::1]"),
        ("0:0:0:0:0:0:0:1", True, "[0:0:0:0:0:0:0:1]"),
        ("::ffff:127.0.0.1", True, "[::ffff:127.0.0.1]"),
        ("::ffff:192.0.2.1", False, "[::ffff:192.0.2.1]"),
        ("fe80::1%eth0", False, "[fe80::1%25eth0]"),
        ("0.0.0.0", False, "0.0.0.0"),
        ("::", False, "[::]"),
        ("localhost.example.com", False, "localhost.example.com"),
        ("", False, ""),
    ],
)
def test_what_is_of_this_host(host: str, own: bool, written: str) -> None:
    assert is_loopback(host) is own
    assert in_url(host) == written


BAD: list[tuple[str, Any]] = [
    ("cors_origins", "https://a.example/"),
    ("cors_origins", "https://a.example/path"),
    ("cors_origins", "a.example"),
    ("cors_origins", "https://"),
    ("cors_origins", "https://a.example:99999"),
    ("cors_origins", "https://u@a.example"),
    ("cors_origins", "https://*.example"),
    ("cors_origins", "null"),
    ("cors_origins", "*,https://a.example"),
    ("trusted_proxies", "proxy.example"),
    ("trusted_proxies", "10.0.0.1/8"),
    ("trusted_proxies", "*"),
    ("root_path", "recommender"),
    ("root_path", "//evil.example"),
    ("root_path", "/a//b"),
    ("root_path", "/a/../b"),
    ("root_path", "/a?b"),
    ("root_path", "/a b"),
    ("root_path", "/" + "a" * 256),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_front_that_cannot_be(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_a_front_as_it_is_meant() -> None:
    settings = Settings(
        cors_origins="https://Shop.Example, https://a.example:443,http://[::1]:8080, capacitor://localhost",
        trusted_proxies=" 10.0.0.0/8, ::1 ",
        root_path="/a/b-1/",
    )
    assert settings.cors_origins == (
        "https://shop.example",
        "https://a.example",
        "http://[::1]:8080",
        "capacitor://localhost",
    )
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert settings.root_path == "/a/b-1"
    assert Settings(cors_origins="*", root_path="/").cors_origins == ("*",)
    assert Settings(root_path="/").root_path == ""


def test_a_list_of_hosts_is_read_as_libpq_reads_it() -> None:
    settings = Settings(postgres_dsn="postgresql://u:p%40@h1,10.0.0.2:5433/d?ssl=require", redis_url="redis://h")
    url = make_url(str(settings.postgres_dsn))
    _, options = url.get_dialect()().create_connect_args(url)
    expected = {"user": "u", "password": "p@", "database": "d", "host": ["h1", "10.0.0.2"], "port": [5432, 5433]}
    assert options == {**expected, "ssl": "require"}
    again = Settings(postgres_dsn=settings.postgres_dsn, redis_url="redis://h")  # as a child process reads it
    assert again.postgres_dsn == settings.postgres_dsn


def test_a_sentinel_url_tells_two_passwords_apart() -> None:
    url = "rediss+sentinel://u:p%40@s1,[::1]:7/my%20redis/3?sentinel_password=q%26&ssl_cert_reqs=none"
    read = parse_sentinel_url(url)
    assert (read.sentinels, read.service) == ((("s1", 26379), ("::1", 7)), "my redis")
    assert (read.username, read.password) == (None, "q&")
    options = connect(url).connection_pool.connection_kwargs
    wanted = {"username": "u", "password": "p@", "db": 3, "ssl_cert_reqs": "none"}
    assert {name: options[name] for name in wanted} == wanted
    assert "host" not in options and "sentinel_password" not in options
