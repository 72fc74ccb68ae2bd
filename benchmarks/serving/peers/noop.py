"""The ceiling: a bare ASGI application that reads the request and answers with bytes that were ready before.

The answers are those of `noop.json` in the folder: for requests of up to so many bytes, such a body.
"""

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.serving.peers.arguments import HOST, parse_arguments

FOLDER = "BENCH_FOLDER"
FILE = "noop.json"
REQUEST_ID = b"0" * 32


def write_answers(folder: Path, answers: Sequence[tuple[int, bytes]]) -> None:
    """Leave the bodies to answer requests of up to so many bytes with."""
    (folder / FILE).write_bytes(orjson.dumps([(size, body.decode()) for size, body in sorted(answers)]))


def create_app() -> ASGIApp:
    """The application of one worker."""
    sizes, bodies = zip(*orjson.loads(Path(os.environ[FOLDER], FILE).read_bytes()), strict=True)
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for text in bodies:
        body = text.encode()
        headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", REQUEST_ID),
        ]
        answers.append(
            (
                {"type": "http.response.start", "status": 200, "headers": headers},
                {"type": "http.response.body", "body": body},
            )
        )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received, more = 0, True
        while more:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        start, rest = answers[min(bisect_left(sizes, received), len(answers) - 1)]
        await send(start)
        await send(rest)

    return app


def main() -> None:
    """Serve until told to end."""
    arguments = parse_arguments()
    os.environ[FOLDER] = str(arguments.folder)
    uvicorn.run(
        f"{__package__}.noop:create_app",
        factory=True,
        host=HOST,
        port=arguments.port,
        workers=arguments.workers,
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    main()
