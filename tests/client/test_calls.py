"""Every call of the client, against the real service: sync and async."""

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from asmg_client import (
    AsyncClient,
    Click,
    Client,
    Impression,
    Interaction,
    Item,
    Question,
    User,
    admin_calls,
    calls,
    errors,
)
from asmg_client.answers import Closed, Deletion, Health, Ingested, Pinned, Prediction, PutItems, PutUsers
from asmg_client.streams import period_events
from service.app import create_app
from tests.client.conftest import Service
from tests.service.api_support import settings_for
from tests.service.programs import wait_for

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

MAKES = {
    name: value
    for module in (calls, admin_calls)
    for name, value in vars(module).items()
    if inspect.isfunction(value) and name in vars(Client)
}
"""What makes the calls of the methods that make one each."""

METHODS = set(MAKES)

WITHOUT_METHOD = ("/metrics",)
"""What paths begin with that the client has no method for: Prometheus reads it, and it is no JSON."""

DRAWN = {("get", "/admin/canary"), ("get", "/admin/guardrails"), ("get", "/admin/models/{version}/breakdown")}
"""What the console draws, and a program has no use for; `request` gets it."""


class Blocking:
    """An `AsyncClient` that is called like a `Client`."""

    def __init__(self, url: str, key: str) -> None:
        self._runner = asyncio.Runner()
        self.inner = AsyncClient(url, key)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **arguments: self._runner.run(_awaited(getattr(self.inner, name)(*args, **arguments)))

    def close(self) -> None:
        self._runner.run(self.inner.close())
        self._runner.close()


async def _awaited(answer: Any) -> Any:
    return [each async for each in answer] if hasattr(answer, "__anext__") else await answer


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[Any]:
    made = request.param(service.url, service.key)
    yield made
    made.close()


def noted(method: Callable[..., Any], called: set[str]) -> Callable[..., Any]:
    """The method, which writes down that it was called."""

    def call(*args: Any, **arguments: Any) -> Any:
        called.add(method.__name__)
        return method(*args, **arguments)

    return call


def test_every_method_once(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    kind = Client if isinstance(client, Client) else AsyncClient
    for name in METHODS:
        monkeypatch.setattr(kind, name, noted(vars(kind)[name], called))

    assert client.health() == Health("ok")
    assert client.predict(None, ["shoes"]).logged is None
    assert (client.readiness().model_version, client.readiness().checks["postgres"]) == (0, "ok")
    assert client.put_items([Item("shoes", ["sport"]), Item(17)]) == PutItems(items=2, changed=2)
    assert client.put_users([User("ann", None, NOON)]) == PutUsers(users=1, changed=0)

    def logged() -> Prediction | None:
        """A prediction whose impression was stored in time, which takes longer on a busy host."""
        prediction: Prediction = client.predict("ann", ["shoes", 17], history=["hat"], log_impressions=True)
        return prediction if prediction.logged else None

    prediction = wait_for(logged)
    assert (prediction.model_version, prediction.scores, prediction.cold_items) == (0, [0.25, 0.25], [0, 1])
    assert (prediction.cold_user, prediction.history, prediction.logged) == (True, "used", True)
    batch = client.predict_batch([Question("ann", ["shoes"], request_id="q"), Question(None, [1, 2])])
    assert [len(each.scores) for each in batch.predictions] == [1, 2]
    assert batch.predictions[0].request_id == "q"
    assert client.predict("ann", ["hat"], model_version=0).model_version == 0
    assert client.predict_batch([Question("ann", ["hat"])], model_version=0).model_version == 0

    click = Interaction("ann", "hat", 1, NOON)
    assert client.interactions([click, Interaction("bob", 17, 0)]) == Ingested(2, 0, 1)
    assert client.interactions([click]) == Ingested(0, 1, 1)
    other = Interaction("ann", "hat", 0, NOON, event_id=click.event_id)
    assert client.interactions([other]) == Ingested(0, 0, 1, [click.event_id])
    impression = Impression("ann", ["hat", "shoes"], NOON, positions=[3, 1])
    assert client.impressions([impression]) == Ingested(1, 0, 1)
    assert client.clicks([Click(impression.request_id, "hat", NOON), Click(prediction.request_id, "17")]).accepted == 2

    stored = client.get_user("ann", limit=1)
    assert (stored.known_to_model, stored.history, stored.log.interactions) == (False, ["17", "hat", "hat"], 1)
    assert (stored.log.impressions >= 2, stored.log.periods[0].first) == (True, NOON)
    assert client.get_item("shoes").categories == ["sport"]

    closed = client.close_period(expected_period=1, reason="noon", idempotency_key="noon")
    assert closed == client.close_period(expected_period=1, idempotency_key="noon") == Closed(1, "sealed", "/periods/1")
    assert [period.status for period in client.list_periods().periods] == ["open", "sealed"]
    service.end_period(1)
    [told] = list(client.period_events(1))
    assert (told.status, told.events) == ("updated", 2)
    assert client.get_period(1) == told
    assert client.list_periods(limit=1).next == 2

    assert client.pin(0, reason="first") == Pinned(0, True, True, "first")
    assert client.list_models().models[0].pinned
    assert client.unpin(0, reason="first").pinned is False
    assert client.rollback(0, sequence="keep", reason="none").to_version == 0
    assert client.get_model(0).kind == "prior"
    assert client.list_processes().processes[0].served_version == 0
    [entry] = client.list_audit(action="close_period").entries
    assert (entry.reason, entry.detail["period"], entry.actor.split()[0]) == ("noon", 1, "all")
    assert client.request("GET", "/admin/models", params={"limit": "1"})["models"][0]["version"] == 0

    watch_and_steer(client)
    deletion = client.delete_user("ann")
    assert isinstance(deletion, Deletion) and (deletion.status, deletion.removed["interactions"]) == ("done", 1)
    assert client.delete_item("shoes").status == "done"
    assert called == METHODS


def watch_and_steer(client: Any) -> None:
    """The calls about alerts, webhooks, samples, canaries and keys; period 1 is learned, and nothing is wrong."""
    overview = client.get_overview()
    assert (overview.served_version, overview.installation.open_period.period) == (0, 2)
    assert overview.installation.newest == client.get_period(1)
    assert client.list_alerts(is_open=True, limit=1).alerts == []
    assert client.get_samples().cells == []
    assert client.get_replay(0, from_period=1).total.events == 0
    added = client.add_webhook("https://hooks.example.com/in", events=["alert.opened"])
    assert (added.events, len(added.secret) > 20, added.secret in repr(added)) == (["alert.opened"], True, False)
    assert client.switch_webhook_off(added.number, reason="holiday").off_reason == "holiday"
    assert client.switch_webhook_on(added.number, reason="over").off_at is None
    assert client.rotate_webhook_secret(added.number, overlap_hours=1.0).old_secret_until is not None
    assert [each.url for each in client.list_webhooks().webhooks] == [added.url]
    assert client.list_deliveries(webhook=added.number, status="waiting").deliveries == []
    assert client.remove_webhook(added.number) is None
    key = client.create_key("job", scopes=["predict"], expires_at=datetime.now(UTC) + timedelta(days=1), reason="new")
    assert client.limit_key(key.key_id, rate_limit=2.5, reason="slow").rate_limit == 2.5
    revoked = client.revoke_key(key.key_id, reason="done")
    assert revoked in client.list_keys().keys and not revoked.valid
    for refused, call in (
        (errors.NotFound, lambda: client.acknowledge_alert(1, reason="seen", close=True)),
        (errors.NotFound, lambda: client.redeliver(1)),
        (errors.PeriodStateConflict, lambda: client.retry_period(1, reason="again")),
        (errors.PeriodStateConflict, lambda: client.skip_period(1, reason="no")),
        (errors.StateConflict, lambda: client.promote_canary(reason="good")),
        (errors.StateConflict, lambda: client.revert_canary(reason="bad", version=1)),
    ):
        with pytest.raises(refused):
            call()


@pytest.mark.parametrize("id_", ["a/b c", "..", ".", "50 % é\N{SNOWMAN}", "?#&+", "%2F", "//"])
def test_any_id_can_stand_in_a_path(service: Service, id_: str) -> None:
    with Client(service.url, service.key) as client:
        client.put_items([Item(id_, ["c"])])
        assert client.get_item(id_).item_id == id_


def test_the_key_may_come_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMG_KEY", service.reader)
    with Client(service.url) as client:
        assert client.predict("ann", ["a"]).model_version == 0


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, Any]:
        found = {name: value for name, value in vars(kind).items() if name in METHODS}
        return {name: inspect.signature(value) for name, value in found.items()}

    assert signatures(Client) == signatures(AsyncClient)
    assert set(signatures(Client)) == METHODS
    assert "user_id" in str(inspect.signature(Client("http://a").predict))


ARGUMENTS: dict[str, Any] = {
    "user_id": "1", "item_id": "1", "number": 1, "version": 1, "to_version": 1, "sequence": "keep", "reason": "r",
    "items": ["1"], "questions": [], "events": [], "users": [], "url": "https://a", "name": "n",
    "scopes": ["predict"], "key_id": "1", "rate_limit": None,
}  # fmt: skip
"""Of the calls, without what may be left out."""


def test_calls_and_answers_are_those_that_the_service_describes(tmp_path: Path) -> None:
    """A path that it does not have is not found, and a member that it does not describe never comes."""
    document = create_app(settings_for("postgresql://a/b", "redis://a", tmp_path)).openapi()
    called: set[tuple[str, str]] = set()
    for make in [*(make for name, make in MAKES.items() if name != "request"), period_events]:
        needed = [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]
        arguments = {name: [] if make is calls.put_items else ARGUMENTS[name] for name in needed}
        call = make(**arguments)
        [path] = [path for path in document["paths"] if re.fullmatch(re.sub(r"{.*?}", "1", path), call.path)]
        called.add((call.method.lower(), path))
        operation = document["paths"][path][call.method.lower()]
        content = next(value for status, value in operation["responses"].items() if status[0] == "2").get("content", {})
        assert bool(content) != (call.answer is type(None))
        if "application/json" in content:
            _compare(call.answer, content["application/json"]["schema"], document["components"]["schemas"])
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described >= DRAWN
    assert called == {call for call in described - DRAWN if not call[1].startswith(WITHOUT_METHOD)}


def _compare(kind: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Each member of the class is one of the schema, and so are theirs."""
    branches = [schema, *schema.get("anyOf", [])]
    [schema] = [schemas[branch["$ref"].rpartition("/")[2]] for branch in branches if "$ref" in branch]
    for name, hint in get_type_hints(kind).items():
        member = schema["properties"][name]
        for inner in [hint, *get_args(hint)]:
            if is_dataclass(inner):
                _compare(inner, member.get("items") or member.get("additionalProperties") or member, schemas)
