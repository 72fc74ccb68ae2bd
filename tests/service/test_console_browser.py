"""The console in a real browser: Debian's Chromium, driven by Playwright, on a served application.

Skipped where there is no Chromium. `ASMG_TEST_CHROMIUM` names the program where it is not on the PATH.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect, sync_playwright
from sqlalchemy import text

from service.settings import Settings
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import AlertKind, PeriodStatus, SampleScore, Severity
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.guardrails.canary import CanaryJudge, start_canary
from service.use_cases.guardrails.canary_evidence import Verdict
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
PAGES = (
    "",
    "versions",
    "versions/2",
    "canary",
    "periods",
    "periods/2",
    "guardrails",
    "try",
    "keys",
    "audit",
    "webhooks",
)
MOST_TABS = 80
MESSAGE = "The gate lets nothing serve that was learned from period 2 <b>now</b>."
VISITORS, SHARE = 400, 0.5
DARK_AND_NARROW = {"runOnly": ["color-contrast", "scrollable-region-focusable", "target-size"]}
"""Rules of axe that may be broken by colours and widths alone."""

PART = {"rows": 40, "clicks": 10, "auc": 0.7, "logloss": 0.5, "calibration": 1.1}
BREAKDOWN = {
    "version": 2,
    "periods": [3, 4],
    "period": 3,
    "rows": 100,
    "against": 1,
    "models": [
        {
            "model": "generated",
            "curve": [{"rows": 50, "predicted": 0.01, "clicked": 0.0}, {"rows": 50, "predicted": 0.3, "clicked": 0.4}],
            "users": {"new": {**PART, "rows": 0, "clicks": 0, "auc": None, "logloss": None}, "known": PART},
            "items": {"new": PART, "known": PART},
            "fields": [{"name": "device", "values": [{**PART, "value": None, "other": False}]}],
            "changed": [{"item_id": "<b>i1</b>", "rows": 9, "clicks": 3, "before": 0.1, "after": 0.2}],
        }
    ],
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
    settings = settings_for(postgres_dsn, redis_url, tmp_path, root_path="/shop/ctr", impression_deadline_seconds=30)
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
    check_breakdown(console)
    check_guardrails(console)
    check_canary(console)
    check_webhooks(console)
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
    with page.expect_response(lambda said: "/admin/replay?" in said.url):  # the worker has nothing to do before
        page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("The worker scores what was kept")).to_be_visible()
    console.watch()
    replayed = page.get_by_role("table", name="Had this version stayed in service")
    expect(replayed.get_by_role("row")).to_have_count(3)
    expect(replayed).to_contain_text("0.0000 (0.0000 to 0.0000)")  # it was in service then


def check_breakdown(console: Console) -> None:
    """The calibration curve is read by arrow keys, and the tables say what the API says."""
    page = console.page
    console.go("versions/1")
    curve = page.get_by_role("slider", name="Calibration curve")
    curve.focus()
    page.keyboard.press("Home")
    found = page.evaluate("fetch('admin/models/1/breakdown').then((answer) => answer.json())")["models"][0]
    first = found["curve"][0]
    expect(curve).to_have_attribute(
        "aria-valuetext",
        re.compile(f"^bin 1: predicted {100 * first['predicted']:#.3g} %.* {first['rows']} interactions"),
    )
    hours = found["fields"][0]["values"]
    rows = page.get_by_role("table", name="Scores by hour").get_by_role("row")
    expect(rows).to_have_count(1 + len(hours))
    expect(rows.nth(1)).to_contain_text(f"{hours[0]['rows']}")
    expect(rows.nth(1)).to_contain_text(f"{hours[0]['auc']:.4f}")
    interval = page.evaluate(
        "import('./console/calibration.js').then((c) => [c.interval(0.1, 100), c.interval(0, 10)])"
    )
    assert interval[0] == pytest.approx([0.05523, 0.17437], abs=1e-5)  # Wilson (1927), as in textbooks
    assert interval[1] == pytest.approx([0.0, 0.27753], abs=1e-5)


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


def check_guardrails(console: Console) -> None:
    """Each rule is there, the matrix has what version 2 has forgotten, and an alert can be closed."""
    page = console.page
    in_thread(asyncio.run, forget(console.dsn))
    console.go("guardrails")
    rules = page.get_by_role("table", name="Rules of the guardrails").get_by_role("row")
    expect(rules).to_have_count(9)
    expect(rules.filter(has_text="live loss")).to_contain_text("at most")
    expect(rules.filter(has_text="drift clicks")).to_contain_text("alert is open")
    expect(rules.filter(has_text="drift new users")).to_contain_text("knows too little")
    shadow = page.get_by_role("table", name="Shadows").get_by_role("row").nth(1)
    expect(shadow).to_contain_text("somebody was deleted")
    expect(shadow).to_contain_text("behind")
    row = page.get_by_role("table", name="AUC by version and period").get_by_role("row").filter(has_text="v2")
    expect(row.get_by_role("cell").nth(1)).to_have_text("−0.045")  # on period 1, and as the mean
    expect(row.get_by_role("cell").nth(0)).to_have_text("−0.045")
    expect(row.locator(".w2")).to_have_count(2)
    expect(row.locator(".own")).to_have_count(1)
    page.get_by_label("Measure").select_option("logloss")
    expect(page.get_by_role("table", name="LogLoss by version and period")).to_be_visible()
    page.get_by_role("button", name="Seen: alert").first.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Close it too").check()
    page.get_by_label("Reason").fill("it was a test")
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Closed alerts")).to_contain_text("it was a test")
    expect(page.get_by_role("table", name="Open alerts")).to_contain_text(MESSAGE)  # as text, tags and all


def check_canary(console: Console) -> None:
    """A canary is seen with the evidence so far, and taken back by keyboard."""
    page = console.page
    in_thread(asyncio.run, begin_canary(console))
    console.go("")
    expect(page.get_by_text("of the users, before it answers all or none")).to_be_visible()
    in_thread(asyncio.run, shop(console))
    console.go("canary")
    expect(page.get_by_role("heading", name="Version 1 is on its way")).to_be_visible()
    users = page.get_by_role("table", name="The first impression of each user")
    found = page.evaluate("fetch('admin/canary').then((answer) => answer.json())")["running"]["numbers"]
    assert found["canary_users"] + found["champion_users"] == VISITORS
    expect(users).to_contain_text(f"{found['canary_users']}{found['canary_clicked']}")
    signs = {name: f"{found[name]['difference']:+.4f}".replace("-", "−") for name in ("clicks", "logloss")}
    expect(page.get_by_role("img", name=f"Clicks, canary less champion: {signs['clicks']}")).to_be_visible()
    expect(page.get_by_role("img", name=f"LogLoss, canary less champion: {signs['logloss']}")).to_be_visible()
    check_page(console, "canary")
    console.press("Take back…")
    dialog = page.get_by_role("dialog", name="Take v1 back")
    page.keyboard.type("complaints")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("heading", name="No canary runs")).to_be_visible()
    ended = page.get_by_role("table", name="Canaries that have ended").get_by_role("row").filter(has_text="v1")
    expect(ended).to_contain_text("reverted")
    expect(ended).to_contain_text("complaints")


def check_webhooks(console: Console) -> None:
    """One is added, whose secret is shown once, told, switched off, and removed."""
    page = console.page
    console.go("webhooks")
    page.get_by_role("button", name="Add a webhook…").click()
    page.get_by_label("Address").fill("https://hooks.example.com/asmg")
    page.get_by_label("alert.closed").check()
    page.get_by_role("button", name="Add", exact=True).click()
    secret = page.get_by_role("textbox", name="Secret").input_value()
    assert secret.startswith("whsec_")
    in_thread(asyncio.run, fail_delivery(console.dsn))
    page.get_by_role("button", name="I have it").click()
    rows = page.get_by_role("table", name="Webhooks").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("hooks.example.com")
    assert secret not in page.content()
    told = page.get_by_role("table", name="Deliveries").get_by_role("row").nth(1)
    expect(told).to_contain_text("status 500 it fell over")
    told.get_by_role("button").click()
    page.get_by_role("button", name="Send again", exact=True).click()
    expect(told).to_contain_text("waiting")
    for name in ("Switch webhook 1 off", "Switch webhook 1 on"):
        page.get_by_role("button", name=name).click()
        dialog = page.get_by_role("dialog", name=name)
        dialog.get_by_label("Reason").fill("maintenance")
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
    expect(rows.nth(1)).to_contain_text("on")
    check_page(console, "webhooks")
    page.get_by_role("button", name="Remove webhook 1").click()
    page.get_by_role("button", name="Remove for ever").click()
    expect(page.get_by_text("Nobody is told.")).to_be_visible()


def check_pages(console: Console) -> None:
    """No page has faults of accessibility, or is wider than a narrow phone, in light and dark; alerts are seen."""
    page = console.page
    page.route("**/admin/models/2/breakdown", answer(BREAKDOWN))
    for address in PAGES:
        console.go(address)
        check_page(console, address)
        if address == "":
            expect(page.locator(".banner.bad")).to_contain_text(MESSAGE)
        if address == "versions/2":
            expect(page.get_by_role("table", name="Items of which")).to_contain_text("▲ × 2.00")
            expect(page.get_by_role("table", name="Scores by device")).to_contain_text("no longer known")
    page.unroute_all()


def check_page(console: Console, address: str) -> None:
    """The page that is open has no such fault."""
    page = console.page
    expect(page.locator("main h2").first).to_be_visible()
    for width, scheme, options in ((1280, "light", {}), (360, "dark", DARK_AND_NARROW)):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        # A busy browser needs a moment for the new width.
        page.wait_for_function("(width) => document.documentElement.scrollWidth <= width", arg=width)
        report = Axe().run(page, options={"resultTypes": ["violations"], **options})
        assert report.violations_count == 0, (address, scheme, report.generate_report())
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light")


def check_keys(console: Console) -> None:
    """The first key is made here and used at once; a call without a good one leads to the form, which says why."""
    page = console.page
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


async def forget(dsn: str) -> None:
    """Have version 2 rank period 1, of which something was kept, worse than version 1; open two alerts; add a
    shadow that has started again.
    """
    database = Database(dsn, pool_size=1)
    async with database.unit_of_work() as work:
        [kept] = await work.samples.newest(1)
        await work.samples.put(replace(kept, period=1))
        for version, auc in ((1, 0.7), (2, 0.655)):
            await work.samples.request(version, 1, 1)
            score = SampleScore(
                version=version, period=1, events=100, auc=auc, logloss=0.5, served_logloss=0.5, error=0.01
            )
            await work.samples.score([score])
        await raise_alert(work, AlertKind.GATE_REFUSED, MESSAGE, severity=Severity.CRITICAL, period=2, version=2)
        await raise_alert(work, AlertKind.DRIFT_CLICKS, "far more clicks than usual", numbers={"now": 0.9})
        await work.connection.execute(text("INSERT INTO shadows (method, version, state) VALUES ('iu', 1, '{}')"))
        await work.audit.add("worker", "restart_shadow", {"method": "iu", "version": 1}, reason="somebody was deleted")
        await work.commit()
    await database.close()


async def begin_canary(console: Console) -> None:
    """Have version 1 answer a share of the users, beside version 2."""
    settings = Settings(canary_share=SHARE)
    async with bench(console.dsn, console.redis_url, console.folder) as b:
        async with b.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            await start_canary(work, 1, settings, actor="worker", reason="published")
            await work.commit()
        await b.context.notices.publish_swap()


async def shop(console: Console) -> None:
    """Log an impression of each visitor, of whom a third clicks; let time pass, and have the worker look at it."""
    async with bench(console.dsn, console.redis_url, console.folder) as b:
        for _ in range(600):
            if await CanaryJudge(b.database, b.context.notices, b.settings).look() is not None:
                break
            await asyncio.sleep(0.05)  # the service loads it
        names = [f"visitor{n}" for n in range(VISITORS)]
        async with httpx.AsyncClient(timeout=60) as client:
            for start in range(0, VISITORS, 200):
                questions = [
                    {"user_id": name, "items": ["i1", "i2"], "request_id": name, "log_impressions": True}
                    for name in names[start : start + 200]
                ]
                await client.post(f"{console.url}/predict/batch", json={"requests": questions})
            now = datetime.now(UTC).isoformat()
            clicks = [{"request_id": name, "item_id": "i1", "timestamp": now} for name in names[::3]]
            assert (await client.post(f"{console.url}/clicks", json={"clicks": clicks})).json()["accepted"]
        async with b.database.unit_of_work() as work:
            for table, column in (("impressions", "shown_at"), ("clicks", "clicked_at"), ("aliases", "active_from")):
                change = f"UPDATE {table} SET {column} = {column} - interval '10 minutes'"
                await work.connection.execute(text(change))
            await work.commit()
        judgement = await CanaryJudge(b.database, b.context.notices, b.settings).look()
        assert judgement is not None
        assert judgement.verdict is Verdict.WAIT, judgement


async def fail_delivery(dsn: str) -> None:
    """Tell the webhook that an alert is closed, which it does not accept."""
    database = Database(dsn, pool_size=1)
    async with database.unit_of_work() as work:
        await raise_alert(work, AlertKind.QUALITY, "worse than it was")
        await close_alert(work, AlertKind.QUALITY, reason="better again")
        [told] = await work.deliveries.claim(lease=timedelta(hours=1), most=1, busy=())
        await work.deliveries.fail(
            told.number, 500, "it fell over", pause=timedelta(hours=1), give_up=timedelta(seconds=0)
        )
        await work.commit()
    await database.close()
