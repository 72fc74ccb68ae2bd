"""A period of which 95 % are random clicks, from the log to whoever is to be woken: nothing of it is served, and the
worker's log, alerts, a metric, Prometheus' rules, a webhook and the console say so.

The real api and the real worker, on a stream whose sixth period is noise.
"""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from playwright.sync_api import expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from asmg.datasets.synthetic import DriftConfig, DriftPeriod
from asmg_client import Client, Interaction, Item
from tests.conftest import Servers, create_database, database_dsn, drop_database, flush, in_thread
from tests.service.api_support import make_keys, served_app, settings_for
from tests.service.programs import wait_for
from tests.service.receivers import Received, receiver
from tests.service.test_console_browser import CHROMIUM, FLAGS
from tests.service.test_webhooks import verify
from tests.service.update_support import periods
from tests.service.worker_processes import forked_worker

STREAM = DriftConfig(users=80, items=30, events=500, categories=4)
NOISY = 6
"""The first period of which the rules know enough to speak."""

pytestmark = pytest.mark.slow

RULES = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "alert-rules.yml"
FIRING = {
    'AsmgGateRefuses",severity="warning': 1,
    'AsmgLogLossWorseThanConstant",severity="critical': 1,
    'AsmgAlertOpen",kind="gate_refused': 1,
    'AsmgAlertOpen",kind="live_loss': 1,
}
"""Rules, with a label, that have to fire after the period and not before; how many alerts of each."""


@dataclass
class Collapsed:
    """A service after the period."""

    url: str
    key: str
    client: Client
    secret: str
    told: list[Received]
    """What its webhook has received, the last of which is about the alert that the served model loses."""
    log: str
    """Of the worker."""
    quiet: str
    """`/metrics` before the period."""
    noisy: str
    """`/metrics` after it."""


def events(period: DriftPeriod) -> Iterator[Interaction]:
    rng = np.random.default_rng(1)
    labels = (rng.random(len(period.labels)) < 0.95).astype(int) if period.number == NOISY else period.labels
    rows = zip(period.user_ids, period.item_ids, labels.tolist(), period.timestamps_ms.tolist(), strict=True)
    return (Interaction(user, item, label, at) for user, item, label, at in rows)


@pytest.fixture(scope="module")
def collapsed(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collapsed]:
    name, folder = f"{migrated_template}_{next(database_numbers)}", tmp_path_factory.mktemp("collapse")
    create_database(servers, name, migrated_template)
    flush(servers.redis_url)
    dsn = database_dsn(servers, name)
    key, _ = in_thread(asyncio.run, make_keys(dsn))
    reach: dict[str, Any] = {"webhook_networks": ("127.0.0.0/8",)}
    settings = settings_for(dsn, servers.redis_url, folder / "data", **reach)
    with (
        served_app(settings) as url,
        forked_worker(dsn, servers.redis_url, folder, **reach) as worker,
        receiver() as hook,
        Client(url, key) as client,
    ):
        wait_for(lambda: httpx.get(f"{url}/readyz", verify=False).is_success)
        secret = client.add_webhook(f"http://127.0.0.1:{hook.port}/in", events=["gate.refused", "alert.opened"]).secret
        scraped = {}
        for period in periods(NOISY, config=STREAM):
            client.put_items([Item(item, names) for item, names in period.new_items.items()])
            client.interactions(events(period))
            client.close_period(expected_period=period.number)
            wait_for(lambda number=period.number: judged(client, number))
            wait_for(lambda version=period.number: client.readiness().model_version == version)
            scraped[period.number] = httpx.get(f"{url}/metrics").text
        wait_for(lambda: any(b"live_loss" in each.body for each in hook.received))
        yield Collapsed(url, key, client, secret, hook.received, worker.log, scraped[NOISY - 1], scraped[NOISY])
        worker.stop()
    drop_database(servers, name)


def judged(client: Client, number: int) -> bool:
    """Whether a period has its version, and the guardrails have looked at it."""
    version = client.get_period(number).version
    if version is None or number == 1:  # nothing was served before that could be kept
        return version is not None
    return any((cell.version, cell.period) == (version, number) for cell in client.get_samples().cells)


def test_nothing_is_published_and_everybody_is_told(collapsed: Collapsed) -> None:
    client = collapsed.client
    refused = client.get_model(NOISY)
    assert (refused.kind, refused.digest) == ("previous", client.get_model(NOISY - 1).digest)
    assert refused.gate["strange"] == 1
    state = client.get_overview().installation
    assert (state.refused_in_a_row, state.gate_decisions["previous"]) == (1, 1)
    alerts = {alert.kind: alert for alert in client.list_alerts(is_open=True).alerts}
    assert alerts.keys() >= {"gate_refused", "live_loss", "drift_clicks"}
    assert {alert.period for alert in alerts.values()} == {NOISY}
    assert (alerts["gate_refused"].severity, alerts["live_loss"].severity) == ("warning", "critical")
    assert client.list_alerts(is_open=False).alerts == []  # none before it
    for kind, alert in alerts.items():
        assert re.search(rf"WARNING.*alert {kind}: {re.escape(alert.message)}", collapsed.log)
    told = [verify(each, collapsed.secret) for each in collapsed.told]
    assert {each["event"] for each in told} == {"gate.refused", "alert.opened"}
    opened = {each["data"]["kind"]: each["data"] for each in told if each["event"] == "alert.opened"}
    assert opened["gate_refused"]["message"] == alerts["gate_refused"].message
    ids = {each["id"] for each in told}
    wait_for(lambda: ids <= {each.message for each in client.list_deliveries(status="delivered").deliveries})
    assert 'asmg_alerts{kind="gate_refused"} 1.0' in collapsed.noisy.splitlines()
    assert 'asmg_alerts{kind="gate_refused"} 0.0' in collapsed.quiet.splitlines()


def test_the_alert_rules_fire_on_what_the_service_shows(collapsed: Collapsed, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")

    def played(name: str, metrics: str, firing: bool) -> dict[str, Any]:
        expected = {f'count(ALERTS{{alertstate="firing",alertname="{rule}"}})': n for rule, n in FIRING.items()}
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
        return {
            "name": name,
            "interval": "1m",
            "input_series": [
                {
                    "series": each.name + "{" + ",".join(f"{k}={json.dumps(v)}" for k, v in each.labels.items()) + "}",
                    "values": f"{each.value}x5",
                }
                for each in samples
                if each.name.startswith("asmg_")
            ],
            "promql_expr_test": [
                {"expr": rule, "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": n}] if firing else []}
                for rule, n in expected.items()
            ],
        }

    tests = [played("before", collapsed.quiet, False), played("after", collapsed.noisy, True)]
    path = tmp_path / "collapse.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_console_has_a_red_line(collapsed: Collapsed) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; ASMG_TEST_CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(f"{collapsed.url}/console")
        page.get_by_label("API key").fill(collapsed.key)
        page.keyboard.press("Enter")
        banner = page.locator(".banner.bad")
        expect(banner).to_contain_text(re.compile("worse than a constant"), timeout=20_000)
        expect(banner).to_contain_text(f"period {NOISY}")
        colour = banner.evaluate("e => getComputedStyle(e).color")
        red, *others = map(int, re.findall(r"\d+", colour)[:3])
        assert red > 2 * max(others), colour
        browser.close()
