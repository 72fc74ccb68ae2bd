"""The Helm chart and the systemd units: what the tools of each say of them, and that they fit the service.

Helm itself is the Go library in the package helm-python-sdk. It runs in a process of its own, because a Go runtime
takes signals over.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.routers import ops
from service.processes.supervisor import STOP_SECONDS
from service.settings import Settings
from tests.service.api_support import all_calls
from tests.test_packaging import parse_command

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "asmg"
UNITS = ROOT / "deploy" / "systemd"

SETTINGS = {f"ASMG_{name.upper()}" for name in Settings.model_fields}
CUSTOM = ("PrometheusRule", "ServiceMonitor")
"""Kinds of the Prometheus operator, of which there are no schemas."""
KUBERNETES = ("1.27", "1.37")
"""The oldest release that the chart says it is for, and the newest that there are schemas of."""

LEAST = {"image": {"repository": "images/asmg"}, "existingSecret": "asmg-servers"}
ALL = {
    "image": {"repository": "images/asmg", "tag": "7"},
    "imagePullSecrets": [{"name": "pull"}],
    "postgresDsn": "postgresql://u:p@db1,db2/asmg?target_session_attrs=read-write",
    "redisUrl": "redis+sentinel://:p@s1,s2,s3/asmg/0",
    "settings": {"ASMG_UPDATER": "asmg-gru-multi", "ASMG_SEED": 3, "ASMG_STATISTICS": True},
    "features": 'timezone = "Europe/Berlin"\ntime = ["hour"]\n',
    "serviceAccountName": "asmg",
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "priorityClassName": "high",
    "worker": {"replicas": 3, "persistence": {"enabled": False}},
    "api": {"autoscaling": {"enabled": False}, "replicas": 4},
    "deletionJournal": {"existingClaim": "journal"},
    "service": {"annotations": {"a": "b"}},
    "ingress": {"enabled": True, "host": "asmg.example.com", "className": "nginx", "tlsSecretName": "tls"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 5432}]}]},
}
REFUSED = {
    "no image": {"existingSecret": "s"},
    "no servers": {"image": {"repository": "r"}},
    "one server": {"image": {"repository": "r"}, "postgresDsn": "postgresql://h/d"},
    "a value that is not there": {**LEAST, "workers": 2},
    "an address among the settings": {**LEAST, "settings": {"ASMG_REDIS_URL": "redis://h"}},
    "a setting without its prefix": {**LEAST, "settings": {"UPDATER": "iu"}},
    "an ingress without a host": {**LEAST, "ingress": {"enabled": True}},
}

HELM = """
import json, sys
import helm_python
chart, cases = sys.argv[1], json.load(sys.stdin)
told = {}
for name, values in cases.items():
    with helm_python.Chart.load(chart) as loaded:
        try:
            loaded.validate_schema(values)
            told[name] = {"files": loaded.render(values, name="shop", namespace="prod")}
            told[name]["lint"] = helm_python.lint(chart, values=values, strict=True)
        except helm_python.HelmError as error:
            told[name] = {"error": str(error)}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helm() -> dict[str, Any]:
    """What Helm makes of the chart with each of the values above."""
    if find_spec("helm_python") is None:
        pytest.skip("the package helm-python-sdk is not installed (it is for Linux on x86-64)")
    cases = {"least": LEAST, "all": ALL, **REFUSED}
    command = [sys.executable, "-c", HELM, str(CHART)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def objects_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of one installation."""
    assert "error" not in told, told["error"]
    texts = [text for name, text in told["files"].items() if not name.endswith(".txt")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found is not None]


@pytest.fixture(params=["least", "all"])
def objects(helm: dict[str, Any], request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return objects_of(helm[request.param])


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Component and template of each kind of pod."""
    for found in objects:
        if "template" in found.get("spec", ()):
            template = found["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


@pytest.mark.parametrize("name", ["least", "all"])
def test_helm_finds_nothing_wrong(helm: dict[str, Any], name: str) -> None:
    lint = helm[name]["lint"]
    assert lint["errors"] == []
    assert [found["error"] for found in lint["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_one_of_kubernetes(objects: list[dict[str, Any]], version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for found in objects:
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)


def test_the_objects_are_those_that_were_asked_for(helm: dict[str, Any]) -> None:
    kinds = {name: sorted(found["kind"] for found in objects_of(helm[name])) for name in ("least", "all")}
    base = ["ConfigMap", "Deployment", "Job", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    assert kinds["least"] == sorted([*base, "HorizontalPodAutoscaler"])
    more = ["ConfigMap", "Ingress", "NetworkPolicy", "NetworkPolicy", "Secret", "Secret", *CUSTOM, "ServiceMonitor"]
    assert kinds["all"] == sorted([*base, *more])
    custom = [found for found in objects_of(helm["all"]) if found["kind"] in CUSTOM]
    assert all(found["metadata"]["labels"]["release"] == "prometheus" for found in custom)
    specs = {found["metadata"]["name"].rpartition("-")[2]: found["spec"] for found in custom}
    endpoints = [specs[component]["endpoints"] for component in ("api", "worker")]
    assert endpoints == [[{"port": port, "path": "/metrics", "interval": "30s"}] for port in ("http", "metrics")]
    [rules] = [found["spec"] for found in custom if found["kind"] == "PrometheusRule"]
    assert rules == yaml.safe_load((ROOT / "deploy" / "monitoring" / "alert-rules.yml").read_text(encoding="utf-8"))


def test_prometheus_finds_a_port_for_each_monitor(helm: dict[str, Any]) -> None:
    """A ServiceMonitor names a port of a Service, which names one of the container."""
    rendered = objects_of(helm["all"])
    services = {
        found["metadata"]["labels"]["app.kubernetes.io/component"]: {port["name"] for port in found["spec"]["ports"]}
        for found in rendered
        if found["kind"] == "Service"
    }
    ports = {
        component: {port["name"] for port in pod["spec"]["containers"][0].get("ports", ())}
        for component, pod in pods(rendered)
    }
    assert services == {"api": {"http"}, "worker": {"metrics"}}
    assert all(names <= ports[component] for component, names in services.items())


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_work_are_refused(helm: dict[str, Any], name: str) -> None:
    assert "error" in helm[name], name


def test_pods_run_commands_of_asmg(objects: list[dict[str, Any]]) -> None:
    commands = {component: pod["spec"]["containers"][0]["args"] for component, pod in pods(objects)}
    assert {component: parse_command(command) for component, command in commands.items()} == {
        "api": ["serve"],
        "worker": ["worker"],
        "migrate": ["migrate"],
    }
    [worker] = [pod for component, pod in pods(objects) if component == "worker"]
    for probe in ("startupProbe", "livenessProbe"):
        assert parse_command(worker["spec"]["containers"][0][probe]["exec"]["command"]) == ["worker"]


def test_pods_are_locked_in(objects: list[dict[str, Any]]) -> None:
    """As Kubernetes' restricted profile asks, and more."""
    for component, pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, component
        # Of a Service named asmg Kubernetes would make a variable ASMG_PORT=tcp://…, which is a setting.
        assert spec["enableServiceLinks"] is False, component
        assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, 10001)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"], component
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp", "/var/lib/asmg"}


def test_variables_are_settings(objects: list[dict[str, Any]]) -> None:
    names = [name for found in objects if found["kind"] == "ConfigMap" for name in found["data"] or ()]
    names += [name for found in objects if found["kind"] == "Secret" for name in found["stringData"]]
    for _, pod in pods(objects):
        names += [variable["name"] for variable in pod["spec"]["containers"][0].get("env", ())]
    others = {"NUMBA_CACHE_DIR", "POD_NAME", "TMPDIR", "features.toml"}
    assert {name for name in names if name not in SETTINGS} <= others


def test_selectors_find_the_pods_that_they_are_for(objects: list[dict[str, Any]]) -> None:
    labels = {component: pod["metadata"]["labels"] for component, pod in pods(objects)}
    for found in objects:
        spec = found.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        selector = selector.get("matchLabels", selector)
        if selector and found["kind"] not in CUSTOM:
            chosen = [component for component, of_pod in labels.items() if selector.items() <= of_pod.items()]
            assert chosen == [found["metadata"]["labels"]["app.kubernetes.io/component"]], found["kind"]


def test_the_ingress_leads_to_every_call_but_those_of_operators(helm: dict[str, Any]) -> None:
    [ingress] = [found for found in objects_of(helm["all"]) if found["kind"] == "Ingress"]
    paths = {path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]}
    hidden = {route.path for route in ops.router.routes} | {"/docs", "/console", "/openapi.json"}  # type: ignore[attr-defined]
    assert paths == {"/" + path.split("/")[1] for _, path in all_calls()} - hidden


def test_there_is_time_to_end(helm: dict[str, Any]) -> None:
    for component, pod in pods(objects_of(helm["least"])):
        if component == "api":
            [_, drain] = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert pod["spec"]["terminationGracePeriodSeconds"] > int(drain) + STOP_SECONDS


def unit(name: str) -> dict[str, str]:
    """The options of a unit that are given once."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    paths = []
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.target")]:
        paths.append(tmp_path / path.name)
        text = path.read_text(encoding="utf-8")
        paths[-1].write_text(text.replace("=/opt/asmg/bin/asmg ", "=/bin/true "), encoding="utf-8")
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}  # and, behind the colon, those of the system
    command = ["systemd-analyze", "verify", *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["api", "worker", "migrate"])
def test_units_run_commands_of_asmg_as_their_own_user(name: str) -> None:
    options = unit(f"asmg-{name}.service")
    program, *arguments = options["ExecStart"].split()
    assert parse_command([Path(program).name, *arguments]) == [{"api": "serve"}.get(name, name)]
    assert (options["User"], options["NoNewPrivileges"], options["CapabilityBoundingSet"]) == ("asmg", "yes", "")
    assert "WatchdogSec" not in options  # the service does not tell systemd that it lives
    assert "MemoryDenyWriteExecute" not in options  # it compiles machine code


def test_systemd_waits_longer_than_the_service_takes_to_end() -> None:
    assert int(unit("asmg-api.service")["TimeoutStopSec"]) > STOP_SECONDS


def test_the_environment_of_the_units_has_settings_only() -> None:
    lines = (UNITS / "asmg.env").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert given.keys() <= SETTINGS
    Settings(**{name.removeprefix("ASMG_").lower(): value for name, value in given.items()})
