"""Where a request ends: each request is answered once or refused, and no body is taken for a request.

The requests of `raw_requests` go over real connections to a real process, and to plain uvicorn for comparison.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.processes.listening import listen
from tests.conftest import Servers
from tests.service.raw_http import Answer, Connection
from tests.service.raw_requests import CASES, CURL, HIDDEN, JDK, LAST, REFUSED, TAKES, sized
from tests.service.served import QUESTION, Served, serving

pytestmark = pytest.mark.slow

KEEP_ALIVE_SECONDS = 1
LARGE_BYTES = 65 * 1024
"""More than the service or uvicorn reads at once for a body."""

WAYS = ["in one packet", "head and body apart", "byte by byte", "over 64 KiB"]
PACE_SECONDS = 0.002
"""Between two bytes of a connection, so that a server reads them one by one."""

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def served(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    variables = {
        "ASMG_HEAD_DEADLINE_SECONDS": "60",  # a busy host sends bytes one by one for long
        "ASMG_KEEP_ALIVE_SECONDS": str(KEEP_ALIVE_SECONDS),
    }
    with serving(servers, migrated_template, database_numbers, tmp_path_factory.mktemp("framing"), **variables) as made:
        yield made


@pytest.fixture(scope="module")
def plain_uvicorn() -> Iterator[str]:
    """uvicorn with httptools as it comes, and an application that tells what it was sent; its address."""
    server = uvicorn.Server(uvicorn.Config(tell, http="httptools", ws="none", lifespan="off", log_config=None))
    with listen("127.0.0.1", 0) as sock:
        thread = Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    told = json.dumps({"body": sha256(body).hexdigest()}).encode()
    request_id = dict(scope["headers"]).get(b"x-request-id", b"")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-request-id", request_id)]})
    await send({"type": "http.response.body", "body": told})


def parts(request: bytes, way: str) -> list[bytes]:
    """What is sent, one after the other."""
    whole = request + LAST
    match way:
        case "head and body apart":
            end = whole.index(b"\r\n\r\n") + 4 if b"\r\n\r\n" in request else len(request) // 2
            return [whole[:end], *[b""] * 50, whole[end:]]
        case "byte by byte":
            return [byte.to_bytes() for byte in whole]
        case _:
            return [whole]


def enlarged(body: bytes, way: str) -> bytes:
    """The body again and again, or with white space, in the way of large ones."""
    if way != "over 64 KiB":
        return body
    return body.ljust(LARGE_BYTES) if body == QUESTION else body * (LARGE_BYTES // len(body) + 1)


def converse(url: str, conversations: Sequence[list[bytes]]) -> list[list[Answer]]:
    """All at the same time, each on a connection of its own; what is answered on them."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(url, seconds=5)) for _ in conversations]
        for step in zip_longest(*conversations, fillvalue=b""):
            for connection, part in zip(connections, step, strict=True):
                if part:
                    connection.send_in_vain(part)  # what is refused is not read to its end
            time.sleep(PACE_SECONDS)
        return [connection.answers() for connection in connections]


def with_key(served: Served, data: bytes) -> bytes:
    return data.replace(b"KEY", served.key.split(b" ")[-1])


def made(served: Served, name: str, body: bytes, way: str) -> bytes:
    """A request of the table as it is sent."""
    return with_key(served, CASES[name].made(enlarged(with_key(served, body), way)))


def said(answer: Answer, body: bytes) -> str:
    """What an answer of the service says became of a request with this body."""
    status, headers, document = answer
    if headers["x-request-id"] in ("hidden", "last"):
        return headers["x-request-id"]
    if body == QUESTION and status == 200 and len(document["scores"]) == 2:
        return "taken"
    detail = document.get("detail", "")
    # It is no JSON, but it came to where that is asked for.
    if body == HIDDEN and status == 400 and detail.startswith("expected a JSON document; received expected value"):
        return "taken"
    is_problem = headers["content-type"] == "application/problem+json"
    if status in (400, 405) and is_problem and headers.get("connection") == "close" and "JSON" not in detail:
        return "refused"
    return f"{status} {detail}"


def test_the_service_is_asked_so_that_it_would_tell(served: Served) -> None:
    """The requests that are hidden in bodies are answered and stored if they are sent as requests."""
    before = served.store.look()
    with Connection(served.url) as connection:
        connection.send(with_key(served, HIDDEN).replace(b"/0/", b"/7/"), LAST)
        assert [answer[1]["x-request-id"] for answer in connection.answers()] == ["hidden", "hidden", "last"]
    assert before.holds(served.store.look())
    with Connection(served.url) as connection:
        connection.send(with_key(served, HIDDEN), LAST)
        assert [answer[0] for answer in connection.answers()] == [200] * 3
    assert not before.holds(served.store.look())


@pytest.mark.parametrize("way", WAYS)
def test_each_request_is_answered_once_or_refused(served: Served, way: str) -> None:
    asked = [
        (name, body)
        for body in (HIDDEN, QUESTION)
        for name in (CASES if body == HIDDEN else TAKES)
        if body == HIDDEN or name != "Upgrade of PUT"
    ]
    before = served.store.look()
    conversations = [parts(made(served, name, body, way), way) for name, body in asked]
    found = converse(served.url, conversations)
    wrong = {
        (name, body[:20]): outcome
        for (name, body), answers in zip(asked, found, strict=True)
        if (outcome := tuple(said(answer, body) for answer in answers)) != CASES[name].answered
    }
    assert wrong == {}
    assert before.holds(served.store.look())
    assert served.is_well()


def test_an_upgrade_to_what_is_not_there_is_answered_once(served: Served) -> None:
    """Nobody reads this body: the answer may come before it, and then the connection is closed."""
    names = ("Upgrade", "Upgrade, of the JDK", "Upgrade with chunks", "Content-Length")
    for way in WAYS:
        requests = [made(served, name, HIDDEN, way).replace(b"/predict", b"/anything", 1) for name in names]
        for answers in converse(served.url, [parts(request, way) for request in requests]):
            assert [status for status, _, _ in answers] in ([404], [404, 200])
            assert [headers["x-request-id"] for _, headers, _ in answers] in (["outer"], ["outer", "last"])


@pytest.mark.parametrize("lines", [JDK, CURL], ids=["JDK", "curl"])
def test_one_connection_serves_a_client_that_offers_an_upgrade_each_time(served: Served, lines: Sequence[str]) -> None:
    with Connection(served.url) as connection:
        for part in range(1, 20):
            request = with_key(served, sized(QUESTION, *lines))
            connection.send(request[: part * 15])
            time.sleep(0.002)
            connection.send(request[part * 15 :])
            status, _, document = connection.answer()
            assert (status, len(document["scores"])) == (200, 2)


# Beside uvicorn


def outcome_of(answers: Sequence[Answer], told: str) -> str:
    """What became of a request on plain uvicorn."""
    ids = [headers.get("x-request-id") for _, headers, _ in answers]
    if "hidden" in ids:
        return "what is in the body is answered"
    if any(document["body"] != told for _, headers, document in answers if headers.get("x-request-id") == "outer"):
        return "the body is lost"
    statuses = [status for status, _, _ in answers]
    if 400 in statuses:
        return "refused" if statuses == [400] else "answered, then refused"
    return "answered" if "outer" in ids else "nothing is answered"


def compared(url: str) -> dict[str, tuple[str, str, str]]:
    """Requests of which uvicorn makes something else than the service: what both make of them."""
    found: dict[str, list[str]] = {name: [] for name in CASES}
    for way in ("in one packet", "head and body apart"):
        answered = converse(url, [parts(case.made(HIDDEN), way) for case in CASES.values()])
        for name, answers in zip(CASES, answered, strict=True):
            found[name].append(outcome_of(answers, sha256(HIDDEN).hexdigest()))
    ours = {REFUSED: "refused", ("taken", "refused"): "answered, then refused"}
    return {
        name: (expected, one, two)
        for name, (one, two) in found.items()
        if {one, two} != {expected := ours.get(CASES[name].answered, "answered")}
    }


@pytest.mark.nightly
def test_the_docs_tell_where_plain_uvicorn_does_something_else(plain_uvicorn: str) -> None:
    text = RELIABILITY.read_text()
    versions = re.search(r"uvicorn ([\d.]+) with httptools ([\d.]+)", text)
    assert versions is not None
    here = (version("uvicorn"), version("httptools"))
    if here != versions.groups():
        pytest.skip(f"the docs compare uvicorn and httptools {versions.groups()}; here are {here}")
    rows = text.partition("| request | the service |")[2].partition("\n\n")[0].splitlines()[2:]
    told = "\n".join(rows)
    by_outcome: dict[tuple[str, ...], list[str]] = {}
    for name, outcome in compared(plain_uvicorn).items():
        by_outcome.setdefault(outcome, []).append(name)
    found = "\n".join("| " + " | ".join(("; ".join(names), *outcome)) + " |" for outcome, names in by_outcome.items())
    assert told == found  # which is what the docs have to say


# Real clients


def test_the_client_of_the_jdk_is_answered(served: Served) -> None:
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH; what its client sends is among the requests above")
    called = subprocess.run(
        ["java", str(Path(__file__).with_name("JdkClient.java")), served.url, with_key(served, b"KEY").decode()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert called.returncode == 0, called.stderr
    lines = [line.split(" ", 2) for line in called.stdout.splitlines()]
    assert [(status, spoken) for status, spoken, _ in lines] == [("200", "HTTP_1_1")] * 15
    documents: list[dict[str, Any]] = [json.loads(body) for _, _, body in lines]
    assert documents.pop(13)["accepted"] == 1000
    assert {len(document["scores"]) for document in documents} == {2}


def test_curl_with_http2_is_answered(served: Served, tmp_path: Path) -> None:
    if shutil.which("curl") is None or "HTTP2" not in subprocess.check_output(["curl", "--version"], text=True):
        pytest.skip("no curl with HTTP/2 on the PATH; what it sends is among the requests above")
    large = tmp_path / "body"
    large.write_bytes(QUESTION.ljust(LARGE_BYTES))
    call = ["-H", served.key.decode(), "-H", "Content-Type: application/json", f"{served.url}/predict"]
    for body in (QUESTION.decode(), f"@{large}"):
        called = subprocess.check_output(["curl", "-s", "-m", "10", "--http2", "--data-binary", body, *call])
        assert len(json.loads(called)["scores"]) == 2
    refused = subprocess.run(["curl", "-s", "-m", "10", "--http2-prior-knowledge", *call], timeout=20, check=False)
    assert refused.returncode != 0


# Idle connections


def test_a_connection_may_be_idle_for_as_long_as_the_setting_says(served: Served) -> None:
    with Connection(served.url) as connection:
        for _ in range(2):
            connection.send(served.request("POST /predict", QUESTION))
            assert connection.answer()[0] == 200
            time.sleep(KEEP_ALIVE_SECONDS / 2)
        began = time.monotonic()
        assert connection.is_closed()
        assert time.monotonic() - began < KEEP_ALIVE_SECONDS + 3


def test_by_default_a_connection_may_be_idle_for_longer_than_load_balancers_keep_it() -> None:
    from service.settings import Settings

    assert Settings().keep_alive_seconds > 60
