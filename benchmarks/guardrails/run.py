"""Plays streams on which something goes wrong, and streams on which nothing does, to a real service.

Each stream gets a service of its own, with its default settings. What it says is read as an operator would read it:
alerts, versions, metrics.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from benchmarks.guardrails.canary import CanaryOptions, play_canary
from benchmarks.guardrails.streams import SETTLED, close, decayed, send, wait_for, with_noise
from benchmarks.options import at_least, some_of
from benchmarks.reports import write_report
from benchmarks.servers import Server
from benchmarks.services import own_service, own_stores, served_version

__all__ = ["CASES", "GuardrailOptions", "run_guardrails"]

CASES = ("collapse", "decay", "canary", "clean")
"""What can be played, in this order."""

OF_CANARY = 4
"""Users and interactions of the canary's stream, as a multiple of those of the others: some of them are a share of the
users."""


@dataclass(frozen=True)
class GuardrailOptions:
    """What is played.

    Raises:
        ValueError: a case is unknown, or a number is too small.
    """

    cases: Sequence[str] = CASES
    periods: int = 22
    """Periods of each stream but the canary's."""
    events: int = 5000
    """Interactions of a period."""
    streams: int = 10
    """Streams on which nothing goes wrong."""
    first: int = 2
    """Seed of the first of them."""
    seed: int = 0
    """Of the noise, and of the canary's visitors."""
    report: Path | None = None

    def __post_init__(self) -> None:
        some_of(CASES, cases=self.cases)
        at_least(SETTLED + 1, periods=self.periods)
        at_least(1, events=self.events, streams=self.streams)


@dataclass(frozen=True)
class _Told:
    """What the service said after a period."""

    period: int
    decision: str
    """What its version serves: `generated`, `incremental` or `previous`."""
    alerts: Sequence[str]
    """Kinds of the alerts that it opened or raised again."""
    messages: Sequence[str]
    """Of these alerts."""
    metrics: Sequence[str]
    """Kinds of the alerts that `/metrics` had as open."""


def run_guardrails(options: GuardrailOptions) -> int:
    """Play the cases, print and report."""
    play = {"collapse": _collapse, "decay": _decay, "canary": _canary, "clean": _clean}
    found: dict[str, Any] = {}
    for case in CASES:
        if case in options.cases:
            found[case] = play[case](options)
            print(json.dumps({case: found[case]}), flush=True)
    write_report(options.report, {"periods": options.periods, "events": options.events, **found})
    return 0


def _collapse(options: GuardrailOptions) -> dict[str, Any]:
    """One period of noise."""
    told = _play(
        with_noise(period, options.seed) if period.number == SETTLED + 1 else period for period in _stream(options, 0)
    )
    at = told[SETTLED]
    after = next((each.period for each in told[SETTLED + 1 :] if each.decision != "previous"), None)
    return {
        "published": at.decision != "previous",
        "alerted": "gate_refused" in at.alerts,
        "alerts": at.alerts,
        "in_metrics": "gate_refused" in at.metrics,
        "served_again_after": None if after is None else after - SETTLED - 1,
        "later": {each.period - SETTLED - 1: each.alerts for each in told[SETTLED + 1 :] if each.alerts},
    }


def _decay(options: GuardrailOptions) -> dict[str, Any]:
    """The labels of more and more users are turned round."""
    told = _play(decayed(period) for period in _stream(options, 1))
    first = next((each for each in told[SETTLED:] if each.alerts), None)
    return {
        "periods_to_notice": None if first is None else first.period - SETTLED,
        "by": [] if first is None else first.alerts,
        "later": {each.period - SETTLED: each.alerts for each in told[SETTLED:] if each.alerts},
    }


def _canary(options: GuardrailOptions) -> dict[str, Any]:
    """A good version and a bad one answer a share of the users first."""
    config = _config(OF_CANARY * options.events)
    return play_canary(drift_stream(config, seed=1), CanaryOptions(seed=options.seed))


def _clean(options: GuardrailOptions) -> dict[str, Any]:
    """Nothing goes wrong."""
    alarms = {}
    for seed in range(options.first, options.first + options.streams):
        told = _play(_stream(options, seed))
        alarms[seed] = {each.period: each.messages for each in told if each.alerts}
        print(json.dumps({"clean stream": seed, "alarms": alarms[seed]}), flush=True)
    false_alarms = sum(len(messages) for each in alarms.values() for messages in each.values())
    return {"streams": options.streams, "false_alarms": false_alarms, "alarms": alarms}


def _config(events: int) -> DriftConfig:
    return DriftConfig(users=max(20, events // 10), items=max(20, events // 25), events=events)


def _stream(options: GuardrailOptions, seed: int) -> Iterator[DriftPeriod]:
    return islice(drift_stream(_config(options.events), seed=seed), options.periods)


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
            send(client, period)
            told.append(_judged(server, client, period.number, close(client, period.number)))
    return told


def _judged(server: Server, client: httpx.Client, period: int, version: int) -> _Told:
    """Wait until a period's version is served and judged; what the service says then."""
    wait_for(lambda: (served_version(server.target.port) or -1) >= version, "the take-over")
    if period > 1:  # nothing was served in the first that could be kept
        wait_for(lambda: _is_scored(client, version, period), "the scores of what was kept")
    alerts = client.get("/admin/alerts", params={"limit": 200}).json()["alerts"]
    alerts = sorted((each for each in alerts if each["period"] == period), key=lambda each: str(each["kind"]))
    lines = client.get("/metrics").text.splitlines()
    return _Told(
        period,
        client.get(f"/admin/models/{version}").json()["kind"],
        [each["kind"] for each in alerts],
        [f"{each['kind']}: {each['message']}" for each in alerts],
        [line.split('"')[1] for line in lines if line.startswith("asmg_alerts{") and not line.endswith(" 0.0")],
    )


def _is_scored(client: httpx.Client, version: int, period: int) -> bool:
    cells = client.get("/admin/samples").json()["cells"]
    return any((cell["version"], cell["period"]) == (version, period) for cell in cells)
