"""The OpenAPI document makes clients that work: one in TypeScript, by `openapi-typescript`."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from tests.client.conftest import Service
from tests.service.api_support import settings_for

PROGRAM = Path(__file__).parent / "typescript"


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return create_app(settings_for("postgresql://a/b", "redis://a", tmp_path)).openapi()


def test_the_document_says_what_generators_need(document: dict[str, Any]) -> None:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"post_predict", "get_models"} < set(names)
    for operation in operations:
        assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
        answers = [answer for status, answer in operation["responses"].items() if status[0] == "2"]
        assert all("schema" in content for answer in answers for content in answer["content"].values())
    for schema in schemas(document):
        # Of both, generators make a choice, but it is a conjunction.
        assert not ({"anyOf", "properties"} <= set(schema) or {"oneOf", "properties"} <= set(schema))
        if schema.get("type") == "integer":
            assert all(type(schema.get(bound, 0)) is int for bound in ("minimum", "maximum"))
            assert -(2**63) <= schema.get("minimum", 0) <= schema.get("maximum", 0) < 2**63


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of the document, schemas among them."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas(part)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_client_in_typescript(service: Service, document: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path / "typescript"
    shutil.copytree(PROGRAM, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "npm_config_update_notifier": "false"}
        return subprocess.run(command, cwd=folder, text=True, capture_output=True, env=environment)

    installed = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")
    if installed.returncode != 0 and any(f"code {code}" in installed.stderr for code in UNREACHABLE):
        pytest.skip(f"npm's registry is not reachable: {installed.stderr[:200]}")
    assert installed.returncode == 0, installed.stderr
    for command in (
        ["node_modules/.bin/openapi-typescript", "openapi.json", "-o", "api.d.ts"],
        ["node_modules/.bin/tsc"],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run("node", "shop.js", service.url, service.key)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "scores": [0.25, 0.25],
        "ingested": {"accepted": 2, "duplicates": 0, "period": 1},
        "closed": {"period": 1, "status": "sealed", "status_url": "/periods/1"},
        "status": "sealed",
        "kind": "prior",
        "problem": "items",
        "sent": 1,
    }


UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ECONNRESET", "ENETUNREACH", "E403")
"""npm's codes where it does not reach its registry, or may not."""
