"""The nginx configuration of docs/operations.md, word for word, as a real proxy before the service."""

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.http.connection import Connection as ServiceConnection
from tests.conftest import in_thread
from tests.service.api_support import event, make_keys, served_app, settings_for
from tests.service.programs import wait_for
from tests.service.test_tls import make_certificate

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="there is no nginx on the PATH or in /usr/sbin"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl"),
]

QUESTION = {"user_id": "u", "items": ["a", "b"], "history": ["c"]}
NAME = "asmg.example.com"


def documented() -> str:
    """What the documentation tells to put into nginx's block http."""
    [block] = re.findall(r"^    # nginx.*\n((?:    .*\n)+)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return dedent(block)


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


@contextmanager
def nginx(folder: Path, service: str) -> Iterator[tuple[int, ssl.SSLContext]]:
    """A running nginx before the service; its port and who trusts its certificate. Only places are other than in the
    documentation.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    certificate = make_certificate(folder, NAME)
    server = documented()
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:8000", service),
        ("/etc/ssl/asmg.crt", str(certificate.cert)),
        ("/etc/ssl/asmg.key", str(certificate.key)),
    ):
        server = replaced(server, old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}\n{server}}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config), "-e", f"{folder}/error.log"])
    try:
        wait_for(lambda: process.poll() is not None or is_open(port), 10)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield port, ssl.create_default_context(cafile=str(certificate.cert))
    finally:
        process.terminate()
        process.wait(10)


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that the service got."""
    made: list[object] = []
    connection_made = ServiceConnection.connection_made

    def noted(self: ServiceConnection, transport: Any) -> None:
        made.append(transport)
        connection_made(self, transport)

    monkeypatch.setattr(ServiceConnection, "connection_made", noted)
    return made


@pytest.fixture
def client(upstream: list[object], postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client outside of the proxy, who has a key."""
    key, _ = in_thread(asyncio.run, make_keys(postgres_dsn))
    settings = settings_for(postgres_dsn, redis_url, tmp_path / "data", trusted_proxies=("127.0.0.1",))
    with (
        served_app(settings) as url,
        nginx(tmp_path, urlsplit(url).netloc) as (port, trusting),
        httpx.Client(base_url=f"https://127.0.0.1:{port}", headers={"X-API-Key": key}, verify=trusting) as client,
    ):
        yield client


def test_the_documented_proxy(client: httpx.Client, upstream: list[object]) -> None:
    keeps_connections(client, upstream)
    hides_what_is_not_for_outside(client)
    gives_every_address_its_prefix(client)
    passes_bodies_on_whole(client)
    lets_events_through_as_they_come(client)


def keeps_connections(client: httpx.Client, upstream: list[object]) -> None:
    for _ in range(100):
        response = client.post("/ctr/predict", json=QUESTION)
        assert (response.status_code, len(response.json()["scores"])) == (200, 2)
    assert len(upstream) <= 3


def hides_what_is_not_for_outside(client: httpx.Client) -> None:
    port = client.base_url.port
    for path in (
        "/ctr/metrics",
        "/ctr/metrics?x=1",
        "/ctr//metrics",
        "/ctr/./metrics",
        "/ctr/%6detrics",
        "/ctr/x/../metrics",
        "/ctr/metrics/",
        "/ctr/metrics%00",
        "/ctr/METRICS",
        "/metrics",
        "/ctr/../metrics",
        "//ctr/metrics",
        "/ctr/ctr/metrics",
        "/ctr//ctr/metrics",
        "/ctr/%63tr/%6detrics",
        "/ctr%2fctr%2fmetrics",
        "/ctr/metrics#/../x",
        "/ctr/metrics%23/../x",
        "/ctr/metrics%3f/../x",
    ):
        # A client library would tidy the path up.
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(plain) as secure:
                secure.sendall(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
                answer = b""
                while part := secure.recv(65536):
                    answer += part
        assert int(answer.split(b" ")[1]) in (400, 404), path
        assert b"asmg_requests_total" not in answer


def gives_every_address_its_prefix(client: httpx.Client) -> None:
    client.headers["X-Forwarded-Prefix"] = "/of-a-client"  # which the proxy replaces
    page = client.get("/ctr/docs")
    assert page.status_code == 200
    [described] = re.findall(r"url: '(.*?)'", page.text)
    assert described == "/ctr/openapi.json"
    for address in re.findall(r'(?:src|href)="(/.*?)"', page.text):
        assert address.startswith("/ctr/docs/")
        assert client.get(address).status_code == 200
    assert client.get(described).json()["servers"] == [{"url": "/ctr"}]
    assert client.post("/ctr/interactions", json={"interactions": [event(1)]}).status_code == 200
    closed = client.post("/ctr/periods/close")
    assert closed.status_code == 202
    assert closed.headers["location"] == closed.json()["status_url"] == "/ctr/periods/1"
    assert client.get(closed.json()["status_url"]).json()["period"] == 1
    assert client.get("/periods/1").status_code == 404  # nothing is outside of the prefix


def passes_bodies_on_whole(client: httpx.Client) -> None:
    events = [event(n, user_id=f"user-{n}" + "é" * 90) for n in range(100, 5100)]
    body = httpx.Request("POST", "http://a", json={"interactions": events}).read()
    assert len(body) > 2**20
    headers = {"Content-Type": "application/json"}
    sent = client.post("/ctr/interactions", content=body, headers=headers)
    assert (sent.status_code, sent.json()["accepted"]) == (200, 5000)
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    again = client.post("/ctr/interactions", content=pieces, headers=headers)  # chunked
    assert (again.status_code, again.json()["duplicates"]) == (200, 5000)
    huge = client.post("/ctr/interactions", content=b" " * (9 * 2**20), headers=headers)
    assert huge.status_code == 413


def lets_events_through_as_they_come(client: httpx.Client) -> None:
    with client.stream("GET", "/ctr/periods/2/events", timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines) == "event: status"
        # The period is open, so the stream goes on: what was read came before its end.
