"""A real process of the service with a key, and functions that read what it stores."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from service.storage.postgres.database import Database
from service.use_cases.keys import SCOPES, create_key
from tests.conftest import Servers, database_dsn, flush, in_thread
from tests.service.programs import program
from tests.service.raw_http import Answer, Connection
from tests.service.stored import Store, looking_into
from tests.service.update_support import copies

QUESTION = b'{"user_id": "u", "items": ["a", "b"]}'
"""The body of a prediction."""


class Served(NamedTuple):
    """A running process and a look into what it stores."""

    url: str
    key: bytes
    process: psutil.Process
    store: Store

    def head(self, call: str, *lines: str | bytes, version: str = "1.1") -> bytes:
        """Of a request with the key, up to where more headers could come."""
        all_lines = [f"{call} HTTP/{version}", "Host: a", self.key, *lines]
        return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in all_lines)

    def request(self, call: str, body: bytes = b"", *lines: str | bytes) -> bytes:
        """A whole request with JSON."""
        length = f"Content-Length: {len(body)}"
        return self.head(call, "Content-Type: application/json", length, *lines) + b"\r\n" + body

    def ask(self, *parts: bytes) -> Answer:
        """What is answered on a connection of its own."""
        with Connection(self.url) as connection:
            connection.send(*parts)
            return connection.answer()

    def is_well(self) -> bool:
        """Whether the same process still predicts."""
        return self.process.is_running() and self.ask(self.request("POST /predict", QUESTION))[0] == 200


@contextmanager
def serving(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], folder: Path, **variables: str
) -> Iterator[Served]:
    """`asmg serve` on a database of its own, with these settings."""
    flush(servers.redis_url)
    with copies(servers, migrated_template, database_numbers) as copy:
        dsn = database_dsn(servers, copy())
        key = in_thread(asyncio.run, _make_key(dsn))
        variables |= {
            "ASMG_POSTGRES_DSN": dsn,
            "ASMG_REDIS_URL": servers.redis_url,
            "ASMG_DATA_DIR": str(folder),
        }
        with program(folder, **variables) as running, looking_into(dsn, servers.redis_url) as store:
            [process] = running.children()
            served = Served(running.url, b"Authorization: Bearer " + key.encode(), process, store)
            assert served.is_well()
            yield served


async def _make_key(dsn: str) -> str:
    database = Database(dsn)
    _, key = await create_key(database, "raw", SCOPES)
    await database.close()
    return key


def refused(connection: Connection, status: int) -> str:
    """That the next answer is a problem with this status and the last one; its detail."""
    found, headers, document = connection.answer()
    assert (found, document["status"]) == (status, status), document
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    assert headers["x-request-id"] == document["request_id"]
    assert connection.is_closed()
    return document["detail"]
