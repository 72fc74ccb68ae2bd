"""The settings of the storage."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, sqlalchemy_dsn


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASMG_POSTGRES_DSN", "ASMG_REDIS_URL", "ASMG_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", ["postgres://", "postgresql://", "postgresql+asyncpg://"])
def test_every_spelling_of_postgres_gets_the_one_driver(scheme: str) -> None:
    assert sqlalchemy_dsn(f"{scheme}u:p%40@h:5433/d") == "postgresql+asyncpg://u:p%40@h:5433/d"
    settings = Settings(postgres_dsn=f"{scheme}h/d", redis_url="redis://h")
    assert settings.postgres_dsn == "postgresql+asyncpg://h/d"
    assert not settings.embedded


def test_embedded_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    assert settings.embedded
    assert settings.data_dir == Path.home() / ".local/share/asmg"
    monkeypatch.setenv("ASMG_DATA_DIR", "~/elsewhere")
    monkeypatch.setenv("ASMG_POSTGRES_DSN", "")
    monkeypatch.setenv("ASMG_REDIS_URL", "")
    assert Settings().data_dir == Path.home() / "elsewhere"
    assert Settings().embedded


def test_one_of_two_servers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMG_POSTGRES_DSN", "postgresql://u:secret@h/d")
    with pytest.raises(ValidationError, match="received ASMG_POSTGRES_DSN without ASMG_REDIS_URL") as raised:
        Settings()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"), [("postgres_dsn", "mysql://h/d"), ("redis_url", "http://h"), ("prior_ctr", "1"), ("port", "-1")]
)
def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("ASMG_POSTGRES_DSN", "postgresql://h/d")
    monkeypatch.setenv("ASMG_REDIS_URL", "redis://h")
    monkeypatch.setenv(f"ASMG_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_every_setting_is_in_the_table_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("| variable | default |")[2].partition("\n\n")[0]
    documented = [name for row in table.splitlines() for name in re.findall(r"`(ASMG_[A-Z_]+)`", row.split(" | ")[0])]
    assert sorted(documented) == sorted(f"ASMG_{name.upper()}" for name in Settings.model_fields)
    assert set(re.findall(r"ASMG_[A-Z_]*[A-Z]", page)) <= set(documented)
