"""Webhooks: what happened is told at least once, signed, and nobody else is told anything.

The receivers are real servers on loopback. How long things take follows from the settings, never from a sleep.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from service.cli import app
from service.errors import StateConflict
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AlertKind, Delivery, DeliveryStatus
from service.tasks import end_tasks, start_alone
from service.use_cases.alerts import close_alert, list_alerts, raise_alert
from service.use_cases.audit import list_audit
from service.use_cases.backup import back_up
from service.use_cases.retention import forget_notifications
from service.use_cases.webhooks.announce import Event, announce
from service.use_cases.webhooks.deliver import keep_delivering
from service.use_cases.webhooks.endpoints import (
    WebhookSecret,
    add_webhook,
    list_deliveries,
    list_webhooks,
    redeliver,
    rotate_secret,
    switch_webhook,
)
from service.use_cases.webhooks.sending import make_client, send
from service.use_cases.webhooks.targets import Forbidden, parse_target, permit, resolve
from tests.service.api_support import Api, publish, running_app, settings_for
from tests.service.backup_support import opened, restored, sql
from tests.service.receivers import Received, Receiver, receiver
from tests.service.test_tls import make_certificate
from tests.service.update_support import until
from tests.service.worker_processes import forked_worker

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))

QUICK: dict[str, Any] = {
    "webhook_networks": ("127.0.0.0/8",),
    "webhook_retry_seconds": 0.02,
    "webhook_timeout_seconds": 0.3,
    "worker_poll_seconds": 0.02,
}


@pytest.fixture
def quick(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings by which attempts follow each other at once."""
    return settings_for(postgres_dsn, redis_url, tmp_path, **QUICK)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def add(database: Database, port: int, *events: Event, path: str = "/hook?a=1") -> WebhookSecret:
    url = f"http://127.0.0.1:{port}{path}"
    return await add_webhook(database, url, events or None, actor="test", networks=LOOPBACK)


async def tell(database: Database, **data: Any) -> None:
    async with database.unit_of_work() as work:
        await announce(work, Event.PUBLISHED, data)
        await work.commit()


@asynccontextmanager
async def delivering(database: Database, settings: Settings) -> AsyncIterator[None]:
    """What the leading worker does beside its work."""
    task = start_alone(keep_delivering(database, settings))
    try:
        yield
        assert not task.done()
    finally:
        await end_tasks(task)


async def until_delivery(database: Database, number: int, status: str, *, attempts: int = 0) -> Delivery:
    """The delivery, as soon as it has the status and so many attempts."""
    async with asyncio.timeout(60):
        while True:
            async with database.read() as session:
                found = await session.deliveries.get(number)
            assert found is not None
            if found.status == status and found.attempts >= attempts:
                return found
            await asyncio.sleep(0.01)


def verify(received: Received, *secrets: str) -> dict[str, Any]:
    """What a receiver does, by the Standard Webhooks specification; independent of the service."""
    headers = received.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    assert abs(int(headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 300
    assert headers["content-type"] == "application/json"
    parts = headers["webhook-signature"].split(" ")
    for secret, part in zip(secrets, parts, strict=True):
        key = base64.b64decode(secret.removeprefix("whsec_"))
        assert part == "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    document = json.loads(received.body)
    assert document["id"] == headers["webhook-id"]
    return dict(document)


async def audited(database: Database) -> list[tuple[str, dict[str, Any]]]:
    return [(entry.action, dict(entry.detail)) for entry in (await list_audit(database, limit=50)).entries][::-1]


async def test_a_receiver_that_is_away_errs_and_hangs_is_told_in_the_end(database: Database, quick: Settings) -> None:
    port, hang = free_port(), Flag()
    webhook = await add(database, port)
    await add(database, port, Event.ALERT_OPENED, path="/others")
    async with database.unit_of_work() as work:  # nothing is told that did not happen
        await announce(work, Event.PUBLISHED, {"version": 1})
    await tell(database, version=2, loss=float("nan"))
    async with delivering(database, quick):
        away = await until_delivery(database, 2, "waiting", attempts=3)
        assert away.error is not None and "ConnectError" in away.error
        with receiver(307, 500, hang, 200, port=port) as made:
            told = await until_delivery(database, 2, "delivered")
            await tell(database, version=3)
            await until_delivery(database, 3, "delivered")
        hang.set()
    assert [received.path for received in made.received] == ["/hook?a=1"] * 5, "no redirect is followed"
    documents = [verify(received, webhook.secret) for received in made.received]
    assert len({received.body for received in made.received[:4]}) == 1, "each attempt is the same"
    assert documents[0] == {
        "id": told.message,
        "event": "version.published",
        "occurred_at": documents[0]["occurred_at"],
        "sequence": 2,
        "data": {"version": 2, "loss": "nan"},
    }
    assert datetime.fromisoformat(documents[0]["occurred_at"]) == told.occurred_at
    assert (documents[4]["sequence"], documents[4]["data"]) == (3, {"version": 3})
    assert documents[4]["id"] != documents[0]["id"]
    assert (told.answer, told.error, told.due_at) == (200, None, None)
    assert [delivery.number for delivery in (await list_deliveries(database, limit=9)).deliveries] == [3, 2]


async def test_a_slow_receiver_holds_up_no_other_and_what_is_given_up_can_be_sent_again(
    database: Database, quick: Settings
) -> None:
    hang = Flag()
    with receiver(hang, 500, 503, 500, *[500] * 100) as bad, receiver() as good:
        first, second = await add(database, bad.port), await add(database, good.port)
        await tell(database, version=1)
        soon = quick.model_copy(update={"webhook_give_up_hours": 1 / 3600, "webhook_timeout_seconds": 2.0})
        async with delivering(database, soon):
            await until(lambda: bad.received and good.received)
            assert (await until_delivery(database, 2, "delivered")).webhook == second.number
            assert (await until_delivery(database, 1, "waiting")).attempts == 1
            hang.set()
            failed = await until_delivery(database, 1, "failed")
            # Of the alert it is told too, perhaps by now.
            of_first = [each for each in bad.received if each.headers["webhook-id"] == failed.message]
            assert failed.attempts == len(of_first) > 1
            assert failed.error is not None and failed.error.startswith("HTTP 50")
            assert len(failed.error) < 300, "of a long answer a part is kept"
            (alert,) = (await list_alerts(database, limit=9, is_open=True)).alerts
            assert (alert.kind, alert.subject, alert.numbers["delivery"]) == ("webhook", str(first.number), 1)
            assert f"(http://127.0.0.1:{bad.port}) has not accepted version.published" in alert.message
            bad.answers.clear()
            assert (await redeliver(database, 1, actor="test")).attempts == 0
            told = await until_delivery(database, 1, "delivered")
        assert {verify(received, first.secret)["id"] for received in bad.received[:2]} == {told.message}
        alert_told = [verify(received, second.secret) for received in good.received]
        assert [document["event"] for document in alert_told[:2]] == ["version.published", "alert.opened"]
    assert (await list_alerts(database, limit=9, is_open=True)).alerts == []


async def test_an_endpoint_that_is_gone_is_switched_off_until_an_operator_switches_it_on(
    database: Database, quick: Settings
) -> None:
    with receiver(410) as gone:
        webhook = await add(database, gone.port)
        async with delivering(database, quick):
            await tell(database, version=1)
            assert (await until_delivery(database, 1, "failed")).answer == 410
            await tell(database, version=2)
            (shown,) = (await list_webhooks(database)).webhooks
            assert shown.off_reason == "it answered 410 Gone"
            (alert,) = (await list_alerts(database, limit=9)).alerts
            assert alert.closed_at is None
            assert alert.message.endswith("is switched off: it answered 410 Gone; deliveries given up: 1")
            with pytest.raises(StateConflict, match="expected webhook 1 to be on"):
                await redeliver(database, 1, actor="test")
            await switch_webhook(database, webhook.number, on=True, reason="it is back", actor="test")
            await redeliver(database, 1, actor="test")
            await until_delivery(database, 1, "delivered")
        assert {json.loads(received.body)["data"].get("version") for received in gone.received} == {1, None}
    assert [action for action, _ in await audited(database)] == [
        *("add_webhook", "switch_webhook_off", "open_alert", "switch_webhook_on", "close_alert", "redeliver")
    ]


async def test_a_worker_that_is_killed_before_it_notes_an_answer_leaves_it_to_the_next(
    database: Database, postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    hang = Flag()
    with receiver(hang) as made:
        webhook = await add(database, made.port)
        await tell(database, version=1)
        with forked_worker(postgres_dsn, redis_url, tmp_path, **QUICK | {"webhook_timeout_seconds": 2.0}) as worker:
            await until(lambda: made.received)
            worker.kill()
        hang.set()
        assert (await until_delivery(database, 1, "waiting")).attempts == 1
        with forked_worker(postgres_dsn, redis_url, tmp_path, **QUICK | {"webhook_timeout_seconds": 30.0}) as worker:
            told = await until_delivery(database, 1, "delivered")
            worker.stop()
        first, second = (verify(received, webhook.secret) for received in made.received)
        assert first == second and first["id"] == told.message and told.attempts == 2


async def test_a_restored_database_tells_nobody_until_an_operator_says_so(
    database: Database, empty: str, redis: Redis, tmp_path: Path
) -> None:
    await add(database, 1)
    await tell(database, version=1)
    await back_up(database, tmp_path / "backup")
    await restored(empty, redis, tmp_path / "backup")
    async with opened(empty) as copy:
        (shown,) = (await list_webhooks(copy)).webhooks
        assert shown.off_reason is not None and "restored from a backup of" in shown.off_reason
        (given_up,) = (await list_deliveries(copy, limit=9)).deliveries
        assert (given_up.status, given_up.error) == ("failed", f"the webhook was switched off: {shown.off_reason}")
        (alert,) = (await list_alerts(copy, limit=9, is_open=True)).alerts
        assert alert.numbers == {"webhook": 1, "given_up": 1}
    (waiting,) = (await list_deliveries(database, limit=9)).deliveries
    assert waiting.status == "waiting"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https://user:password@example.com/",
        "https://example.com/#fragment",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://[::g]/",
        "https:///path",
        "https://example.com\n/",
        "https://example.com/%zz",
        "https://example.com/\\@127.0.0.1/",
        "https://exämple.com/",
        f"https://example.com/{'x' * 2000}",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "https://169.254.169.254/latest/meta-data",
    ],
)
async def test_what_is_no_url_for_a_webhook_is_refused(database: Database, url: str) -> None:
    with pytest.raises(ValueError) as raised:
        await add_webhook(database, url, None, actor="test", networks=())
    assert "password" not in str(raised.value).replace("a password", "")
    assert (await list_webhooks(database)).webhooks == []


async def test_an_address_is_checked_when_it_is_connected_to(database: Database, quick: Settings) -> None:
    https, plain = parse_target("https://example.com/"), parse_target("http://example.com/")
    forbidden = ("127.0.0.1 10.1.2.3 192.168.0.1 169.254.169.254 100.100.100.200 0.0.0.0 224.0.0.1 255.255.255.255 "
                 "::1 :: fe80::1 fd00:ec2::254 ff0e::1 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1")  # fmt: skip
    for address in map(ip_address, forbidden.split()):
        with pytest.raises(Forbidden, match="no public address"):
            permit(https, address, ())
        permit(plain, address, (ip_network(address),))
    permit(https, ip_address("93.184.215.14"), ())
    permit(https, ip_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c"), ())
    with pytest.raises(Forbidden, match="expected https://"):
        permit(plain, ip_address("93.184.215.14"), ())
    for host in ("localhost", "2130706433", "0x7f000001", "127.1"):  # names of the resolver for 127.0.0.1
        target = parse_target(f"http://{host}:1/")
        with pytest.raises(Forbidden):
            await resolve(target, ())

    with receiver() as made:  # a name that is allowed to be stored, and is refused where it leads to
        url = f"http://localhost:{made.port}/"
        await add_webhook(database, url, None, actor="test", networks=())
        await tell(database, version=1)
        async with delivering(database, quick.model_copy(update={"webhook_networks": ()})):
            refused = await until_delivery(database, 1, "waiting", attempts=2)
        assert refused.error is not None and "is no public address" in refused.error
        assert made.received == []
        client = make_client()
        outcome = await send(client, url, ["whsec_AAAA"], refused, networks=LOOPBACK, seconds=5)
        await client.aclose()
        assert (outcome.answer, outcome.error) == (200, None)
        assert made.received[0].headers["host"] == f"localhost:{made.port}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")
async def test_a_certificate_has_to_be_the_name_s_own_though_the_address_is_connected_to(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    await add(database, 1)
    await tell(database, version=1)
    (delivery,) = (await list_deliveries(database, limit=1)).deliveries
    monkeypatch.setattr(socket, "getaddrinfo", _everything_is_here)
    with receiver(tls=context) as made:
        client = make_client()
        outcomes = [
            await send(
                client,
                f"https://{host}:{made.port}/",
                ["whsec_AAAA"],
                delivery,
                networks=LOOPBACK,
                seconds=5,
            )
            for host in ("localhost", "other.example")
        ]
        await client.aclose()
    assert (outcomes[0].answer, outcomes[0].error) == (200, None)
    assert outcomes[1].answer is None and "CERTIFICATE_VERIFY_FAILED" in str(outcomes[1].error)
    assert len(made.received) == 1


def _everything_is_here(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


class TestCalls:
    async def test_webhooks_over_http(self, quick: Settings, database: Database) -> None:
        with receiver() as made:
            async with running_app(quick) as api:
                await self.manage(api, made, database, quick)

    async def manage(self, api: Api, made: Receiver, database: Database, quick: Settings) -> None:
        url = f"http://127.0.0.1:{made.port}/token"
        added = await api.client.post("/admin/webhooks", json={"url": url, "events": ["version.rolled_back"]})
        assert added.status_code == 201
        webhook = added.json()
        assert webhook["secret"].startswith("whsec_") and len(base64.b64decode(webhook["secret"][6:])) == 32
        (shown,) = (await api.client.get("/admin/webhooks")).json()["webhooks"]
        assert shown == {name: value for name, value in webhook.items() if name != "secret"}
        for body, field in (
            ({"url": "ftp://a"}, "url"),
            ({"url": "http://10.0.0.1/"}, "url"),
            ({"url": url, "events": ["version.unheard"]}, "events[0]"),
            ({"url": url, "events": []}, "events"),
        ):
            refused = await api.client.post("/admin/webhooks", json=body)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text

        await publish(database, api.state.artifacts, 1, 0.1, lead_seconds=0)
        rolled = await api.client.post(
            "/admin/rollback", json={"to_version": 0, "sequence": "keep", "reason": "it is worse"}
        )
        assert rolled.status_code == 200
        rotated = (await api.client.post("/admin/webhooks/1/rotate", json={"overlap_hours": 1})).json()
        assert rotated["secret"] != webhook["secret"] and rotated["old_secret_until"] is not None
        async with delivering(database, quick):
            await until_delivery(database, 1, "delivered")
        document = verify(made.received[0], rotated["secret"], webhook["secret"])
        assert (document["event"], document["data"]) == (
            "version.rolled_back",
            {"from_version": 1, "to_version": 0, "sequence": "keep", "reason": "it is worse", "actor": "anonymous"},
        )
        page = (await api.client.get("/admin/webhooks/deliveries?webhook=1&status=delivered")).json()
        assert [delivery["number"] for delivery in page["deliveries"]] == [1]
        assert 'asmg_webhook_deliveries{status="delivered"} 1.0' in (await api.client.get("/metrics")).text
        assert (await api.client.post("/admin/webhooks/deliveries/1/redeliver")).json()["status"] == "waiting"
        off = await api.client.post("/admin/webhooks/1/off", json={"reason": "maintenance"})
        assert off.json()["off_reason"] == "maintenance"
        assert (await api.client.delete("/admin/webhooks/1")).status_code == 204
        assert (await api.client.delete("/admin/webhooks/1")).status_code == 404
        assert (await list_deliveries(database, limit=9)).deliveries == []
        actions = await audited(database)
        assert [action for action, _ in actions if action != "rollback"] == [
            *("add_webhook", "rotate_webhook_secret", "redeliver", "switch_webhook_off", "delete_webhook")
        ]
        assert "token" not in str(actions) and "whsec" not in str(actions)

    async def test_an_old_secret_ends(self, database: Database, quick: Settings) -> None:
        with receiver() as made:
            await add(database, made.port)
            rotated = await rotate_secret(database, 1, actor="test", overlap_hours=0)
            await tell(database, version=1)
            async with delivering(database, quick):
                await until_delivery(database, 1, "delivered")
            verify(made.received[0], rotated.secret)

    def test_webhooks_on_the_command_line(
        self, postgres_dsn: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (("POSTGRES_DSN", postgres_dsn), ("REDIS_URL", redis_url)):
            monkeypatch.setenv(f"ASMG_{name}", value)

        def run(*arguments: str, code: int = 0) -> str:
            result = CliRunner().invoke(app, ["webhooks", *arguments])
            assert result.exit_code == code, result.output
            return result.stdout if code == 0 else result.output

        secret = run("add", "https://example.com/hook", "--event", "alert.opened").strip()
        assert secret.startswith("whsec_")
        assert "https://example.com/hook" in run("list") and secret not in run("list")
        assert secret not in run("rotate", "1")
        assert "no public address" in run("add", "http://127.0.0.1/", code=1)
        assert "webhook 1 is off" in run("off", "1", "--reason", "maintenance")
        assert "webhook 1 is on" in run("on", "1", "--reason", "over")
        assert "there is no delivery 1" in run("redeliver", "1", code=1)
        assert "delivery" in run("deliveries", "--status", "failed")
        assert "webhook 1 is removed" in run("remove", "1")


async def test_old_deliveries_and_alerts_go_and_what_waits_or_is_open_stays(
    database: Database, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(database, 1)
    for version in range(4):
        await tell(database, version=version)
    async with database.unit_of_work() as work:
        for subject in ("1", "2", "3"):
            await raise_alert(work, AlertKind.QUARANTINED, "it is", subject=subject)
        for subject in ("1", "2"):
            await close_alert(work, AlertKind.QUARANTINED, subject=subject, reason="it is not")
        await work.commit()
    old = "now() - interval '91 days'"
    await sql(
        database,
        f"UPDATE webhook_deliveries SET occurred_at = {old}, attempted_at = {old}",
        "UPDATE webhook_deliveries SET status = 'failed', due_at = NULL WHERE number > 1",
        "UPDATE webhook_deliveries SET attempted_at = now() WHERE number > 2",
        f"UPDATE alerts SET opened_at = {old}, closed_at = {old} WHERE subject = '1'",
        f"UPDATE alerts SET opened_at = {old} WHERE subject = '3'",
    )
    await forget_notifications(database, quick)

    async def kept() -> tuple[set[int], set[str]]:
        deliveries = (await list_deliveries(database, limit=50)).deliveries
        return {d.number for d in deliveries}, {a.subject for a in (await list_alerts(database, limit=9)).alerts}

    everything = {1, *range(3, 10)}  # four of versions, three of alerts opened, two of alerts closed
    assert await kept() == (everything, {"2", "3"})
    monkeypatch.setattr("service.use_cases.retention.MAX_DELIVERIES", 3)
    await forget_notifications(database, quick)
    assert await kept() == ({1, 7, 8, 9}, {"2", "3"})
    assert (await list_deliveries(database, limit=9, status=DeliveryStatus.WAITING)).deliveries[0].number == 1
