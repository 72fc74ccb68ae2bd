"""`asmg experiment` from a raw log to the report, as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from asmg.datasets.prepared import read_prepared
from asmg.features import Field, Schema
from asmg.statistics import NAMES
from service.cli import app

METHODS = ["iu", "asmg-gru-multi", "logistic"]
PROTOCOL = ["--seeds", "1", "--periods", "8", "--pretrain", "3", "--test-from", "5"]
RUN = ["--methods", ",".join(METHODS), *PROTOCOL]


def asmg(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["experiment", *map(str, arguments)])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of ratings in the form of MovieLens 1M."""
    folder, rng = tmp_path_factory.mktemp("ml-1m"), np.random.default_rng(0)
    rows = zip(rng.integers(1, 50, 900), rng.integers(1, 30, 900), rng.integers(1, 6, 900), strict=True)
    ratings = [f"{user}::{film}::{stars}::{970_000_000 + 60 * n}\n" for n, (user, film, stars) in enumerate(rows)]
    (folder / "ratings.dat").write_text("".join(ratings), encoding="latin-1")
    films = [f"{n}::Film {n} (199{n % 10})::{'Drama|War' if n % 2 else 'Comedy'}\n" for n in range(1, 30)]
    (folder / "movies.dat").write_text("".join(films), encoding="latin-1")
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "log"
    result = asmg("prepare", "ml-1m", "--raw", raw, "--out", out)
    assert result.exit_code == 0, result.output
    assert "ml-1m: 900 rows" in result.output and "3 categories" in result.output
    return out


def test_from_the_raw_log_to_the_report(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shape = ["--dim", "4", "--hidden", "6,3", "--no-dot", "--drop-statistic", "repeat", "--drop-statistic", "pair_last"]
    result = asmg("run", "--data", prepared, "--out", out, *RUN, *shape, "--no-sensitivity")
    assert result.exit_code == 0, result.output
    assert "3 methods, 1 seeds: 3 runs, 0 of them done already" in result.output and "3 / 3  seed 0" in result.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dataset"] == "ml-1m" and list(summary["methods"]) == METHODS
    for found in summary["methods"].values():
        assert 0 < found["auc"]["mean"] < 1 and found["auc"]["std"] == 0 and found["seconds"] > 0
        assert len(found["auc"]["periods"]) == len(found["logloss"]["periods"]) == 3
    options = json.loads((out / "run.json").read_text())["options"]
    assert options["categories"] is True  # as the log has them
    assert (options["dim"], options["hidden"], options["dropped"]) == (4, [6, 3], ["repeat", "pair_last"])
    configs = json.loads((out / "run.json").read_text())["configs"]
    assert configs["logistic"]["fields"] == ["hour", "weekday"]
    config = configs["iu"]["model"]
    assert (config["dim"], config["hidden"], config.get("dot"), config["numeric"]) == (4, [6, 3], None, len(NAMES))
    result = asmg("report", out)
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(out / "report.md"), str(out / "report.html")]
    assert "ASMG-GRU multi" in (out / "report.md").read_text()
    result = asmg("run", "--data", prepared, "--out", out, *RUN, *shape, "--no-sensitivity", "--no-fields")
    assert result.exit_code == 1 and "run.json has fields True, not False" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "iu,sgd"], 1, "methods: expected some of iu, bu-3"),
        (["--seeds", "0"], 1, "seeds: expected at least 1; received 0"),
        (["--test-from", "8"], 1, "expected pretrain < test_from < periods"),
        (["--settings", "mine"], 1, "settings: expected default or paper; received 'mine'"),
        (["--drop-statistic", "mood"], 1, "dropped: expected some of user_interactions, "),
        (["--hidden", "12,x"], 1, "hidden: expected whole numbers separated by commas, such as 32,16; received '12,x'"),
        (["--dim", "0"], 1, "expected positive widths; received dim=0"),
        (["--periods", "901"], 1, "periods: expected at most 900, the rows of the log; received 901"),
        (["--data", "nowhere"], 2, "expected the card of a log that `asmg experiment prepare` has written"),
    ],
)
def test_bad_runs_end_with_one_line(
    prepared: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    result = asmg("run", "--data", prepared, "--out", out, *RUN, *arguments)
    assert result.exit_code == code and message in result.output
    assert len(result.output.strip().splitlines()) == 1 and not out.exists()


def test_a_log_of_ones_own_is_called_what_its_owner_says(tmp_path: Path) -> None:
    raw = tmp_path / "clicks.csv"
    raw.write_text("user_id,item_id,label,timestamp\n" + "".join(f"u{n % 3},i{n},1,{10**9 + n}\n" for n in range(9)))
    result = asmg("prepare", "log", "--name", "my shop", "--raw", raw, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("my shop: 9 rows")
    assert json.loads((tmp_path / "out" / "card.json").read_text())["dataset"] == "my shop"


def test_columns_become_fields(tmp_path: Path) -> None:
    raw, out = tmp_path / "clicks.csv", tmp_path / "out"
    header = "user_id,item_id,label,timestamp,tab,Page,price,colours\n"
    rows = [f"u{n % 3},i{n},{n % 2},{10**9 + n},t{n % 2},{n},{n / 4},red|blue\n" for n in range(9)]
    raw.write_text(header + "".join(rows))
    options = ["--context", "hour,tab", "--context", "page=Page", "--item-feature", "price"]
    result = asmg("prepare", "log", "--raw", raw, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1:] == [
        "  fields of the context: hour (categorical), weekday (categorical), tab (categorical), page (categorical)",
        "  fields of the item: price (numeric)",
        f"  {out / 'card.json'}",
    ]
    schema = Schema((
        Field("page", "context", "numeric", enter="buckets", buckets=(4,)), Field("colours", "item", "multi", 2)
    ), time=())  # fmt: skip
    (tmp_path / "features.toml").write_text(schema.to_toml())
    options = ["--features", str(tmp_path / "features.toml"), "--context", "page=Page"]
    result = asmg("prepare", "log", "--raw", raw, "--out", tmp_path / "other", *options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other" / "features.toml").read_text() == schema.to_toml()
    assert read_prepared(tmp_path / "other").by_row("colours").distinct == (("blue", "red"),)


@pytest.mark.parametrize(("options", "said"), [
    (["--context", "tab,"], "asmg: context: expected names, each once, such as hour,device=Device; received 'tab,'"),
    (["--item-feature", "a=b", "--item-feature", "a"], "asmg: item-feature: expected names, each once"),
    (["--user-feature", "a="], "asmg: user-feature: expected names, each once"),
    (["--context", "Tab"], "asmg: "),
    (["--features", "nowhere.toml"], "nowhere.toml"),
])  # fmt: skip
def test_bad_fields_end_with_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    raw = tmp_path / "clicks.csv"
    raw.write_text("user_id,item_id,label,timestamp,Tab\nu,i,1,1000000000,x\n")
    result = asmg("prepare", "log", "--raw", raw, "--out", tmp_path / "out", *options)
    assert result.exit_code in (1, 2) and said in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ([], True),
        (["--no-fields"], False),
        (["--settings", "paper"], False),
        (["--settings", "paper", "--fields"], True),
    ],
)
def test_fields_can_be_left_out(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fields: bool
) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(
        "asmg.experiments.run.run_experiment", lambda data, out, options, say: ran.append(options.protocol.fields)
    )
    result = asmg("run", "--data", prepared, "--out", tmp_path / "out", *RUN, *arguments)
    assert result.exit_code == 0, result.output
    assert ran == [fields]


def test_a_report_of_no_run(tmp_path: Path) -> None:
    result = asmg("report", tmp_path)
    assert result.exit_code == 1 and "run.json" in result.output and len(result.output.strip().splitlines()) == 1


def test_lightgbm_is_left_out_with_a_word_where_it_is_not_installed(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr("asmg.yardsticks.lightgbm_version", lambda: None)
    monkeypatch.setattr(
        "asmg.experiments.run.run_experiment", lambda data, out, options, say: ran.append(options.methods)
    )
    out = tmp_path / "out"
    result = asmg("run", "--data", prepared, "--out", out)
    assert result.exit_code == 0 and result.output.splitlines() == [
        "without lightgbm: lightgbm needs the package of that name: pip install 'asmg-service[peers]'"
    ]
    assert "logistic" in ran[0] and "lightgbm" not in ran[0]
    result = asmg("run", "--data", prepared, "--out", out, "--methods", "iu,lightgbm")
    assert result.exit_code == 1 and "methods: lightgbm needs the package of that name" in result.output
    assert len(ran) == 1 and not out.exists()
