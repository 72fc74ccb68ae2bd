"""Takes pictures of every page of the console, at two widths, and of some dialogs, of a service that learns a small
synthetic stream:

    python scripts/screenshots.py docs/images
    python scripts/screenshots.py shots --url http://127.0.0.1:8000 --key KEY     # of a service that runs already

Needs the extra `dev` and Chromium (`ASMG_TEST_CHROMIUM`, or `chromium` on the PATH). Names are
PAGE-WIDTH.png; `--only overview-1280` takes that one alone.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from asmg.datasets.synthetic import DriftConfig
from service.demo.client import Api
from service.demo.local_service import local_service
from service.demo.streams import PlayedPeriod, synthetic_stream
from service.processes.stop_request import StopRequest
from service.settings import Settings

STREAM = DriftConfig(users=300, items=120, events=4_000, categories=6, fields=True)
PERIODS = 10
TAKEN_BACK = 3
"""Period whose version, a canary, an operator takes back."""
TOLD = ["alert.opened", "alert.closed", "gate.refused", "version.rolled_back"]
VISITORS = 1_500
"""Users who see what canary and champion predict."""
SEEN_SECONDS = 2
"""For how long clicks on what they saw count."""
BROKEN = 6
"""Period of a broken logger, with clicks on nearly everything. The gate refuses what is learned from it."""
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update")
WIDTHS = {1280: 800, 390: 844}
PAGES = {
    "overview": "#/",
    "versions": "#/versions",
    "version": "#/versions/7",
    "periods": "#/periods",
    "period": "#/periods/8",
    "canary": "#/canary",
    "guardrails": "#/guardrails",
    "try": "#/try",
    "keys": "#/keys",
    "audit": "#/audit",
    "webhooks": "#/webhooks",
}
DIALOGS = {"versions-dialog": "versions", "canary-dialog": "canary", "webhooks-dialog": "webhooks"}
"""Picture of a dialog → the page that it belongs to."""
ASK_AGAIN = ("overview", "periods", "canary", "guardrails", "webhooks")
"""Pages that ask for news again and again."""
COLOURS = 256
"""Of a picture; a third of the bytes."""
MOST_HEIGHT = {1280: 1_400, 390: 3_600}
"""Pixels of a picture by its width; a longer page is cut off."""
MOST_QUESTIONS = 120
"""Times that the script asks how a canary is."""


async def play(url: str, key: str, hook: str) -> None:
    """Have a service learn the stream, with a canary for each version; roll back and forward, pin a version, make keys,
    and tell webhooks of it. The canary of the last version is under way at the end.

    Args:
        url: of the service.
        key: of all scopes.
        hook: address that hears what webhooks are told.
    """
    api, stream = Api.connect(url, key), synthetic_stream(STREAM, PERIODS, seed=0)
    async with api.http:
        for body in ({"url": hook, "events": TOLD}, {"url": "https://pager.example.invalid/in", "events": TOLD[:1]}):
            await api.call("POST", "/admin/webhooks", body)
        for number, period in enumerate(stream.periods, start=1):
            await api.put_catalogue(period)
            await api.ingest(f"shots-{number}", broken(period) if number == BROKEN else period)
            if number == PERIODS:
                break  # which is open
            await api.call("POST", "/periods/close", {"reason": "the hour is over"})
            async for _ in api.watch(number):
                pass
            canary = (await api.call("GET", "/admin/canary"))["running"]
            if number == TAKEN_BACK:
                await api.call("POST", "/admin/canary/revert", {"reason": "complaints about odd suggestions"})
            elif canary is not None and number < PERIODS - 1:
                await api.call("POST", "/admin/canary/promote", {"reason": "the numbers are fine"})
            if number == PERIODS - 2:
                for version, reason in ((number - 1, "sales fell after the update"), (number, "it was the weather")):
                    body = {"to_version": version, "sequence": "keep", "reason": reason}
                    await api.call("POST", "/admin/rollback", body)
        await api.call("POST", "/admin/models/4/pin", {"reason": "before the sale"})
        keys = [await api.call("POST", "/admin/keys", body) for body in KEYS]
        await api.call("POST", f"/admin/keys/{keys[-1]['key_id']}/revoke", {"reason": "the partner has left"})
        await shop(api)


async def shop(api: Api) -> None:
    """Have visitors click what the canary and the champion show, and wait until the worker has seen it."""
    await until(api, lambda canary: canary["since"] is not None)
    rng, clicks = np.random.default_rng(0), []
    for start in range(0, VISITORS, 100):
        names = [f"visit-{number}" for number in range(start, start + 100)]
        chosen = {name: [f"i{item}" for item in rng.choice(STREAM.items, 5, replace=False)] for name in names}
        requests = [
            {"user_id": name, "items": items, "request_id": name, "log_impressions": True}
            for name, items in chosen.items()
        ]
        answer = await api.call("POST", "/predict/batch", {"requests": requests})
        for name, prediction in zip(names, answer["predictions"], strict=True):
            at = datetime.now(UTC).isoformat()
            clicks += [
                {"request_id": name, "item_id": item, "timestamp": at}
                for item, score in zip(chosen[name], prediction["scores"], strict=True)
                if rng.random() < score
            ]
    await api.call("POST", "/clicks", {"clicks": clicks})
    await until(api, lambda canary: "clicks" in (canary["numbers"] or {}))


async def until(api: Api, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Ask until something holds for the canary that runs."""
    for _ in range(MOST_QUESTIONS):
        canary = (await api.call("GET", "/admin/canary"))["running"]
        if canary is not None and holds(canary):
            return
        await asyncio.sleep(0.5)
    raise TimeoutError("the canary does not get on")


KEYS = (
    {"name": "shop front", "scopes": ["predict"], "rate_limit": 500},
    {"name": "event collector", "scopes": ["ingest"]},
    {"name": "partner", "scopes": ["predict"], "rate_limit": 20, "expires_at": "2028-01-01T00:00:00Z"},
)


def broken(period: PlayedPeriod) -> PlayedPeriod:
    """The period with labels that say nothing."""
    labels = (np.random.default_rng(0).random(len(period.labels)) < 0.95).astype(np.uint8)
    return replace(period, labels=labels)


@contextmanager
def own_service() -> Iterator[tuple[str, str]]:
    """Address and key of a service of this script's own, which has learned the stream."""
    with StopRequest() as stop, tempfile.TemporaryDirectory(prefix="asmg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        schema = folder / "features.toml"
        schema.write_text(synthetic_stream(STREAM, 1, seed=0).schema.to_toml(), encoding="utf-8")
        settings = Settings(
            data_dir=folder / "data",
            port=0,
            api_workers=1,
            features=schema,
            canary_share=0.2,
            canary_minutes=120,
            attribution_window_seconds=SEEN_SECONDS,
            webhook_networks=("127.0.0.1",),
        )
        with receiver() as hook, local_service(settings, folder / "serve.log", stop) as service:
            stop.run(lambda: play(service.url, service.key, hook))
            yield service.url, service.key


@contextmanager
def receiver() -> Iterator[str]:
    """Address of a server that accepts what webhooks are told."""

    class Accepts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Accepts) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/asmg"
        server.shutdown()


def take(browser: Browser, url: str, key: str, folder: Path, only: list[str]) -> None:
    """Take the pictures."""
    for width, height in WIDTHS.items():
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
        context.add_init_script(f"sessionStorage.setItem('asmg.key', '{key}')")
        page = context.new_page()
        dialogs = {name: PAGES[page] for name, page in DIALOGS.items()} if width == max(WIDTHS) else {}
        for name, address in {**PAGES, **dialogs}.items():
            picture = f"{name}-{width}"
            if only and picture not in only:
                continue
            page.goto(f"{url}/console{address}")
            page.reload()  # the part after # alone would not load the page anew
            page.wait_for_selector("main h2")
            page.wait_for_load_state("networkidle") if name not in ASK_AGAIN else None
            prepare(page, name)
            page.wait_for_timeout(500)  # charts are drawn when their width is known
            shot = Image.open(BytesIO(page.screenshot(full_page=name not in DIALOGS)))
            shot = shot.crop((0, 0, shot.width, min(shot.height, MOST_HEIGHT[width])))
            shot.quantize(COLOURS).save(folder / f"{picture}.png", optimize=True)
            print(picture)
        context.close()


def prepare(page: Page, name: str) -> None:
    """Do what the picture is to show."""
    if name == "try":
        page.get_by_label("User").fill("u1")
        page.get_by_label("Items").fill("i1\ni2\ni3\ni4\nbrand-new")
        page.get_by_label("Context").fill('{"device": "phone"}')
        page.get_by_role("button", name="Predict").click()
        page.wait_for_selector("meter")
    elif name == "canary-dialog":
        page.get_by_role("button", name="Promote now").click()
        page.get_by_label("Reason").fill("the sale begins tonight")
    elif name == "webhooks-dialog":
        page.get_by_role("button", name="Add a webhook").click()
        page.get_by_label("Address").fill("https://hooks.example.com/asmg")
        page.get_by_label("alert.opened").check()
    elif name == "versions-dialog":
        page.get_by_role("button", name=f"Roll back to version {PERIODS - 3}").click()
        page.get_by_label("Reason").fill("sales fell after the update")


def main() -> None:
    """Take them of the service that the options name, or of one of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--key", default="")
    parser.add_argument("--only", action="append", default=[], help="PAGE-WIDTH, may be repeated")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    given = nullcontext((options.url, options.key)) if options.url else own_service()
    with given as (url, key), sync_playwright() as playwright:
        chromium = os.environ.get("ASMG_TEST_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        take(browser, url, key, options.folder, options.only)


if __name__ == "__main__":
    main()
