"""scripts/audit, with the real pip-audit and advisories of the test's own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("pip_audit", reason="comes with the extra [dev]")

ROOT = Path(__file__).resolve().parent.parent
PAGE = {
    "id": "GHSA-test-test-test",
    "summary": "opens every door",
    "affected": [
        {
            "package": {"name": "asyncpg", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}],
        }
    ],
}


@contextmanager
def advisories(vulnerable: str | None = None, status: int = 200) -> Iterator[tuple[str, dict[str, str]]]:
    """An OSV in which one package is vulnerable; its address, and the versions that it was asked for by name."""
    asked: dict[str, str] = {}

    class Osv(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name = question["package"]["name"]
            if "version" in question:
                asked[name] = question["version"]
            answer = json.dumps({"vulns": [PAGE]} if name == vulnerable else {}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        server.shutdown()
        thread.join()


def audit(url: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/audit.py", "--cache-dir", str(folder), *arguments]
    environment = os.environ | {"ASMG_AUDIT_URL": url}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_every_package_but_this_one_is_looked_up_by_its_public_version(tmp_path: Path) -> None:
    with advisories(vulnerable="asyncpg") as (url, asked):
        done = audit(url, tmp_path, "--ignore-vuln", "GHSA-test-test-test")
    assert done.returncode == 0, done.stderr
    assert f"{len(asked)} packages looked up" in done.stdout
    assert asked["torch"] == version("torch").partition("+")[0]
    assert asked["fastapi"] == version("fastapi")
    assert "asmg-service" not in asked
    assert all("+" not in each for each in asked.values())


def test_a_known_vulnerability_fails_the_audit_and_is_named(tmp_path: Path) -> None:
    with advisories(vulnerable="asyncpg") as (url, _):
        done = audit(url, tmp_path)
    assert done.returncode == 1
    for told in ("asyncpg", version("asyncpg"), "GHSA-test-test-test", "999.1"):
        assert told in done.stdout


def test_advisories_that_cannot_be_reached_are_reported_and_no_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/query"
    done = audit(url, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"NOT AUDITED: the advisories at {url} cannot be reached from here (ConnectionError)")
    with advisories(status=403) as (url, _):  # as a proxy answers that lets nobody out
        done = audit(url, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"the advisories at {url} cannot be reached from here (status 403)" in done.stdout
