"""`asmg features check`, and the setting ASMG_FEATURES."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from asmg.features import DEFAULT, Field
from service.cli import app
from service.errors import ConfigurationError
from service.settings import Settings
from tests.service.programs import asmg

SHOP = """
timezone = "Europe/Berlin"
[fields.position]
of = "context"
kind = "categorical"
training_only = true
[fields.age]
of = "user"
kind = "numeric"
enter = "buckets"
buckets = [18, 25, 35]
[fields.tags]
of = "item"
kind = "multi"
most = 3
[fields.price]
of = "item"
kind = "numeric"
enter = "log"
[fields.length]
of = "item"
kind = "numeric"
"""


def check(file: Path) -> Result:
    return CliRunner().invoke(app, ["features", "check", str(file)], env={"COLUMNS": "120"})


def test_lists_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_text(SHOP)
    result = check(file)
    assert result.exit_code == 0
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ("hour", "context", "categorical", "one row of the table; made of the timestamp, Europe/Berlin"),
        ("weekday", "context", "categorical", "one row of the table; made of the timestamp, Europe/Berlin"),
        ("position", "context", "categorical", "one row of the table; missing when predicting"),
        ("age", "user", "numeric", "one row of the table for each of 4 buckets"),
        ("tags", "item", "multi", "at most 3 rows of the table"),
        ("price", "item", "numeric", "a number, standardised after log"),
        ("length", "item", "numeric", "a number, standardised"),
    ]


def test_says_one_line_for_each_fault(tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_text('[fields.a]\nof = "shop"\nkind = "text"\n[fields.hour]\nof = "item"\nkind = "multi"')
    result = check(file)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        f'asmg: {file}: fields.a.of: expected context, user or item; received "shop"',
        f'asmg: {file}: fields.a.kind: expected categorical, multi or numeric; received "text"',
        f"asmg: {file}: fields.hour: expected a name that is not reserved; received 'hour'",
    ]


def test_says_that_a_file_is_not_there(tmp_path: Path) -> None:
    result = check(tmp_path / "none.toml")
    assert result.exit_code == 2
    assert result.stderr == f"asmg: {tmp_path}/none.toml: No such file or directory\n"


class TestSetting:
    """ASMG_FEATURES."""

    def test_unset_is_the_default_schema(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ASMG_FEATURES", raising=False)
        assert Settings().read_features() == DEFAULT
        monkeypatch.setenv("ASMG_FEATURES", "")
        assert Settings().read_features() == DEFAULT

    def test_names_a_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "features.toml"
        file.write_text('[fields.device]\nof = "context"\nkind = "categorical"')
        monkeypatch.setenv("ASMG_FEATURES", str(file))
        assert Settings().read_features().fields == (Field("device", "context", "categorical"),)

    def test_what_is_wrong_is_one_message(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "features.toml"
        monkeypatch.setenv("ASMG_FEATURES", str(file))
        with pytest.raises(ConfigurationError) as missing:
            Settings().read_features()
        assert str(missing.value) == f"ASMG_FEATURES={file}: No such file or directory"
        file.write_text("[fields.a]")
        with pytest.raises(ConfigurationError) as faulty:
            Settings().read_features()
        assert str(faulty.value) == (
            f"ASMG_FEATURES={file}: fields.a.of: expected context, user or item; received nothing; "
            f"1 more: `asmg features check {file}` lists all"
        )

    def test_numbers_need_what_standardises_them(self, tmp_path: Path) -> None:
        file = tmp_path / "features.toml"
        bare = '[fields.{}]\nof = "item"\nkind = "numeric"\n'
        file.write_text(bare.format("age") + 'enter = "buckets"\nbuckets = [1]\n')
        assert len(Settings(features=file, statistics=False).read_features().fields) == 1
        file.write_text(bare.format("price"))
        assert len(Settings(features=file).read_features().fields) == 1
        with pytest.raises(ConfigurationError) as refused:
            Settings(features=file, statistics=False).read_features()
        assert str(refused.value) == (
            f"ASMG_FEATURES={file}: fields.price.enter: expected buckets, as without ASMG_STATISTICS nothing "
            "standardises numbers; received a field that enters as a number"
        )

    @pytest.mark.parametrize("program", [("serve", "--port", "0", "--no-worker"), ("worker",)])
    def test_ends_a_program_at_its_start(
        self, program: tuple[str, ...], postgres_dsn: str, redis_url: str, tmp_path: Path
    ) -> None:
        servers = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path)}
        result = asmg(*program, code=1, **servers, ASMG_FEATURES=str(tmp_path / "none.toml"))
        line = f"asmg: ASMG_FEATURES={tmp_path}/none.toml: No such file or directory"
        assert result.stderr.splitlines()[-1] == line and "Traceback" not in result.stderr
