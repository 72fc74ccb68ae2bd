"""Alerts: one open of each kind and subject, in the transaction of what caused it, and shown everywhere."""

import asyncio
import logging

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AlertKind, Severity
from service.use_cases.alerts import close_alert, list_alerts, raise_alert
from service.use_cases.audit import list_audit
from service.use_cases.close_period import close_period
from service.use_cases.quarantine import note_failure, retry_period, skip_period
from tests.service.api_support import Api, event, ingest


async def raised(
    database: Database, message: str, *, severity: Severity = Severity.WARNING, commit: bool = True
) -> None:
    async with database.unit_of_work() as work:
        await raise_alert(
            work, AlertKind.GATE_REFUSED, message, severity=severity, numbers={"loss": 0.7}, period=3, version=4
        )
        if commit:
            await work.commit()


def gauge(text: str, kind: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith(f'asmg_alerts{{kind="{kind}"}}'))
    return float(line.rsplit(" ", 1)[1])


async def test_an_alert_from_its_opening_to_its_end(
    api: Api, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    client = api.client
    await raised(database, "it did not happen", commit=False)
    assert (await client.get("/admin/alerts")).json() == {"alerts": [], "next": None}
    assert gauge((await client.get("/metrics")).text, "gate_refused") == 0
    with caplog.at_level(logging.WARNING):
        await raised(database, "period 3: LogLoss 0.7")
        await raised(database, "period 4: LogLoss 0.8")
        await raised(database, "period 5: LogLoss 0.9", severity=Severity.CRITICAL)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"alert gate_refused: period {n}: LogLoss 0.{n + 4}" for n in (3, 4, 5)]
    (alert,) = (await client.get("/admin/alerts?open=true")).json()["alerts"]
    number = alert["number"]  # 1 was of the transaction that was not committed
    told = {name: alert[name] for name in ("number", "kind", "subject", "severity", "period", "version", "times")}
    assert told == {
        **{"number": number, "kind": "gate_refused", "subject": "", "severity": "critical"},
        **{"period": 3, "version": 4, "times": 3},
    }
    assert (alert["message"], alert["numbers"], alert["closed_at"]) == ("period 5: LogLoss 0.9", {"loss": 0.7}, None)
    assert alert["opened_at"] < alert["raised_at"]
    assert gauge((await client.get("/metrics")).text, "gate_refused") == 1

    for body in ({}, {"reason": ""}, {"reason": "x", "close": 1}):
        assert (await client.post(f"/admin/alerts/{number}/acknowledge", json=body)).status_code == 422
    assert (await client.post("/admin/alerts/77/acknowledge", json={"reason": "x"})).status_code == 404
    seen = (await client.post(f"/admin/alerts/{number}/acknowledge", json={"reason": "looking"})).json()
    assert (seen["acknowledged_by"], seen["closed_at"]) == ("anonymous", None)
    closed = (
        await client.post(f"/admin/alerts/{number}/acknowledge", json={"reason": "meant so", "close": True})
    ).json()
    assert (closed["closed_by"], closed["closed_reason"]) == ("anonymous", "meant so")
    assert (await client.post(f"/admin/alerts/{number}/acknowledge", json={"reason": "again"})).status_code == 409
    assert gauge((await client.get("/metrics")).text, "gate_refused") == 0

    await raised(database, "period 9: LogLoss 0.7")  # it is another one now
    async with database.unit_of_work() as work:
        assert await close_alert(work, AlertKind.GATE_REFUSED, reason="version 9 serves") is not None
        assert await close_alert(work, AlertKind.GATE_REFUSED, reason="again") is None
        await work.commit()
    page = (await client.get("/admin/alerts?limit=1")).json()
    assert ([a["number"] for a in page["alerts"]], page["next"]) == ([number + 1], number + 1)
    page = (await client.get(f"/admin/alerts?limit=1&before={page['next']}&open=false")).json()
    assert ([a["number"] for a in page["alerts"]], page["next"]) == ([number], None)
    entries = [entry for entry in (await list_audit(database, limit=50)).entries if "alert" in entry.action][::-1]
    assert [(entry.actor, entry.action, entry.detail["alert"], entry.reason) for entry in entries] == [
        ("worker", "open_alert", number, "period 3: LogLoss 0.7"),
        ("worker", "open_alert", number, "period 5: LogLoss 0.9"),  # it has become critical
        ("anonymous", "acknowledge_alert", number, "looking"),
        ("anonymous", "acknowledge_alert", number, "meant so"),
        ("anonymous", "close_alert", number, "meant so"),
        ("worker", "open_alert", number + 1, "period 9: LogLoss 0.7"),
        ("worker", "close_alert", number + 1, "version 9 serves"),
    ]


async def test_a_quarantine_is_an_alert_until_an_operator_has_decided(api: Api, database: Database) -> None:
    for number in (1, 2):
        assert (await ingest(api.client, event(number))).is_success
        await close_period(database, expected_period=number, idempotency_key=None, actor="test")
        async with database.unit_of_work() as work:
            assert await work.periods.take(number, "w") is not None
            await work.commit()
        assert await note_failure(database, number, "w", ValueError("a row of nan"), max_attempts=1)
    alerts = (await list_alerts(database, limit=9, is_open=True)).alerts
    assert [(alert.subject, alert.period, alert.severity) for alert in alerts] == [
        ("2", 2, "critical"),
        ("1", 1, "critical"),
    ]
    assert alerts[1].message == "period 1 is in quarantine after 1 failed attempts: ValueError: a row of nan"
    await retry_period(database, 1, reason="repaired", actor="test")
    await skip_period(database, 2, reason="hopeless", actor="test")
    closed = (await list_alerts(database, limit=9)).alerts
    assert [(alert.closed_by, alert.closed_reason) for alert in closed] == [
        ("test", "period 2 is skipped: hopeless"),
        ("test", "period 1 is tried again: repaired"),
    ]


async def test_alerts_on_the_command_line(database: Database, postgres_dsn: str, redis_url: str) -> None:
    await raised(database, "period 3: LogLoss [bold]0.7")
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "COLUMNS": "250"}

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["alerts", *arguments], env=given)
        assert result.exit_code == code, result.output
        return result.output

    def everything() -> None:
        assert "period 3: LogLoss [bold]0.7" in run("list", "--open")
        assert "alert 1 is acknowledged" in run("acknowledge", "1", "--reason", "looking")
        assert "alert 1 is closed" in run("acknowledge", "1", "--reason", "meant so", "--close")
        assert "LogLoss" not in run("list", "--open")
        assert "LogLoss" in run("list")
        assert "it is closed since" in run("acknowledge", "1", "--reason", "again", code=1)

    await asyncio.to_thread(everything)
