"""Servers as benchmarks start and stop them, and whole runs of `asmg bench serve` at a tiny size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.http_load.load import Load
from benchmarks.machine import cpu_seconds, memory_bytes
from benchmarks.servers import MARK, Server, ServerFailed, free_port
from benchmarks.serving.against import measure_against
from benchmarks.serving.options import VARIANTS
from service.processes.child import CHILD_MODULE
from tests.bench_support import bench

REQUEST = b"POST /predict HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"

# --- servers


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ASMG_")}


FAMILY = """
import subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_):
        pass

sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
subprocess.run(["sh", "-c", '"$@" & echo left', "sh", *sleep])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.nightly
def test_a_server_goes_with_all_that_it_has_started(tmp_path: Path) -> None:
    port = free_port()
    server = Server(
        "family", [*script(FAMILY), str(port)], port, environment=environment(), log=tmp_path / "log"
    )  # fmt: skip
    with server:
        server.wait_ready(lambda: server.answers(REQUEST) == b"ok")
        processes = server.processes()
        assert len(processes) >= 3
        assert memory_bytes(processes) > 5e6
        before = cpu_seconds(processes)
        assert server.ask(Load(requests=[REQUEST], connections=1, count=20, seconds=10)).failed == 0
        assert cpu_seconds(processes) > before > 0
        mark = processes[0].environ()[MARK]
    for process in processes:
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    for process in psutil.process_iter():
        try:
            assert process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE, "one got away"
        except psutil.Error:
            continue
    with pytest.raises(ServerFailed, match="family cannot be connected to"):
        server.ask(Load(requests=[REQUEST], connections=1, count=1, seconds=1))


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    server = Server(
        "broken", script("raise SystemExit('no good')"), free_port(), environment=environment(), log=tmp_path / "log"
    )  # fmt: skip
    with server, pytest.raises(ServerFailed, match=r"(?s)broken ended with code 1:.*no good"):
        server.wait_ready(lambda: False)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.servers.START_SECONDS", 0.3)
    text = "import time; print('hm', flush=True); time.sleep(60)"
    server = Server("idle", script(text), free_port(), environment=environment(), log=tmp_path / "log")
    with server, pytest.raises(ServerFailed, match=r"(?s)idle was not ready within 0 s.*hm"):
        server.wait_ready(lambda: False)


# --- whole runs

TINY = [
    *("--users", "30", "--catalogue", "80", "--requests", "60", "--warm-up", "5", "--rounds", "1"),
    *("--items", "3", "--concurrency", "2", "--workers", "1"),
]


@pytest.mark.nightly
def test_it_compares_and_reports(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = ["--variants", "asmg,plain,noop", "--rounds", "2", "--seconds", "0.5"]
    done = bench("serve", *TINY, "--compare", *options, "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert set(report) == {"cells", "swap", "machine", "options", "left_out"}
    assert report["swap"] is None and report["left_out"] == {}
    assert [(cell["variant"], cell["loop"]) for cell in report["cells"]] == [
        ("asmg", "closed"),
        ("plain", "closed"),
        ("noop", "closed"),
        ("asmg", "open"),
    ]
    for cell in report["cells"]:
        assert (cell["n"], cell["concurrency"], cell["workers"], cell["failed"]) == (3, 2, 1, 0)
        assert 0 < cell["p50_ms"] <= cell["p95_ms"] <= cell["p99_ms"] <= cell["max_ms"]
        assert cell["rps"] > 0 and cell["cpu_us"] > 0 and cell["memory_mb"] > 1
        for entry in cell["rounds"]:
            assert entry["requests"] == (60 if cell["loop"] == "closed" else int(entry["rate"] * 0.5))
    capacity = [entry["rps"] for entry in report["cells"][0]["rounds"]]
    assert [entry["rate"] for entry in report["cells"][3]["rounds"]] == pytest.approx([0.7 * rps for rps in capacity])
    assert report["cells"][0]["stores_cpu_us"] >= 0
    assert report["machine"]["versions"]["uvicorn"]
    assert report["options"]["variants"] == ["asmg", "plain", "noop"]
    for words in ("times the requests", "of no-op", "Closed loop, medians of 2 rounds", "Open loop", "plain"):
        assert words in done.stdout


@pytest.mark.nightly
def test_fields_are_measured_beside_the_same_without(tmp_path: Path) -> None:
    """Their answers are compared with those of the torch model, so features of users have reached the service."""
    file = tmp_path / "report.json"
    done = bench("serve", *TINY, "--fields", "10", "--open-loop", "0", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["left_out"] == {} and report["options"]["fields"] == 10
    assert [cell["variant"] for cell in report["cells"]] == ["asmg-statistics", "asmg-fields"]
    assert [cell["failed"] for cell in report["cells"]] == [0, 0]
    assert "CPU of asmg-statistics" in done.stdout and "CPU of asmg  " not in done.stdout


@pytest.mark.nightly
def test_versions_are_published_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.swap.BETWEEN_SECONDS", 0.5)
    file = tmp_path / "report.json"
    swap = ["--during-swap", "--versions", "2", "--rows", "3000", "--rate", "100", "--open-loop", "0.5"]
    done = bench("serve", *TINY, *swap, "--report", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text(encoding="utf-8"))["swap"]
    assert (found["versions"], found["failed"], found["mixed"], found["went_back"]) == (2, 0, 0, 0), found
    assert found["rows"] == 3000 and found["rate"] == 100
    assert found["p99_ratio"] == pytest.approx(found["p99_during_ms"] / found["p99_between_ms"])
    assert found["requests_during"] > 200 and found["requests_between"] > 50
    assert len(found["switch_seconds"]) == len(found["last_old_seconds"]) == 2
    assert all(0 < seconds < 60 for seconds in (*found["last_old_seconds"], *found["switch_seconds"]))
    assert "2 versions of 3,000 rows" in done.stdout


@pytest.mark.nightly
def test_deltas_and_new_bases_are_published_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.swap.BETWEEN_SECONDS", 0.5)
    file = tmp_path / "report.json"
    swap = ["--during-swap", "--fetch", "--versions", "3", "--deltas", "2", "--rows", "3000", "--rate", "100"]
    done = bench("serve", *TINY, *swap, "--open-loop", "0.5", "--report", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text(encoding="utf-8"))["swap"]
    counts = [found[name] for name in ("versions", "renewals", "failed", "mixed", "went_back")]
    assert counts == [3, 1, 0, 0, 0], found
    assert len(found["p99_ratios"]) == 3 and len(found["switch_seconds_renewing"]) == 1
    assert found["requests_renewing"] > 50
    assert "3 deltas of at most 0.1 MB to a base of 3,000 rows" in done.stdout


@pytest.mark.nightly
def test_a_variant_that_is_not_installed_or_does_not_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = VARIANTS["ray"].__class__(name="ray", file="no_such_file", package="json")
    monkeypatch.setitem(VARIANTS, "ray", broken)
    absent = VARIANTS["litserve"].__class__(name="litserve", file="lit_serve", package="surely_not_installed")
    monkeypatch.setitem(VARIANTS, "litserve", absent)
    file = tmp_path / "report.json"
    done = bench("serve", *TINY, "--variants", "noop,litserve,ray", "--all-cells", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert {cell["variant"] for cell in report["cells"]} == {"noop"}
    assert report["left_out"]["litserve"] == "not installed (pip install 'asmg-service[peers]')"
    assert "no_such_file" in report["left_out"]["ray"]
    assert "litserve: not installed" in done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.package])
def test_each_peer_that_is_installed_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    if not VARIANTS[name].installed:
        pytest.skip("not installed")
    file = tmp_path / "report.json"
    done = bench("serve", *TINY, "--variants", name, "--all-cells", "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["left_out"] == {}
    assert [(cell["variant"], cell["failed"]) for cell in report["cells"]] == [(name, 0)]


@pytest.mark.nightly
def test_a_checkout_is_measured_against_itself() -> None:
    [found] = measure_against(Path(__file__).resolve().parents[1], [1], rounds=2)
    assert {name: len(values) for name, values in found.items()} == {"before": 2, "now": 2, "canary": 2}
    assert all(5 < value < 5000 for values in found.values() for value in values)


@pytest.mark.nightly
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, data_dir: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "bench", "serve", *TINY, "--rounds", "1000"]
    (folder := data_dir.parent / "t").mkdir()  # short enough for a Unix socket
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**environment(), "TMPDIR": str(folder)}
        )  # fmt: skip
    deadline = time.monotonic() + 90
    while not any(CHILD_MODULE in " ".join(_command(one)) for one in _children(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.05)
    assert [*folder.glob("asmg-bench-*")]
    mine = {one.pid for one in _children(process.pid)}
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "out").read_text()
    assert "interrupted; everything was stopped and removed" in (tmp_path / "out").read_text()
    assert not [*folder.glob("asmg-bench-*")]
    for pid in mine:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
