"""What is shipped: the wheel, the scripts, the image and the compose file; without a Docker engine."""

import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["scripts/demo", "scripts/test", "scripts/check", "scripts/audit", ".ci/run"]
OUR_SERVICES = ["migrate", "api", "worker"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def parse_command(arguments: list[str]) -> list[str]:
    """Parse `asmg …` as the program would, but run nothing; return the names of the group and the command."""
    from typer.main import get_command

    from service.cli import app

    parsed: list[list[str]] = []

    def run_nothing(command: Any, path: list[str]) -> None:
        if hasattr(command, "commands"):
            command.callback = None
            for name, below in command.commands.items():
                run_nothing(below, [*path, name])
        else:
            command.callback = lambda **_: parsed.append(path)

    program, *rest = arguments
    assert program == "asmg"
    command = get_command(app)
    run_nothing(command, [])
    command.main(rest, standalone_mode=False)
    return parsed[0]


def test_the_wheel_holds_every_module_and_migration(wheel_names: set[str]) -> None:
    tracked = {
        path.relative_to(ROOT).as_posix()
        for package in ("asmg", "service", "benchmarks")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert {name for name in tracked if name.startswith("service/storage/postgres/migrations/versions/")}, (
        "no migration in the source tree"
    )
    assert tracked <= wheel_names


def test_the_wheel_holds_nothing_else_but_its_licence_and_metadata(wheel_names: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names} == {
        "asmg",
        "service",
        "benchmarks",
        "asmg_service-0.1.0.dist-info",
    }
    assert "asmg_service-0.1.0.dist-info/licenses/LICENSE" in wheel_names


def test_every_runtime_dependency_has_a_lower_bound(project: dict[str, Any]) -> None:
    for requirement in project["project"]["dependencies"]:
        assert ">=" in requirement.split(";")[0], requirement


def test_the_program_asmg_is_the_typer_app(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"asmg": "service.cli:app"}


def test_the_changelog_knows_the_version(project: dict[str, Any]) -> None:
    assert f"## [{project['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)


def run_in_env(tmp_path: Path, commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run commands after scripts/_env.sh, in a virtual environment whose python only notes its arguments."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/calls"\n', encoding="utf-8")
    python.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; . {ROOT}/scripts/_env.sh; {commands}"],
        env={"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path), **environment},
        text=True,
        capture_output=True,
    )


def test_the_second_run_of_a_script_starts_no_python(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    done = run_in_env(tmp_path, "use_env dev; wc -l < $VIRTUAL_ENV/calls; use_env dev; use_env ''")
    assert done.returncode == 0, done.stderr
    installs = [line for line in calls.read_text().splitlines() if " install " in line]
    assert installs == [f"-m pip install --disable-pip-version-check --no-compile --quiet --editable {ROOT}[dev]"]
    assert len(calls.read_text().splitlines()) == int(done.stdout)


def test_another_torch_is_installed_first_where_it_is_asked_for(tmp_path: Path) -> None:
    done = run_in_env(tmp_path, "use_env ''", ASMG_TORCH_SPEC="torch==2.12.0+cpu")
    assert done.returncode == 0, done.stderr
    installs = [
        line.split("--quiet ")[1] for line in (tmp_path / "calls").read_text().splitlines() if "--quiet" in line
    ]
    assert installs == ["torch==2.12.0+cpu", f"--editable {ROOT}"]


def test_a_folder_that_is_no_environment_is_named(tmp_path: Path) -> None:
    done = run_in_env(tmp_path, "rm $VIRTUAL_ENV/bin/python; use_env dev")
    assert done.returncode == 1
    assert f"error: expected a virtual environment at {tmp_path}" in done.stderr


def test_without_a_new_enough_python_the_script_says_so(tmp_path: Path) -> None:
    done = run_in_env(tmp_path, "is_new_enough() { false; }; make_venv $VIRTUAL_ENV/new")
    assert done.returncode == 1
    assert "error: expected Python 3.11 or newer on the PATH; found Python 3" in done.stderr


def test_compose_has_the_services_of_the_design(services: dict[str, Any], compose: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "redis", "prometheus", "grafana", *OUR_SERVICES}
    assert {name for name, service in services.items() if "profiles" in service} == {"prometheus", "grafana"}
    assert services["postgres"]["image"].startswith("postgres:16")
    assert services["redis"]["image"].startswith("redis:7")
    named = {mount.split(":")[0] for service in services.values() for mount in service.get("volumes", [])}
    assert {name for name in named if not name.startswith("./")} == set(compose["volumes"])
    assert all((ROOT / name).exists() for name in named if name.startswith("./"))


@pytest.mark.parametrize("name", OUR_SERVICES)
def test_compose_commands_are_commands_of_asmg(services: dict[str, Any], name: str) -> None:
    assert parse_command(services[name]["command"]) == [{"api": "serve"}.get(name, name)]


def test_commands_in_the_comments_of_compose_are_commands_of_asmg() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "docker compose run" in line]
    assert parse_command(line[line.index("asmg keys") :].split()) == ["keys", "create"]


def test_the_image_starts_a_command_of_asmg() -> None:
    (line,) = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    assert parse_command(yaml.safe_load(line.removeprefix("CMD "))) == ["serve"]


def test_an_unknown_option_or_command_would_be_noticed() -> None:
    for arguments in (["asmg", "worker", "--no-such-option"], ["asmg", "no-such-command"]):
        with pytest.raises(Exception, match=r"No such (option|command)"):
            parse_command(arguments)


def test_compose_starts_in_order(services: dict[str, Any]) -> None:
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker"):
        assert services[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
        }


def test_long_running_services_have_a_health_check_and_are_restarted(services: dict[str, Any]) -> None:
    for name in ("postgres", "redis", "api", "worker"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        assert services[name]["restart"] == "unless-stopped"
    assert services["migrate"]["healthcheck"] == {"disable": True}
    assert services["migrate"]["restart"] == "no"


def test_the_health_check_of_the_api_compiles(services: dict[str, Any]) -> None:
    _, program, flag, source = services["api"]["healthcheck"]["test"]
    assert (program, flag) == ("python", "-c")
    compile(source, "api", "exec")


def test_the_health_check_of_the_worker_is_a_command_of_asmg(services: dict[str, Any]) -> None:
    """What it checks: tests/service/test_heartbeat.py."""
    kind, *command = services["worker"]["healthcheck"]["test"]
    assert (kind, command) == ("CMD", ["asmg", "worker", "--check"])
    assert parse_command(command) == ["worker"]
    assert "/var/lib/asmg" in {mount.split(":")[1] for mount in services["worker"]["volumes"]}  # where its file is


def test_nothing_runs_as_root(services: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    final_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    # The last USER line is that of the running container.
    [user] = [number for number, line in enumerate(final_stage) if line.startswith("USER ")]
    assert final_stage[user] == "USER 10001:10001"
    assert any("useradd --uid 10001 --user-group" in line for line in final_stage[:user])
    assert not any(line.startswith("RUN ") for line in final_stage[user:])
    users = {name: "10001:10001" for name in OUR_SERVICES} | {"postgres": "postgres", "redis": "redis"}
    users |= {"prometheus": "nobody", "grafana": "472"}
    assert {name: service["user"] for name, service in services.items()} == users


def test_nothing_can_gain_a_privilege_or_change_its_own_image(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for forbidden in ("cap_add", "privileged", "devices", "pid", "ipc", "network_mode", "userns_mode"):
            assert forbidden not in service, (name, forbidden)


def test_containers_write_to_a_volume_or_to_a_bounded_tmpfs_only(services: dict[str, Any]) -> None:
    """And neither a folder of the host nor Docker's socket is mounted, but what monitoring reads of this repository."""
    for name, service in services.items():
        places = [mount.partition(":") for mount in service["tmpfs"]]
        assert "/tmp" in {place for place, _, _ in places}, name
        assert all(re.fullmatch(r"size=\d+m,mode=1777", options) for _, _, options in places), name
        assert all(re.match(r"\w+:|\./deploy/monitoring/.*:ro$", mount) for mount in service.get("volumes", ())), name
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    folders = dict(re.findall(r"(\w+_DIR)=(\S+)", text.rpartition("\nFROM ")[2]))
    assert folders == {"ASMG_DATA_DIR": "/var/lib/asmg", "NUMBA_CACHE_DIR": "/var/lib/asmg/numba"}
    assert "\nVOLUME /var/lib/asmg\n" in text


def test_an_import_sorts_on_the_volume_and_not_in_memory(services: dict[str, Any]) -> None:
    """That the import creates the folder: tests/service/test_backfill.py."""
    worker = services["worker"]
    assert worker["environment"].items() >= services["api"]["environment"].items()
    assert Path(worker["environment"]["TMPDIR"]).is_relative_to("/var/lib/asmg")
    assert "asmg:/var/lib/asmg" in worker["volumes"]


def test_ports_are_on_loopback_and_those_of_the_api_and_of_monitoring(services: dict[str, Any]) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "api": ["${ASMG_BIND:-127.0.0.1}:${ASMG_PORT:-8000}:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_the_password_has_no_default(services: dict[str, Any]) -> None:
    required = "${POSTGRES_PASSWORD:?"
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith(required)
    for name in OUR_SERVICES:
        environment = services[name]["environment"]
        assert environment["ASMG_POSTGRES_DSN"].startswith(f"postgresql://asmg:{required}")
        assert environment["ASMG_REDIS_URL"].startswith("redis://redis:6379")
