"""Plays streams on which something goes wrong, and streams on which nothing does, to a real service.

Each stream gets a service of its own, with its default settings. What it says is read as an operator would read it:
alerts, versions, metrics.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import numpy as np

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from benchmarks.reports import write_report
from benchmarks.servers import Server
from benchmarks.services import own_service, own_stores, served_version

__all__ = ["GuardrailOptions", "decayed", "run_guardrails", "with_noise"]

EVENTS_OF_A_CALL = 500
POLL_SECONDS = 0.05
WAIT_SECONDS = 300.0
"""How long an update, and what is judged after it, may take."""

NOISE = 0.95
"""Click rate of the period whose clicks are noise."""

STEP = 0.05
"""Share of the users whose labels are turned round in each further period of the decay."""

SETTLED = 10
"""Periods before anything goes wrong."""


@dataclass(frozen=True)
class GuardrailOptions:
    """What is played."""

    periods: int = 22
    """Periods of each stream."""
    events: int = 5000
    """Interactions of a period."""
    streams: int = 10
    """Streams on which nothing goes wrong."""
    seed: int = 0
    report: Path | None = None


@dataclass(frozen=True)
class _Told:
    """What the service said after a period."""

    period: int
    decision: str
    """What its version serves: `generated`, `incremental` or `previous`."""
    alerts: Sequence[str]
    """Kinds of the alerts that it opened or raised again."""
    metrics: Sequence[str]
    """Kinds of the alerts that `/metrics` had as open."""


def run_guardrails(options: GuardrailOptions) -> int:
    """Play all cases, print and report."""
    config = DriftConfig(
        users=max(20, options.events // 10), items=max(20, options.events // 25), events=options.events
    )

    def stream(seed: int) -> Iterator[DriftPeriod]:
        return islice(drift_stream(config, seed=seed), options.periods)

    found: dict[str, Any] = {}
    told = _play(with_noise(period, options.seed) if period.number == SETTLED + 1 else period for period in stream(0))
    at = told[SETTLED]
    after = next((each.period for each in told[SETTLED + 1 :] if each.decision != "previous"), None)
    found["collapse"] = {
        "published": at.decision != "previous",
        "alerted": "gate_refused" in at.alerts,
        "alerts": at.alerts,
        "in_metrics": "gate_refused" in at.metrics,
        "served_again_after": None if after is None else after - SETTLED - 1,
    }
    print(json.dumps({"collapse": found["collapse"]}), flush=True)
    told = _play(decayed(period) for period in stream(1))
    first = next((each for each in told[SETTLED:] if each.alerts), None)
    found["decay"] = {
        "periods_to_notice": None if first is None else first.period - SETTLED,
        "by": [] if first is None else first.alerts,
        "later": {each.period - SETTLED: each.alerts for each in told[SETTLED:] if each.alerts},
    }
    print(json.dumps({"decay": found["decay"]}), flush=True)
    alarms = {}
    for seed in range(2, options.streams + 2):
        told = _play(stream(seed))
        alarms[seed] = {each.period: each.alerts for each in told if each.alerts}
        print(json.dumps({"clean stream": seed, "alarms": alarms[seed]}), flush=True)
    false_alarms = sum(len(alerts) for each in alarms.values() for alerts in each.values())
    found["clean"] = {"streams": options.streams, "false_alarms": false_alarms, "alarms": alarms}
    write_report(options.report, {"periods": options.periods, "events": options.events, **found})
    return 0


def with_noise(period: DriftPeriod, seed: int) -> DriftPeriod:
    """The period with random labels, nearly all of them clicks."""
    labels = (np.random.default_rng(seed).random(len(period.labels)) < NOISE).astype(period.labels.dtype)
    return replace(period, labels=labels)


def decayed(period: DriftPeriod) -> DriftPeriod:
    """The period with the labels of some users turned round: of none up to `SETTLED`, then of more each period."""
    share = STEP * max(0, period.number - SETTLED)
    turned = np.array([crc32(user.encode()) / 2**32 < share for user in period.user_ids])
    return replace(period, labels=np.where(turned, 1 - period.labels, period.labels))


def _play(periods: Iterator[DriftPeriod]) -> list[_Told]:
    """Send the periods to a service, one after the other, and note what it says."""
    told = []
    with (
        tempfile.TemporaryDirectory(prefix="asmg-rails-") as folder,
        own_stores(Path(folder), swap_lead_seconds=0.05, worker_poll_seconds=0.05) as stores,
        own_service(stores, api_workers=1, worker=True) as server,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {stores.key}"}, timeout=60, trust_env=False
        ) as client,
    ):
        for period in periods:
            _send(client, period)
            client.post("/periods/close", json={}).raise_for_status()
            told.append(_judged(server, client, period.number))
    return told


def _send(client: httpx.Client, period: DriftPeriod) -> None:
    items = [{"item_id": item, "categories": list(names)} for item, names in period.new_items.items()]
    if items:
        client.put("/items", json={"items": items}).raise_for_status()
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True)
    events = [
        {"event_id": f"{period.number}-{n}", "user_id": user, "item_id": item, "label": label, "timestamp": at}
        for n, (user, item, label, at) in enumerate(rows)
    ]
    for start in range(0, len(events), EVENTS_OF_A_CALL):
        body = {"interactions": events[start : start + EVENTS_OF_A_CALL]}
        client.post("/interactions", json=body).raise_for_status()


def _judged(server: Server, client: httpx.Client, period: int) -> _Told:
    """Wait until a period's version is served and judged; what the service says then."""
    _wait(lambda: client.get(f"/periods/{period}").json().get("version") is not None, "the update")
    version = client.get(f"/periods/{period}").json()["version"]
    _wait(lambda: (served_version(server.target.port) or -1) >= version, "the take-over")
    if period > 1:  # nothing was served in the first that could be kept
        _wait(lambda: _is_scored(client, version, period), "the scores of what was kept")
    alerts = client.get("/admin/alerts", params={"limit": 200}).json()["alerts"]
    lines = client.get("/metrics").text.splitlines()
    return _Told(
        period,
        client.get(f"/admin/models/{version}").json()["kind"],
        sorted({each["kind"] for each in alerts if each["period"] == period}),
        [line.split('"')[1] for line in lines if line.startswith("asmg_alerts{") and not line.endswith(" 0.0")],
    )


def _is_scored(client: httpx.Client, version: int, period: int) -> bool:
    cells = client.get("/admin/samples").json()["cells"]
    return any((cell["version"], cell["period"]) == (version, period) for cell in cells)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {what} within {WAIT_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
