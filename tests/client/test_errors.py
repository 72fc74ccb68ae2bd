"""Problems of the service become errors of the client, and calls that fail in a way that passes are repeated."""

import gzip
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from asmg_client import AsmgError, AsyncClient, Client, Interaction, Question, Retry, errors
from asmg_client.errors import InternalError, InvalidAnswer, NotReady, ProblemError, RateLimited, TimedOut
from service import errors as of_service
from tests.client.conftest import Service

QUICK = Retry(first_seconds=0.001, most_seconds=0.002)

CALLS: list[tuple[type[ProblemError], Callable[[Client], object]]] = [
    (errors.InvalidInput, lambda client: client.interactions([Interaction("u", "i", 2)])),
    (errors.BodyTooLarge, lambda client: client.predict("u", ["i"], context={"x": "x" * 2**20})),
    (errors.ModelNotFound, lambda client: client.get_model(9)),
    (errors.PeriodNotFound, lambda client: client.get_period(9)),
    (errors.PeriodNotFound, lambda client: list(client.period_events(9))),
    (errors.NothingStored, lambda client: client.get_user("nobody")),
    (errors.EmptyPeriod, lambda client: client.close_period()),
    (errors.PeriodConflict, lambda client: client.close_period(expected_period=7)),
]


def test_the_service_refuses(service: Service) -> None:
    with Client(service.url, service.key) as client:
        for kind, call in CALLS:
            with pytest.raises(kind) as caught:
                call(client)
            assert type(caught.value) is kind
        client.interactions([Interaction("u", "i", 1)])
        client.close_period(idempotency_key="k")
        with pytest.raises(errors.IdempotencyMismatch):
            client.close_period(expected_period=2, idempotency_key="k")
        with pytest.raises(errors.InvalidInput) as invalid:
            client.predict("u", [])
        assert (invalid.value.status, invalid.value.title) == (422, "Invalid input")
        assert invalid.value.type == "urn:asmg:problem:invalid-input"
        assert invalid.value.errors == [errors.FieldError("items", "at least 1 item", "0 items")]
        assert invalid.value.detail == "items: expected at least 1 item; received 0 items"
        assert invalid.value.request_id
        with pytest.raises(ProblemError) as unknown:
            client.request("GET", "/nowhere")
        assert (type(unknown.value), unknown.value.status) == (ProblemError, 404)
    with Client(service.url, "asmg_no") as stranger, pytest.raises(errors.Unauthorized):
        stranger.list_models()
    with Client(service.url, service.reader) as reader, pytest.raises(errors.Forbidden):
        reader.list_models()
    with Client(service.url, service.rare) as rare:
        rare.list_models()
        with pytest.raises(RateLimited) as limited:
            rare.list_models()
        assert limited.value.retry_after is not None and limited.value.retry_after > 900


def test_there_is_a_class_for_every_problem_of_the_service() -> None:
    """Errors with status 500 are rendered without details, as internal errors."""

    def slugs(kind: type[Any]) -> dict[str, int]:
        below = {slug: status for sub in kind.__subclasses__() for slug, status in slugs(sub).items()}
        return {**below, kind.slug: kind.status}

    of_requests = {slug for slug, status in slugs(of_service.ServiceError).items() if status != 500}
    classes = {kind.slug: kind for kind in ProblemError.__subclasses__()}
    assert set(classes) == of_requests | {"internal-error"}
    for slug, kind in classes.items():
        problem = {"type": f"urn:asmg:problem:{slug}", "title": "T", "status": 500, "detail": "d", "request_id": "r"}
        client, _ = answering([httpx.Response(500, json=problem)])
        with pytest.raises(kind) as caught:
            client.list_models()
        assert (type(caught.value), caught.value.detail, caught.value.request_id) == (kind, "d", "r")
    assert set(errors.__all__) >= {kind.__name__ for kind in classes.values()}


def answering(
    answers: Sequence[httpx.Response | Exception], retry: Retry = QUICK
) -> tuple[Client, list[httpx.Request]]:
    """A client whose service gives these answers, one after the other, and the requests that it gets."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        answer = answers[len(seen)]
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://service", "key", retry=retry, transport=httpx.MockTransport(handle)), seen


FAILURES: list[httpx.Response | Exception] = [
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("late"),
    httpx.RemoteProtocolError("broken off"),
    httpx.Response(503, headers={"Retry-After": "0"}),
    httpx.Response(502, text="<html>"),
    httpx.Response(504),
    httpx.Response(429, headers={"Retry-After": format_datetime(datetime.now(UTC) - timedelta(hours=1))}),
]
INGESTED = httpx.Response(200, json={"accepted": 1, "duplicates": 0, "period": 1, "of a newer service": {}})


def test_repeatable_calls_are_repeated_as_they_were() -> None:
    client, seen = answering([*FAILURES, INGESTED])
    assert client.interactions([Interaction("u" * 2000, "i", 1)]).accepted == 1
    assert len(seen) == len(FAILURES) + 1
    assert len({request.content for request in seen}) == 1  # with the same event_id and timestamp
    assert {request.headers["content-encoding"] for request in seen} == {"gzip"}
    [event] = json.loads(gzip.decompress(seen[0].content))["interactions"]
    assert len(event["event_id"]) == 32
    assert seen[0].headers["authorization"] == "Bearer key"

    closed = httpx.Response(202, json={"period": 1, "status": "sealed", "status_url": "/periods/1"})
    client, seen = answering([FAILURES[1], closed])
    assert client.close_period().period == 1
    assert len({request.headers["idempotency-key"] for request in seen}) == 1

    prediction = {"model_version": 0, "period": 0, "predictions": []}
    client, seen = answering([FAILURES[1], httpx.Response(200, json=prediction)])
    client.predict_batch([Question("u", ["i"], log_impressions=True)])
    assert len({json.loads(request.content)["requests"][0]["request_id"] for request in seen}) == 1


async def test_the_asynchronous_client_repeats_too() -> None:
    answers: list[int | Exception] = [httpx.ConnectError("refused"), 503, httpx.ReadTimeout("late"), 429, 200]

    def handle(_: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"accepted": 1, "duplicates": 0, "period": 1})

    async with AsyncClient("http://service", retry=QUICK, transport=httpx.MockTransport(handle)) as client:
        assert (await client.interactions([Interaction("u", "i", 1)])).accepted == 1
    assert answers == []


@pytest.mark.parametrize(
    ("call", "answer", "kind"),
    [
        (lambda client: client.rollback(1, sequence="keep", reason="r"), httpx.ReadTimeout("late"), TimedOut),
        (lambda client: client.pin(1, reason="r"), httpx.Response(503), ProblemError),
        (lambda client: client.readiness(), httpx.Response(503), ProblemError),
        (lambda client: client.request("POST", "/new", body={}), httpx.ConnectError("refused"), AsmgError),
        (lambda client: client.predict("u", ["i"]), httpx.Response(500), ProblemError),
        (lambda client: client.predict("u", ["i"]), httpx.Response(200, text="<html>log in</html>"), InvalidAnswer),
        (lambda client: client.predict("u", ["i"]), httpx.Response(200, json={"scores": []}), InvalidAnswer),
        (lambda client: client.predict("u", ["i"]), httpx.Response(302), InvalidAnswer),
        # It asks for more time than there is.
        (lambda client: client.predict("u", ["i"]), httpx.Response(429, headers={"Retry-After": "60"}), ProblemError),
    ],
)
def test_other_failures_are_final(call: Any, answer: Any, kind: type[Exception]) -> None:
    client, seen = answering([answer])
    with pytest.raises(kind):
        call(client)
    assert len(seen) == 1


def test_attempts_end_at_the_deadline_and_at_their_number() -> None:
    client, seen = answering([httpx.Response(503)] * 3, Retry(attempts=3, first_seconds=0.001))
    with pytest.raises(ProblemError):
        client.list_models()
    assert len(seen) == 3
    client, seen = answering([httpx.Response(503)], Retry(deadline_seconds=0))
    with pytest.raises(ProblemError):
        client.list_models()
    assert len(seen) == 1


def test_a_stream_that_breaks_off_is_opened_anew() -> None:
    period = {
        "period": 1, "status": "sealed", "stage": None, "progress": None, "opened_at": "2024-05-01T12:00:00Z",
        "sealed_at": None, "finished_at": None, "events": 1, "attempts": 0, "crashes": 0, "error": None,
        "version": None, "stages": [], "scores": {}, "labels": None,
    }  # fmt: skip

    def stream(*told: dict[str, Any], end: str = "") -> httpx.Response:
        events = [f"event: status\ndata: {json.dumps(each, ensure_ascii=False)}\n\n" for each in told]
        return httpx.Response(200, text=": ping\n\n" + "".join(events) + end)

    done = {**period, "status": "updated", "error": "a line\u2028and another\x85"}
    end = "event: end\ndata: {}\n\n"
    client, seen = answering([stream(period), httpx.ReadError("reset"), stream(period, done, end=end)])
    assert [told.status for told in client.period_events(1)] == ["sealed", "updated"]
    assert len(seen) == 3


def test_a_time_without_a_zone_is_refused() -> None:
    client, seen = answering([])
    with pytest.raises(ValueError, match="expected a time with a time zone"):
        client.interactions([Interaction("u", "i", 1, datetime(2024, 5, 1))])
    with pytest.raises(TypeError, match="expected a sequence of items"):
        client.predict("u", "item")
    assert seen == []


def test_not_ready_says_when_to_ask_again() -> None:
    problem = {"type": "urn:asmg:problem:not-ready", "title": "Not ready", "status": 503, "detail": "Postgres"}
    client, _ = answering([httpx.Response(503, json=problem, headers={"Retry-After": "1"})])
    with pytest.raises(NotReady) as caught:
        client.readiness()
    assert caught.value.retry_after == 1
    client, _ = answering([httpx.Response(500, json={**problem, "type": "urn:asmg:problem:internal-error"})])
    with pytest.raises(InternalError):
        client.health()
