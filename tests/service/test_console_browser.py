"""The console in a real browser: Debian's Chromium, driven by Playwright, on a served application.

Skipped where there is no Chromium. `ASMG_TEST_CHROMIUM` names the program where it is not on the PATH.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect, sync_playwright

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.guardrails.watch import watch
from service.use_cases.keys import create_key
from tests.conftest import in_thread
from tests.service.api_support import served_app, settings_for
from tests.service.update_support import bench, periods, single_thread

pytestmark = pytest.mark.slow

CHROMIUM = os.environ.get("ASMG_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
PAGES = ("", "versions", "versions/2", "periods", "periods/2", "try", "keys", "audit", "webhooks")
MOST_TABS = 80
DARK_AND_NARROW = {"runOnly": ["color-contrast", "scrollable-region-focusable", "target-size"]}
"""Rules of axe that may be broken by colours and widths alone."""

ALERT = {
    "number": 7,
    "kind": "gate_refused",
    "severity": "critical",
    "period": 2,
    "version": 2,
    "message": "The gate lets nothing serve that was learned from period 2 <b>now</b>.",
    "numbers": {"logloss": 0.71},
    "opened_at": "2026-01-01T00:00:00Z",
    "closed_at": None,
    "acknowledged_by": None,
}
WEBHOOK = {
    "number": 1,
    "url": "https://hooks.example.com/asmg",
    "events": None,
    "created_at": "2026-01-01T00:00:00Z",
    "created_by": "me",
    "off_at": None,
    "off_reason": None,
}
DELIVERY = {
    "webhook": 1,
    "event": "published",
    "occurred_at": "2026-01-01T00:00:00Z",
    "status": "failed",
    "attempts": 3,
    "due_at": None,
    "answer": 500,
    "error": "it answered 500",
}


@dataclass
class Console:
    """A browser at the console of a service, below a path prefix, in which period 1 is learned and period 2 is open."""

    page: Page
    url: str
    dsn: str
    redis_url: str
    folder: Path
    faults: list[str]
    """What the browser has complained about, and addresses elsewhere that it was told to load."""

    def learn(self, number: int) -> None:
        """Do the worker's work on a closed period."""
        in_thread(asyncio.run, learn(self, number))

    def watch(self) -> None:
        """Do the worker's work between periods."""
        in_thread(asyncio.run, watch_over(self))

    def go(self, address: str) -> None:
        """Open a page by its address."""
        self.page.goto(f"{self.url}/console#/{address}")

    def tab_to(self, name: str) -> None:
        """Press Tab until the element with this accessible name has the focus, which must be visible."""
        for _ in range(MOST_TABS):
            self.page.keyboard.press("Tab")
            said = self.page.evaluate(
                "() => { const e = document.activeElement;"
                "return [e.getAttribute('aria-label') ?? e.labels?.[0]?.textContent ?? e.textContent,"
                "getComputedStyle(e).outlineStyle] }"
            )
            if said[0].strip() == name:
                assert said[1] != "none", f"nobody sees that {name} has the focus"
                return
        raise AssertionError(f"{name} cannot be reached by Tab")

    def press(self, name: str) -> None:
        """Go to a button or a link, and press it, by keyboard alone."""
        self.tab_to(name)
        self.page.keyboard.press("Enter")


async def learn(console: Console, number: int) -> None:
    async with bench(console.dsn, console.redis_url, console.folder) as b:
        with single_thread():
            await b.update(number)


async def watch_over(console: Console) -> None:
    async with bench(console.dsn, console.redis_url, console.folder) as b:
        with single_thread():
            while await watch(b.context):
                pass


async def live(dsn: str, redis_url: str, folder: Path) -> None:
    async with bench(dsn, redis_url, folder) as b:
        first, second = periods(2)
        await b.log(first)
        with single_thread():
            await b.update(1)
        await b.log(second, close=False)


@pytest.fixture
def console(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Console]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; ASMG_TEST_CHROMIUM names one")
    in_thread(asyncio.run, live(postgres_dsn, redis_url, tmp_path))
    settings = settings_for(postgres_dsn, redis_url, tmp_path, root_path="/shop/ctr")
    with served_app(settings) as server, sync_playwright() as playwright:
        url = f"{server}/shop/ctr"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda call: None if call.url.startswith(f"{url}/") else faults.append(call.url))
        yield Console(page, url, postgres_dsn, redis_url, tmp_path, faults)
        browser.close()


def answer(document: Any) -> Callable[[Route], None]:
    return lambda route: route.fulfill(body=json.dumps(document), content_type="application/json")


def test_an_operator_closes_a_period_watches_it_rolls_back_and_forward(console: Console) -> None:
    page = console.page
    # Before the first key, this host needs none. All by keyboard.
    console.go("")
    expect(page.get_by_role("heading", name="Open period")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # "Skip to the content"
    assert page.evaluate("document.activeElement.id") == "main"
    console.press("Close now…")
    dialog = page.get_by_role("dialog", name="Close period 2")
    expect(dialog).to_contain_text("300 interactions so far")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert page.evaluate("document.activeElement.textContent") == "Close now…", "the focus is back where it was"
    page.keyboard.press("Enter")
    page.keyboard.type("the hour is over")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Period 2", exact=True)).to_be_focused()
    said = page.locator("[role=status].said")
    expect(said).to_have_text("Period 2 is sealed.")
    console.learn(2)
    expect(said).to_have_text("Period 2 is learned; version 2 is published.")
    done = page.locator(".stages li.done")
    assert "publish" in done.last.inner_text() and done.count() == 9
    expect(page.get_by_role("table", name="Scores on period 2").get_by_role("row")).to_have_count(4)

    console.press("Versions")
    serving = page.get_by_role("row").filter(has_text="in service")
    expect(serving).to_contain_text("v2")
    for name, title, way in (("Roll back to version 1", "v1", "back"), ("Roll forward to version 2", "v2", "forward")):
        console.press(name)
        dialog = page.get_by_role("dialog", name=f"Roll {way} to {title}")
        expect(dialog.get_by_role("radio", name="keep")).to_be_checked()
        page.keyboard.type(f"trying {way}")
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        expect(serving).to_contain_text(title)
    console.go("audit?action=rollback")
    rows = page.get_by_role("table", name="Audit").get_by_role("row")
    expect(rows).to_have_count(3)
    assert ["trying forward" in rows.nth(1).inner_text(), "trying back" in rows.nth(2).inner_text()] == [True, True]

    check_replay(console)
    check_charts(console)
    check_pages(console)
    check_keys(console)
    # The browser says on its own that a call was answered 401, 403 or 404.
    assert [fault for fault in console.faults if not re.search(r"status of (401|403|404)", fault)] == []


def check_replay(console: Console) -> None:
    """What a version still knows, and what it would have said of the period after it."""
    page = console.page
    console.watch()
    console.go("versions/2")
    expect(page.get_by_role("table", name="AUC on earlier periods").get_by_role("row")).to_have_count(2)
    console.go("versions/1")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("The worker scores what was kept")).to_be_visible()
    console.watch()
    replayed = page.get_by_role("table", name="Had this version stayed in service")
    expect(replayed.get_by_role("row")).to_have_count(3)
    expect(replayed).to_contain_text("0.0000 (0.0000 to 0.0000)")  # it was in service then


def check_charts(console: Console) -> None:
    """The chart is read by arrow keys, and its numbers are those of the API."""
    page = console.page
    console.go("versions")
    chart = page.get_by_role("slider", name="AUC, line chart")
    scores = page.evaluate("fetch('periods/2').then((answer) => answer.json())")["scores"]
    expect(chart).to_have_attribute(
        "aria-valuetext", re.compile(f"^period 2: .*incremental {scores['incremental']['auc']:.4f}")
    )
    page.locator(".numbers summary").first.click()
    expect(page.get_by_role("table", name="AUC")).to_contain_text(f"{scores['baseline']['auc']:.4f}")
    found = page.evaluate(
        "import('./console/charts.js').then((c) => [c.parts([[0, 1], [1, 2], null, null, [4, 1]]),"
        "c.ticks(0.61, 0.79, 5),"
        "c.spread([10, 11, 12, 90], 14, 0, 100)])"
    )
    assert found[0] == [[[0, 1], [1, 2]], [[4, 1]]], "a missing value is a gap"
    assert found[1] == pytest.approx([0.65, 0.7, 0.75])
    assert found[2] == [10, 24, 38, 90]
    lines = page.evaluate(
        "import('./console/scores.js').then(async (c) => { const main = document.getElementById('main');"
        "const scores = { 'shadow:sml': { auc: 0.6 }, generated: { auc: 0.7 }, 'shadow:iu': { auc: 0.65 } };"
        "main.replaceChildren(...c.scoreCharts([{ period: 2, scores }], ['auc']));"
        "while (!main.querySelector('text.name')) await new Promise(requestAnimationFrame);"
        "return [...main.querySelectorAll('text.name')].map((e) => [e.textContent, e.getAttribute('class')]); })"
    )
    assert lines == [["generated", "name s0"], ["shadow iu", "name s5"], ["shadow sml", "name s6"]]
    kept = page.evaluate(
        "import('./console/dom.js').then(({ fill, h }) => { const main = document.getElementById('main');"
        "const again = () => fill(main, h('a', { href: '#/keys' }, 'Keys')); again();"
        "main.firstChild.focus(); again(); return document.activeElement === main.firstChild; })"
    )
    assert kept, "a page that shows news does not lose the focus"


def check_pages(console: Console) -> None:
    """No page has faults of accessibility, or is wider than a narrow phone, in light and dark; alerts are seen."""
    page = console.page
    page.route("**/admin/alerts?*", answer({"alerts": [ALERT], "next": None}))
    page.route("**/admin/webhooks", answer({"webhooks": [WEBHOOK]}))
    page.route("**/admin/webhooks/deliveries?*", answer({"deliveries": [DELIVERY], "next": None}))
    axe = Axe()
    for address in PAGES:
        page.set_viewport_size({"width": 1280, "height": 800})
        page.emulate_media(color_scheme="light")
        console.go(address)
        expect(page.locator("main h2").first).to_be_visible()
        if address == "":
            expect(page.locator(".banner.bad")).to_contain_text(ALERT["message"])  # as text, tags and all
        if address == "webhooks":
            expect(page.get_by_role("table", name="Deliveries")).to_contain_text("it answered 500")
        for width, scheme, options in ((1280, "light", {}), (360, "dark", DARK_AND_NARROW)):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            # A busy browser needs a moment for the new width.
            page.wait_for_function("(width) => document.documentElement.scrollWidth <= width", arg=width)
            report = axe.run(page, options={"resultTypes": ["violations"], **options})
            assert report.violations_count == 0, (address, scheme, report.generate_report())
    page.unroute_all()


def check_keys(console: Console) -> None:
    """The first key is made here and used at once; a call without a good one leads to the form, which says why."""
    page = console.page
    page.set_viewport_size({"width": 1280, "height": 800})
    console.go("keys")
    page.get_by_role("button", name="Create a key…").click()
    page.get_by_label("Name").fill("operator")
    page.get_by_role("button", name="Create", exact=True).click()
    key = page.get_by_label("Key", exact=True).input_value()
    assert re.fullmatch(r"asmg_[0-9a-f]{12}_\S{43}", key)
    page.get_by_role("button", name="I have it").click()
    expect(page.get_by_role("table", name="API keys")).to_contain_text("operator")
    assert key not in page.content()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("alert")).to_have_text("The key is forgotten.")
    console.go("")
    expect(page.get_by_role("alert")).to_contain_text("expected an API key")
    field = page.get_by_label("API key")
    field.fill("asmg_nonsense")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("none that is known")
    field.fill(in_thread(asyncio.run, change_behind(console.dsn)))
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("scope 'admin'")
    field.fill(key)
    field.press("Enter")
    expect(page.locator(".banner.bad")).to_contain_text("A period is in quarantine")
    console.go("try")
    page.get_by_label("User").fill("u1")
    page.get_by_label("Items").fill("i1, i2\nnobody-knows")
    page.get_by_label("Beside version").fill("1")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("table", name="Click probability")).to_contain_text("no: cold")
    expect(page.get_by_role("columnheader", name="v1")).to_be_visible()
    expect(page.get_by_text("They differ by up to")).to_be_visible()
    console.go("periods")
    page.get_by_role("button", name="Skip period 2").click()
    page.get_by_label("Reason").fill("bots")
    page.get_by_role("button", name="Skip for ever").click()
    expect(page.get_by_role("row").filter(has_text="skipped")).to_contain_text("bots")


async def change_behind(dsn: str) -> str:
    """Put period 2 into quarantine; make a key that may only predict."""
    database = Database(dsn, pool_size=1)
    _, key = await create_key(database, "frontend", ["predict"])
    async with database.unit_of_work() as work:
        await work.periods.set_status(2, PeriodStatus.QUARANTINED, error="it failed three times")
        await work.commit()
    await database.close()
    return key
