"""The console's files and headers, and the endpoints that it needs; `test_console_browser` drives it in a browser."""

import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from service.errors import PeriodNotFound
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.audit import list_audit
from service.use_cases.keys import SCOPES, create_key
from tests.service.api_support import Api, event, ingest, served_app, settings_for

FOLDER = files("service.http") / "console"
NAMES = sorted(path.name for path in FOLDER.iterdir())
IN_PAGE = re.compile(r"(?:src|href)=\"console/([^\"]+)\"")
IN_MODULE = re.compile(r"(?:from|import\()\s*\"\./([^\"]+)\"")


def loaded_by(name: str, text: str) -> set[str]:
    """Names of the files of the console that one of them loads."""
    return set((IN_PAGE if name.endswith(".html") else IN_MODULE).findall(text))


def test_no_file_names_another_host_and_each_is_used() -> None:
    used: set[str] = set()
    for name in NAMES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        places = re.findall(r"\w+://[^\s\"')]+", text)
        assert set(places) <= {"http://www.w3.org/2000/svg"}, name  # the name of a language, which nobody loads
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "@import",
        ):
            assert way not in text, (name, way)
        assert len(text.splitlines()) <= 400
        if name.endswith((".html", ".js")):
            assert loaded_by(name, text) <= set(NAMES), name
            used |= loaded_by(name, text)
    assert used == set(NAMES) - {"index.html"}


@pytest.mark.parametrize("prefix", ["", "/shop/ctr"])
def test_the_page_and_its_files(prefix: str, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    settings = settings_for(postgres_dsn, redis_url, tmp_path, root_path=prefix)
    with served_app(settings) as url, httpx.Client(base_url=url) as client:
        page = client.get(f"{prefix}/console")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-store"
        policy = {name: values for name, *values in map(str.split, page.headers["content-security-policy"].split(";"))}
        assert policy == {
            "default-src": ["'none'"],
            **{f"{kind}-src": ["'self'"] for kind in ("script", "style", "img", "connect")},
            **{kind: ["'none'"] for kind in ("base-uri", "form-action", "frame-ancestors", "trusted-types")},
            "require-trusted-types-for": ["'script'"],
        }
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page.text)
        for name in loaded_by("index.html", page.text):
            # Relative to `/console`, as a browser has it.
            address = page.url.join(f"console/{name}")
            file = client.get(address)
            assert file.status_code == 200
            assert file.headers.get_list("cache-control") == ["no-cache"], "kept, and asked for each time"
            assert file.headers.get_list("x-content-type-options") == ["nosniff"]
            etag = file.headers["etag"]
            again = client.get(address, headers={"If-None-Match": f'"other", W/{etag}'})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
            assert client.get(address, headers={"If-None-Match": '"other"'}).content == file.content
        # The answer after one that may be kept may not be kept.
        assert client.get(f"{prefix}/healthz").headers.get_list("cache-control") == ["no-store"]
        typed = client.get(f"{prefix}/console/")
        assert (typed.status_code, typed.headers["location"]) == (308, f"{prefix}/console")
        for name in ("index.html", "nothing.js", "..%2fapp_state.py", "../headers.py", "%2e%2e/headers.py"):
            assert client.get(f"{prefix}/console/{name}").status_code == 404


async def test_keys_are_made_limited_and_revoked_with_an_audit(api: Api, database: Database) -> None:
    assert (await api.client.get("/admin/keys")).json() == {"keys": []}
    made = await api.client.post("/admin/keys", json={"name": "first", "scopes": ["admin", "predict"]})
    assert made.status_code == 201
    key_id, key = made.json()["key_id"], made.json()["key"]
    client, headers = api.client, {"Authorization": f"Bearer {key}"}
    soon = {"name": "job", "scopes": ["ingest"], "rate_limit": 2.5, "expires_at": "2090-01-01T00:00:00Z"}
    refused = await client.post("/admin/keys", json=soon, headers=headers)
    assert (refused.status_code, "within 3650 days" in refused.json()["detail"]) == (422, True)
    del soon["expires_at"]
    other = (await client.post("/admin/keys", json={**soon, "reason": "nightly"}, headers=headers)).json()["key_id"]
    for changes in ({"name": " "}, {"scopes": []}, {"scopes": ["root"]}, {"rate_limit": -1}, {"rate_limit": 1e-9}):
        wrong = await client.post("/admin/keys", json={**soon, **changes}, headers=headers)
        assert wrong.status_code == 422, changes
    limited = await client.post(
        f"/admin/keys/{other}/limit", json={"rate_limit": 0, "reason": "trusted"}, headers=headers
    )
    assert limited.json()["rate_limit"] == 0
    revoked = await client.post(f"/admin/keys/{other}/revoke", json={"reason": "done"}, headers=headers)
    assert (revoked.json()["valid"], revoked.json()["revoked_at"] is None) == (False, False)
    for path, body in (("revoke", {}), ("limit", {"rate_limit": 1})):
        gone = await client.post(f"/admin/keys/{other}/{path}", json={**body, "reason": "again"}, headers=headers)
        assert (gone.status_code, gone.json()["title"]) == (404, "Key not found")
    listed = await client.get("/admin/keys", headers=headers)
    assert [each["name"] for each in listed.json()["keys"]] == ["first", "job"]
    assert key.rpartition("_")[2] not in listed.text and "hash" not in listed.text
    entries = (await list_audit(database, limit=10)).entries
    actor = f"first ({key_id})"
    assert [(entry.action, entry.actor, entry.reason) for entry in entries] == [
        ("revoke_key", actor, "done"),
        ("limit_key", actor, "trusted"),
        ("create_key", actor, "nightly"),
        ("create_key", "anonymous", None),
    ]


async def test_periods_are_retried_and_skipped_with_an_audit(api: Api, database: Database) -> None:
    key_id, key = await create_key(database, "operator", SCOPES)
    api.client.headers["X-API-Key"] = key
    await ingest(api.client, event(1))
    await api.client.post("/periods/close")
    async with database.unit_of_work() as work:
        await work.periods.set_status(1, PeriodStatus.QUARANTINED, error="it failed", attempts=3)
        await work.commit()
    overview = (await api.client.get("/admin/overview")).json()["installation"]
    assert (overview["newest"]["status"], overview["periods"]["quarantined"]) == ("quarantined", 1)
    retried = await api.client.post("/periods/1/retry", json={"reason": "a new disk"})
    assert (retried.json()["status"], retried.json()["attempts"]) == ("sealed", 0)
    again = await api.client.post("/periods/1/retry", json={"reason": "a new disk"})
    assert (again.status_code, again.json()["title"]) == (409, "Period in another state")
    blank = await api.client.post("/periods/1/skip", json={"reason": "  "})
    assert blank.status_code == 422
    assert (await api.client.post("/periods/9/skip", json={"reason": "x"})).json()["title"] == PeriodNotFound.title
    assert (await api.client.post("/periods/1/skip", json={"reason": "bots"})).json()["status"] == "skipped"
    entries = (await list_audit(database, limit=2)).entries
    assert [(entry.action, entry.actor, entry.reason) for entry in entries] == [
        ("skip_period", f"operator ({key_id})", "bots"),
        ("retry_period", f"operator ({key_id})", "a new disk"),
    ]


async def test_the_overview_says_how_the_service_is(api: Api) -> None:
    await ingest(api.client, event(1), event(2))
    document = (await api.client.get("/admin/overview")).json()
    assert document["checks"].keys() == {"model", "swap", "postgres", "redis"}
    assert document["served_version"] == 0
    found = document["installation"]
    assert (found["model"]["version"], found["model"]["kind"], found["model"]["head"]) == (0, "prior", 0)
    assert (found["open_period"]["period"], found["open_period"]["events"], found["newest"]) == (1, 2, None)
    assert found["processes"] == {"live": 1, "ready": 1, "behind": 0}
    assert found["worker"] == {"seconds_ago": None, "stalled": True}, "no worker runs here"
