"""Takes pictures of every page of the console, at two widths, of a service that learns a small synthetic stream:

    python scripts/screenshots.py docs/images
    python scripts/screenshots.py shots --url http://127.0.0.1:8000 --key KEY     # of a service that runs already

Needs the extra `dev` and Chromium (`ASMG_TEST_CHROMIUM`, or `chromium` on the PATH). Names are
PAGE-WIDTH.png; `--only overview-1280` takes that one alone.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path

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
PERIODS = 9
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
    "try": "#/try",
    "keys": "#/keys",
    "audit": "#/audit",
    "webhooks": "#/webhooks",
}
DIALOG = "versions-dialog"
COLOURS = 256
"""Of a picture; a third of the bytes."""


async def play(url: str, key: str) -> None:
    """Have a service learn the stream; then roll back and forward, pin a version, make keys."""
    api, stream = Api.connect(url, key), synthetic_stream(STREAM, PERIODS, seed=0)
    async with api.http:
        for number, period in enumerate(stream.periods, start=1):
            await api.put_catalogue(period)
            await api.ingest(f"shots-{number}", broken(period) if number == BROKEN else period)
            if number == PERIODS:
                break  # which is open
            await api.call("POST", "/periods/close", {"reason": "the hour is over"})
            async for _ in api.watch(number):
                pass
        reasons = {7: "sales fell after the update", 8: "it was the weather"}
        for version, reason in reasons.items():
            await api.call("POST", "/admin/rollback", {"to_version": version, "sequence": "keep", "reason": reason})
        await api.call("POST", "/admin/models/4/pin", {"reason": "before the sale"})
        keys = [await api.call("POST", "/admin/keys", body) for body in KEYS]
        await api.call("POST", f"/admin/keys/{keys[-1]['key_id']}/revoke", {"reason": "the partner has left"})


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
        settings = Settings(data_dir=folder / "data", port=0, api_workers=1, features=schema)
        with local_service(settings, folder / "serve.log", stop) as service:
            stop.run(lambda: play(service.url, service.key))
            yield service.url, service.key


def take(browser: Browser, url: str, key: str, folder: Path, only: list[str]) -> None:
    """Take the pictures."""
    for width, height in WIDTHS.items():
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
        context.add_init_script(f"sessionStorage.setItem('asmg.key', '{key}')")
        page = context.new_page()
        for name, address in {**PAGES, DIALOG: "#/versions"}.items():
            picture = f"{name}-{width}"
            if only and picture not in only:
                continue
            page.goto(f"{url}/console{address}")
            page.reload()  # the part after # alone would not load the page anew
            page.wait_for_selector("main h2")
            page.wait_for_load_state("networkidle") if name not in ("overview", "periods") else None
            prepare(page, name)
            page.wait_for_timeout(500)  # charts are drawn when their width is known
            shot = Image.open(BytesIO(page.screenshot(full_page=name != DIALOG)))
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
    elif name == DIALOG:
        page.get_by_role("button", name="Roll back to version 7").click()
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
