"""Running an experiment: its files, going on after an interruption, what it refuses."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from asmg.base_state import dump_base
from asmg.datasets.prepared import PreparedLog
from asmg.experiments.chain import run_chain
from asmg.experiments.methods import MethodJob
from asmg.experiments.options import ExperimentOptions
from asmg.experiments.protocol import Protocol
from asmg.experiments.run import ExperimentError, run_experiment
from asmg.progressive import stage_rng
from asmg.updaters import UPDATERS
from asmg.yardsticks import installed_yardsticks
from tests.asmg.experiments import PROTOCOL, QUICK, ROWS, numbers, quiet
from tests.asmg.logs import prepare_small


class TestRun:
    """run_experiment."""

    def test_what_comes_out(self, finished_run: Path, small_log: PreparedLog) -> None:
        scores = pl.read_parquet(finished_run / "scores.parquet")
        jobs = scores.select("seed", "method", "variant").unique()
        variants = [f"k={k}" for k in (1, 2, 4, 5, 7)] + [f"hidden={d}" for d in (1, 2, 8, 16)]
        wanted = {(m, "") for m in QUICK.methods} | {("asmg-gru-multi", v) for v in variants}
        assert set(jobs.rows()) == {(seed, *job) for seed in (0, 1) for job in wanted}
        assert scores["dataset"].unique().to_list() == [small_log.card.dataset]
        for name, columns in {
            "scores": "dataset settings seed method variant step period test slice events clicks auc logloss "
            "calibration",
            "timings": "seed method variant step stage seconds cpu_seconds",
            "calibration": "seed method variant period bin count predicted clicked",
            "forgetting": "seed method variant step period auc logloss",
        }.items():
            assert pl.read_parquet(finished_run / f"{name}.parquet").columns == columns.split()
            about = json.loads(pl.read_parquet_metadata(finished_run / f"{name}.parquet")["asmg"])
            assert about == json.loads((finished_run / "run.json").read_text())
        assert set(pl.read_parquet(finished_run / "forgetting.parquet")["variant"]) == {""}
        run = json.loads((finished_run / "run.json").read_text())
        assert run["dataset"] == small_log.card.to_json()
        assert run["options"]["methods"] == list(QUICK.methods) and run["options"]["pretrain"] == 3
        assert run["versions"][0]["torch"] == torch.__version__.split("+")[0] or run["versions"][0]["torch"]
        assert run["configs"]["asmg-gru-multi k=5"]["method"]["window"] == 5
        assert not (finished_run / "chains").exists()
        assert not list(finished_run.rglob(".*"))

    def test_summary_by_hand(self, finished_run: Path) -> None:
        summary = json.loads((finished_run / "summary.json").read_text())
        scores = pl.read_parquet(finished_run / "scores.parquet")
        timings = pl.read_parquet(finished_run / "timings.parquet")
        tables: dict[tuple[str, str], np.ndarray] = {}
        assert list(summary["methods"]) == list(QUICK.methods)
        for method, found in summary["methods"].items():
            for metric in ("auc", "logloss"):
                table = [
                    [
                        row[metric]
                        for row in scores.to_dicts()
                        if (row["seed"], row["method"], row["variant"], row["slice"]) == (seed, method, "", "all")
                        and row["step"] == step
                    ]
                    for seed in (0, 1)
                    for step in (5, 6, 7)
                ]
                assert all(len(cell) == 1 for cell in table)
                values = np.array(table).reshape(2, 3)
                assert found[metric]["mean"] == pytest.approx(values.mean(), abs=1e-12)
                assert found[metric]["std"] == pytest.approx(values.mean(1).std(), abs=1e-12)
                assert found[metric]["periods"] == pytest.approx(values.mean(0).tolist(), abs=1e-12)
                tables[method, metric] = values
            mine = timings.filter((pl.col("method") == method) & (pl.col("variant") == ""))
            assert found["seconds"] == pytest.approx(sum(mine["seconds"]) / 2)
            fresh = scores.filter((pl.col("method") == method) & (pl.col("variant") == "") & pl.col("test"))
            fresh = fresh.filter(pl.col("slice") == "no repeat")
            for metric in ("auc", "logloss"):
                assert found["no_repeat"][metric]["mean"] == pytest.approx(np.mean(fresh[metric].to_numpy()), abs=1e-12)
                assert found["no_repeat"][metric]["mean"] != found[metric]["mean"]
        assert summary["sensitivity"]["asmg-gru-multi k=1"]["auc"]["mean"] > 0
        assert "against_iu" not in summary["methods"]["iu"]
        for (method, metric), values in tables.items():
            if method == "iu":
                continue
            better = (values - tables["iu", metric]) * (1 if metric == "auc" else -1)
            found = summary["methods"][method]["against_iu"][metric]
            assert (found["wins"], found["ties"]) == (int((better > 0).sum()), int((better == 0).sum()))
            assert found["pairs"] == 6
            by_seed = better.mean(1).tolist()
            assert found["worst_seed"]["seed"] == by_seed.index(min(by_seed))
            assert found["worst_seed"]["better"] == pytest.approx(min(by_seed), abs=1e-12)
        assert "against_iu" in summary["sensitivity"]["asmg-gru-multi k=1"]

    def test_goes_on_with_what_is_left(self, small_log_folder: Path, finished_run: Path, tmp_path: Path) -> None:
        """Fewer runs first, then all of them, in one process: the same numbers; and nothing is computed twice."""
        out = tmp_path / "out"
        run_experiment(small_log_folder, out, replace(QUICK, methods=("iu",), seeds=1), say=quiet)
        job = out / "jobs" / "seed-0" / "iu.json"
        before = job.stat().st_mtime_ns
        lines: list[str] = []
        run_experiment(small_log_folder, out, replace(QUICK, processes=1), say=lines.append)
        assert job.stat().st_mtime_ns == before and "24 runs, 1 of them done already" in lines[0]
        assert numbers(out) == numbers(finished_run)
        lines.clear()
        run_experiment(small_log_folder, out, QUICK, say=lines.append)
        assert "24 of them done already" in lines[0] and len(lines) == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_from": 6}, "out: expected a new folder, or one with the same protocol; .* has test_from 5, not 6"),
            ({"settings": "paper"}, "has settings 'default', not 'paper'"),
        ],
    )
    def test_refuses_another_experiment(
        self, small_log_folder: Path, finished_run: Path, changes: dict[str, Any], message: str
    ) -> None:
        before = sorted((f, f.stat().st_mtime_ns) for f in finished_run.rglob("*"))
        with pytest.raises(ValueError, match=message):
            run_experiment(
                small_log_folder, finished_run, replace(QUICK, protocol=replace(PROTOCOL, **changes)), say=quiet
            )
        assert sorted((f, f.stat().st_mtime_ns) for f in finished_run.rglob("*")) == before

    def test_refuses_another_log_and_other_folders(
        self, finished_run: Path, small_log_folder: Path, tmp_path: Path
    ) -> None:
        other = prepare_small(tmp_path / "log", rows=ROWS, seed=1)
        with pytest.raises(ValueError, match=r"one with the same dataset; .* has log_sha256"):
            run_experiment(other, finished_run, QUICK, say=quiet)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(ValueError, match="out: expected a new folder, or one of an earlier run"):
                run_experiment(small_log_folder, out, QUICK, say=quiet)
        assert [f.name for f in tmp_path.joinpath("mine").iterdir()] == ["thesis.txt"]

    def test_one_run_at_a_time_in_a_folder(self, small_log_folder: Path, finished_run: Path) -> None:
        before = sorted((f, f.stat().st_mtime_ns) for f in finished_run.rglob("*"))
        other = os.open(finished_run, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="out: expected a folder that no other run is at work in"):
            run_experiment(small_log_folder, finished_run, QUICK, say=quiet)
        os.close(other)  # as when that process ends
        assert sorted((f, f.stat().st_mtime_ns) for f in finished_run.rglob("*")) == before
        run_experiment(small_log_folder, finished_run, QUICK, say=quiet)

    def test_a_chain_of_other_versions_is_not_used(
        self, small_log_folder: Path, small_log: PreparedLog, tmp_path: Path
    ) -> None:
        """It is computed again, and the numbers are those of these versions."""
        out, options = tmp_path / "out", replace(QUICK, methods=("iu",), seeds=1)
        (out / "chains").mkdir(parents=True)
        chain = run_chain(out / "chains" / "seed-0", PROTOCOL.cut(small_log), PROTOCOL, seed=1)  # of another seed
        assert chain.complete
        note = json.loads((chain.folder / "chain.json").read_text())
        (chain.folder / "chain.json").write_text(json.dumps(note | {"versions": note["versions"] | {"torch": "1.0"}}))
        assert not chain.complete
        moved = out.rename(tmp_path / "chains-of-another-version")
        run_experiment(small_log_folder, out, options, say=quiet)
        expected = numbers(out)
        (out / "jobs" / "seed-0" / "iu.json").unlink()
        (moved / "chains").rename(out / "chains")
        run_experiment(small_log_folder, out, options, say=quiet)
        assert numbers(out) == expected

    def test_more_periods_than_rows(self, small_log_folder: Path, tmp_path: Path) -> None:
        options = replace(QUICK, protocol=Protocol(periods=5_000))
        with pytest.raises(ValueError, match="periods: expected at most 1603, the rows of the log; received 5000"):
            run_experiment(small_log_folder, tmp_path / "out", options, say=quiet)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"methods": ()}, "methods: expected at least one"),
            ({"methods": ("iu", "sgd")}, "methods: expected some of iu, .*; received 'sgd'"),
            ({"methods": ("iu", "iu")}, "methods: expected each once"),
            ({"seeds": 0}, "seeds: expected at least 1"),
            ({"processes": 0}, "processes: expected at least 1"),
        ],
    )
    def test_bad_options(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(QUICK, **changes)

    def test_all_methods_by_default(self) -> None:
        assert ExperimentOptions().methods == (*UPDATERS, *installed_yardsticks())
        assert not [job for job in ExperimentOptions(sensitivity=False).jobs if job.variant]


def test_a_method_that_diverges_is_named_and_the_others_stay(
    small_log_folder: Path, small_log: PreparedLog, tmp_path: Path
) -> None:
    out, options = tmp_path / "out", replace(QUICK, methods=("iu",), seeds=1)
    run_experiment(small_log_folder, out, options, say=quiet)
    periods, training = PROTOCOL.cut(small_log), MethodJob("bu-3").build(PROTOCOL).base
    base = training.pretrained(periods.data[:3], periods.data[3], stage_rng(0, 0, "pretrain"))
    run_chain(out / "chains" / "seed-0", periods, PROTOCOL, 0, start=base)
    huge = replace(base, params={name: 1e30 * p.sign() for name, p in base.params.items()})
    part = dump_base(training.model, huge)["base"]
    (out / "chains" / "seed-0" / "base.safetensors").write_bytes(part.to_bytes())
    with pytest.raises(ExperimentError, match=r"seed 0, bu-3: .*expected .*finite"):
        run_experiment(small_log_folder, out, replace(options, methods=("iu", "bu-3")), say=quiet)
    assert (out / "jobs" / "seed-0" / "iu.json").is_file()


COMMAND = [
    sys.executable, "-m", "service.cli", "experiment", "run", "--methods", ",".join(QUICK.methods), "--seeds", "2",
    "--periods", "8", "--pretrain", "3", "--test-from", "5", "--no-categories", "--no-sensitivity", "--processes", "2",
]  # fmt: skip


@pytest.mark.slow
class TestInterrupted:
    """Real processes, really killed."""

    @pytest.mark.nightly
    def test_killed_at_random_points_it_ends_with_the_same_numbers(
        self, small_log_folder: Path, tmp_path: Path
    ) -> None:
        undisturbed = tmp_path / "undisturbed"
        run_experiment(small_log_folder, undisturbed, replace(QUICK, sensitivity=False), say=quiet)
        out, draw = tmp_path / "out", random.Random(5)
        command = [*COMMAND, "--data", str(small_log_folder), "--out", str(out)]
        for signal_number in (signal.SIGKILL, signal.SIGTERM):  # test_demo ends a command by SIGINT
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            assert process.stdout is not None
            steps = draw.randint(1, 3)  # of 6 runs and 2 chains
            for line in process.stdout:
                steps -= "seed" in line and "runs" not in line
                if not steps:
                    break
            time.sleep(0.1 * draw.random())
            workers = children(process.pid)
            os.kill(process.pid, signal_number)
            code = process.wait(timeout=60)
            process.stdout.close()
            assert code != 0
            deadline = time.monotonic() + 30
            while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "processes were left behind"
        self.kill_a_worker(command)
        (out / "jobs" / "seed-0").mkdir(parents=True, exist_ok=True)
        (out / "jobs" / "seed-0" / ".iu.json.4711").write_text('{"scores": [')  # as a kill in the middle would leave
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
        assert numbers(out) == numbers(undisturbed)
        assert not (out / "chains").exists() and not list(out.rglob(".*"))

    def kill_a_worker(self, command: list[str]) -> None:
        """As the system does when memory runs out: the run ends with one line."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        deadline = time.monotonic() + 60
        while not (workers := spawned(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors == (
            "asmg: a process of the experiment was ended from outside (out of memory?); the same command goes on from "
            "here\n"
        )


def spawned(pid: int) -> list[int]:
    """The worker processes among the children of a run; the other one looks after semaphores."""
    return [child for child in children(pid) if b"spawn_main" in (Path("/proc") / str(child) / "cmdline").read_bytes()]


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    if not Path("/proc").is_dir():
        pytest.skip("expected /proc to find the processes of a run")
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found
