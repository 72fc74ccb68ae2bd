"""HTTPS without a proxy, with certificates made here."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.service.programs import asmg, program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl"),
]

QUESTION = {"user_id": "u", "items": ["a"], "history": ["b"]}


class Certificate(NamedTuple):
    """Files in PEM."""

    cert: Path
    key: Path


def make_certificate(folder: Path, name: str) -> Certificate:
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    how = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    subprocess.run([*how.split(), *names, "-keyout", made.key, "-out", made.cert], check=True, capture_output=True)
    return made


@pytest.fixture
def given(postgres_dsn: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / "data")}


def test_predictions_by_https_and_by_nothing_else(given: dict[str, str], tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "asmg.example.com")
    files = ("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key))
    with program(tmp_path, *files, scheme="https", **given) as running:
        trusting = ssl.create_default_context(cafile=str(certificate.cert))
        with httpx.Client(base_url=running.url, verify=trusting) as client:
            assert client.get("/readyz").status_code == 200
            for _ in range(2):  # the second time without waiting for anything, past ASGI
                answer = client.post("/predict", json=QUESTION)
                assert answer.status_code == 200
                assert answer.json()["scores"] == pytest.approx([0.5])
                assert answer.headers.get_list("strict-transport-security") == ["max-age=31536000"]
            refused = client.post("/predict", json={})
            assert refused.status_code == 422
            assert refused.headers.get_list("strict-transport-security") == ["max-age=31536000"]
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{running.url}/healthz")
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url.replace("https", "http") + "/healthz")
        address = (running.host, running.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            assert secure.version() == "TLSv1.3"
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(address, timeout=10) as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain)


def test_what_cannot_serve_https_is_said_in_one_line_at_the_start(given: dict[str, str], tmp_path: Path) -> None:
    one, other = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "other")
    locked, text = tmp_path / "locked.key", tmp_path / "text"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", one.key, "-out", locked],
        check=True,
        capture_output=True,
    )
    text.write_text("no certificate")
    for cert, key in ((one.cert, other.key), (one.cert, locked), (text, one.key), (tmp_path / "none", one.key)):
        result = asmg("serve", "--port", "0", "--tls-cert", str(cert), "--tls-key", str(key), code=1, **given)
        [line] = [line for line in result.stderr.splitlines() if "cannot serve HTTPS" in line]
        assert line.startswith(f"asmg: cannot serve HTTPS with {cert} and {key}: ")
        assert "Traceback" not in result.stderr
    half = asmg("serve", "--port", "0", "--tls-cert", str(one.cert), code=2, **given)
    assert "expected both ASMG_TLS_CERT and ASMG_TLS_KEY, or neither; received one" in half.stderr
