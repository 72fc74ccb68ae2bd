"""`deploy/monitoring/`: the alert rules do what they say, and rules and dashboard name metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.metrics import Metrics
from service.telemetry.worker_metrics import WorkerMetrics

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "asmg.json"


def offered() -> set[str]:
    """Names of all series of the api and of a worker."""
    text = (Metrics().render() + WorkerMetrics().render()).decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (asmg_\w+) (\w+)$", text, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alert-rules.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def expressions() -> Iterator[str]:
    for rule in rules().values():
        yield rule["expr"]
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_rules_and_dashboard_name_metrics_that_there_are() -> None:
    named = {name for expression in expressions() for name in re.findall(r"\basmg_\w+", expression)}
    assert len(named) > 20
    assert named <= offered()


def test_the_rules_are_those_of_the_documentation() -> None:
    table = (
        (ROOT / "docs" / "operations.md")
        .read_text(encoding="utf-8")
        .partition("| alert | when |")[2]
        .partition("\n\n")[0]
    )
    documented = dict(re.findall(r"^\| `(\w+)` \| .* \| (\w+) \|$", table, re.MULTILINE))
    assert documented == {name: rule["labels"]["severity"] for name, rule in rules().items()}


def test_a_workers_metrics_are_those_of_the_documentation() -> None:
    table = (
        (ROOT / "docs" / "operations.md")
        .read_text(encoding="utf-8")
        .partition("| worker's metric |")[2]
        .partition("\n\n")[0]
    )
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(\w+)`", table, re.MULTILINE)}
    text = WorkerMetrics().render().decode()
    shown = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (asmg_worker_\w+) ", text, re.MULTILINE)}
    assert documented == {name for name in shown if not name.endswith("_created")}


def test_a_panel_reads_from_the_source_that_is_provided() -> None:
    provisioned = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    [source] = yaml.safe_load(provisioned.read_text(encoding="utf-8"))["datasources"]
    panels = [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)


def promtool(*arguments: str | Path) -> None:
    """Run Prometheus' own checker."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", MONITORING / "prometheus.yml")


def test_a_collapse_and_outages_fire_and_a_quiet_day_does_not() -> None:
    """Series and what is expected of them: `alert-rules-test.yml`."""
    promtool("test", "rules", MONITORING / "alert-rules-test.yml")
    played = yaml.safe_load((MONITORING / "alert-rules-test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in played for case in test.get("alert_rule_test", ()) if case.get("exp_alerts")}
    for test in played:
        for case in test.get("promql_expr_test", ()):
            fired |= set(re.findall(r'alertname="(\w+)"', str(case["exp_samples"])))
    assert fired == set(rules()), "a rule that is never seen to fire"


def test_the_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    records = [{"record": f"panel_{n}", "expr": expression} for n, expression in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", "--lint=none", tmp_path / "panels.yml")
