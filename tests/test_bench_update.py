"""`asmg bench update` measures what it says. No test depends on how long anything takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from asmg.batch import PeriodData
from asmg.training import predict_logits
from asmg.updaters.asmg import Asmg, AsmgState
from benchmarks.learning.updaters import learned_state
from benchmarks.learning.workload import Workload, synthetic_workload
from benchmarks.measuring import Samples
from benchmarks.update import against_reference, run, translation, whole_table
from benchmarks.update.agreement import Agreement, Disagreement, agreement
from benchmarks.update.one_method import measure_apart
from benchmarks.update.translation import Reference, reference_batch
from tests.bench_support import SIZES, assert_one_line, bench
from tests.bench_support import TINY_STREAM as TINY


@pytest.fixture(scope="module")
def workload() -> Workload:
    return synthetic_workload(SIZES, seed=0)


@pytest.fixture(scope="module")
def paper() -> Asmg:
    return against_reference.build("paper")


@pytest.fixture(scope="module")
def state(paper: Asmg, workload: Workload) -> AsmgState:
    found: AsmgState = learned_state(paper, workload.before, 0)
    return found


# --- the reference against asmg


def test_the_state_before_has_a_full_window_and_a_past(paper: Asmg, state: AsmgState) -> None:
    assert len(state.models) == paper.config.window == 3
    assert all(bool(h.abs().max() > 0) for h in state.hidden.values()), "a carried hidden state"
    assert state.adam.step > 0, "a generator that was trained"


def test_the_reference_reads_interactions_as_they_are() -> None:
    data = PeriodData(
        user=torch.tensor([2, 1], dtype=torch.int32),
        item=torch.tensor([3, 1], dtype=torch.int32),
        history=torch.tensor([1, 4, 2], dtype=torch.int32),
        offsets=torch.tensor([0, 3, 3]),
        label=torch.tensor([1.0, 0.0]),
        users=3,
        items=5,
    )
    batch = reference_batch(data, torch.tensor([1, 0]))  # rows of ours are ids of theirs plus one
    assert batch.user.tolist() == [0, 1]
    assert batch.item.tolist() == [0, 2]
    assert batch.length.tolist() == [0, 3]
    assert batch.history.shape == (2, 30)
    assert batch.history[1, :3].tolist() == [0, 3, 1]
    assert not batch.history[0].any() and not batch.history[1, 3:].any()
    assert batch.label.tolist() == [0.0, 1.0]


def test_a_translated_model_predicts_the_same(paper: Asmg, state: AsmgState, workload: Workload) -> None:
    data = workload.measured
    ours = functional.binary_cross_entropy_with_logits(
        predict_logits(paper.model, state.base.params, data), data.label
    )  # fmt: skip
    theirs = whole_table.base_loss(Reference.of(paper, state).model, reference_batch(data, torch.arange(len(data))))
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_ours_and_the_reference_agree(state: AsmgState, workload: Workload, compiled: bool) -> None:
    found = agreement(against_reference.build("paper", compiled=compiled), state, workload.measured)
    assert found.base_loss < 1e-5
    assert found.generator_loss < 1e-5
    assert found.base_weights < 1e-3, "of one of Adam's steps"
    assert found.generator_weights < 1e-3
    assert found.generated < 1e-5


def test_the_check_leaves_the_state_as_it_was(paper: Asmg, state: AsmgState, workload: Workload) -> None:
    before = {name: w.clone() for name, w in state.weights.items()}
    agreement(paper, state, workload.measured)
    assert all(torch.equal(state.weights[name], w) for name, w in before.items())


def wrong_gate(weights: Any, models: Any, hidden: Any) -> Any:
    swapped = {n: weights[n.replace(".uz", ".ur") if n.endswith(".uz") else n] for n in weights}
    return RIGHT_GENERATED(swapped, models, hidden)


def wrong_pooling(params: Any, batch: Any) -> Any:
    return RIGHT_LOSS(params, batch._replace(length=batch.length.clamp(max=2)))


class SlowerAdam(whole_table.DenseAdam):
    def step(self, params: Any, grads: Any) -> None:
        self.t += 1  # a step is left out of the bias correction
        super().step(params, grads)


RIGHT_GENERATED, RIGHT_LOSS = whole_table.generated, whole_table.base_loss


@pytest.mark.parametrize(
    ("module", "name", "wrong", "message"),
    [
        (whole_table, "generated", wrong_gate, "generation"),
        (whole_table, "base_loss", wrong_pooling, "base update.*loss"),
        (whole_table, "LINEAR_WEIGHTS", (3 / 6, 2 / 6, 1 / 6), "generator training.*loss"),
        (translation, "DenseAdam", SlowerAdam, "base update.*of Adam's step"),
    ],
)
def test_the_check_catches_a_wrong_reference(
    paper: Asmg, state: AsmgState, workload: Workload, monkeypatch: pytest.MonkeyPatch,
    module: Any, name: str, wrong: Any, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(Disagreement, match=message):
        agreement(paper, state, workload.measured)


def test_no_ratio_is_printed_where_the_reference_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(whole_table, "generated", wrong_gate)
    done = bench("update", *TINY, "--report", str(tmp_path / "report.json"))
    assert done.exit_code == 1
    assert done.stderr.startswith("asmg: generation: ours and the whole-table reference disagree")
    assert len(done.stderr.splitlines()) == 1
    assert "faster" not in done.stdout
    assert not (tmp_path / "report.json").exists()


# --- asmg bench ranks


@pytest.mark.nightly
def test_bench_ranks_writes_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = bench(
        "ranks", *TINY, "--ranks", "2", "--batches", "64", "--repeats", "1", "--ids", "5000", "--report", str(report)
    )
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(report.read_text())["cells"]
    assert (cell["batch"], cell["ranks"]) == (64, 2)
    assert all(cell[stage]["seconds"] > 0 for stage in ("train_generator", "update_base"))


def test_bench_ranks_refuses_numbers_that_make_no_sense() -> None:
    result = bench("ranks", "--ranks", "2,2")
    assert result.exit_code != 0 and "ranks: expected distinct numbers" in result.output


# --- asmg bench update


@pytest.mark.nightly
def test_update_reports_all_that_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    options = [
        "--repeats",
        "2",
        "--reference-batches",
        "2",
        "--methods",
        "iu",
        "--settings",
        "default",
        "--threads",
        "1",
    ]
    done = bench("update", *TINY, "--idle", "2", *options, "--report", str(file))
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text(encoding="utf-8"))
    for part in ("base", "generator", "generate"):
        found = report[part]
        assert found["ratio"] == pytest.approx(found["reference_seconds"] / found["seconds"])
        for kind in ("", "eager_", "reference_"):
            repeats = found[f"{kind}repeats"]
            assert len(repeats["seconds"]) == len(repeats["cpu_seconds"]) == len(repeats["threads"]) == 2
            assert found[f"{kind}seconds"] == pytest.approx(sum(repeats["seconds"]) / 2), "the median of two"
    assert report["generator"]["reference_of_batches"] == 3, "600 interactions make three batches of 256"
    assert report["data"] | {"rows": 600, "users": 80, "items": 50, "idle": 2} == report["data"]
    assert report["data"]["active_users"] <= 40
    assert report["machine"]["torch_threads"] == 1
    assert set(report["methods"]) == {"iu", against_reference.METHOD}, "whose memory is always measured"
    stages = report["methods"]["iu"]["stages"]
    assert list(stages) == ["prepare", "update_base", "commit", "count"], "with statistics, as it is served"
    assert {stages[name]["rows"] for name in ("prepare", "update_base", "count")} == {600}
    assert stages["commit"]["rows"] == 130, "those of the tables"
    assert report["peak_mb"] == report["methods"][against_reference.METHOD]["memory"]["peak_mb"]
    for words in ("Against whole tables", "reference", "timed on 2 batches", "checked: 2 steps", "iu", "commit", "MB"):
        assert words in done.stdout


def without_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Agreement(
        steps=2, base_loss=0, base_weights=0, generator_loss=0, generator_weights=0, generated=0
    )  # fmt: skip
    taken = Samples([2.0], [1.0], [1])
    one = against_reference.Versus(ours=taken, eager=taken, reference=taken, batches=3)
    found = against_reference.Comparison(nothing, nothing, one, one, one)
    monkeypatch.setattr(run, "compare", lambda *args, **kwargs: found)


def test_a_method_that_fails_is_named_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_reference(monkeypatch)
    memory = {"peak_mb": 1.0, "peak_rss_mb": 3.0, "rss_before_mb": 1.5, "new_tables_mb": 0.5, "how": "by hand"}

    def measured(method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if method == "iu":
            raise ValueError("iu: it broke")
        return {"stages": {}, "memory": memory}

    monkeypatch.setattr(run, "measure_apart", measured)
    file = tmp_path / "report.json"
    done = bench("update", *TINY, "--methods", "iu,incctr", "--report", str(file))
    assert done.exit_code == 1
    assert "iu failed: iu: it broke" in done.stdout
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["methods"]["iu"] == {"error": "iu: it broke"}
    assert report["methods"]["incctr"]["memory"] == memory


@pytest.mark.nightly
def test_a_process_that_fails_says_why(workload: Workload) -> None:
    with pytest.raises(ValueError, match=r"no-such-method: .*updater: expected one of"):
        measure_apart("no-such-method", workload, repeats=1, seed=0, threads=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["update", "--users", "0"], 1, "users: expected at least 1; received 0"),
        (["update", "--rows", "-5"], 1, "rows: expected at least 1; received -5"),
        (["update", "--history", "31"], 1, "history: expected 0 to 30; received 31"),
        (["update", "--idle", "0"], 1, "idle: expected at least 1; received 0"),
        (["update", "--repeats", "0"], 1, "repeats: expected at least 1; received 0"),
        (["update", "--reference-batches", "0"], 1, "reference-batches: expected at least 1; received 0"),
        (["update", "--threads", "0"], 1, "threads: expected at least 1; received 0"),
        (["update", "--seed", "-1"], 1, "seed: expected at least 0; received -1"),
        (["update", "--settings", "best"], 1, "settings: expected paper or default; received 'best'"),
        (["update", "--methods", "iu,uu"], 1, "received uu"),
        (["update", "--data", "x", "--users", "5"], 1, "received both, --data and --users"),
        (["update", "--periods", "31"], 1, "expected --periods with --data"),
        (["update", "--data", "/no/such/folder"], 2, "/no/such/folder: No such file or directory"),
        (["update", "--report", "/no/such/folder/report.json"], 1, "/no/such/folder/report.json: expected"),
        (["scaling", "--idle", "1,x"], 1, "idle: expected whole numbers separated by commas; received '1,x'"),
        (["scaling", "--idle", "10,1"], 1, "idle: expected distinct factors ≥ 1, ascending"),
        (["scaling", "--idle", "0,1"], 1, "idle: expected distinct factors ≥ 1, ascending"),
        (["scaling", "--items", "0"], 1, "items: expected at least 1; received 0"),
        (["scaling", "--threads", "0"], 1, "threads: expected at least 1; received 0"),
        (["scaling", "--idle", "1,1000000000"], 1, "of memory and"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    assert_one_line(bench(*arguments), message, code)


def test_a_folder_that_holds_no_log_is_named(tmp_path: Path) -> None:
    assert_one_line(bench("update", "--data", str(tmp_path)), str(tmp_path), 2)
