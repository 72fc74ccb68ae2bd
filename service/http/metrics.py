"""Prometheus metrics of an api process.

With several api processes the supervisor sets `PROMETHEUS_MULTIPROC_DIR` before they start. `prometheus_client` then
keeps the numbers in files in this folder, and the process that is asked for `/metrics` adds up those of all processes.
"""

import os
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from service.http.model_metrics import ModelMetrics
from service.telemetry.server_metrics import ServerMetrics
from service.telemetry.settings import MULTIPROCESS_VARIABLE

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""Upper bounds in seconds, from a prediction whose data is in memory (under a millisecond) to the largest call of the
catalogue."""


class Metrics:
    """The metrics of one application. Each has a registry of its own, so that several can be in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.requests = Counter("asmg_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.refusals = Counter(
            "asmg_refusals",
            "Connections ended with an error before a call was understood.",
            ["status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "asmg_request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.predicted_items = Counter("asmg_predicted_items", "Items scored.", registry=registry)
        self._events = {
            kind: Counter(
                f"asmg_{kind}",
                f"{kind.capitalize()} received: accepted, duplicate or conflict.",
                ["result"],
                registry=registry,
            )
            for kind in ("interactions", "impressions", "clicks")
        }
        self.models = ModelMetrics(registry)
        self.servers = ServerMetrics(registry)
        self._labels = Gauge(
            "asmg_labels",
            "What became of impressions and clicks in all closed periods, as Postgres has it.",
            ["result"],
            registry=registry,
            multiprocess_mode="max",
        )
        self._periods = Gauge(
            "asmg_periods",
            "Periods by status, as Postgres has it; an operator is needed where one is quarantined.",
            ["status"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._gate_decisions = Gauge(
            "asmg_gate_decisions",
            "Model versions by what the gate let serve, as Postgres has it; previous: what was served before.",
            ["decision"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._gate_refused_in_a_row = Gauge(
            "asmg_gate_refused_in_a_row",
            "Newest model versions in a row that do not serve what they have learned; an operator should look.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._gate_logloss = Gauge(
            "asmg_gate_logloss",
            "LogLoss on the newest tenth of the period learned last: of models that learned the rest, of a constant, "
            "and of what was served.",
            ["model"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._alerts = Gauge(
            "asmg_alerts",
            "Open alerts by kind, as Postgres has them; GET /admin/alerts says what is wrong.",
            ["kind"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._deliveries = Gauge(
            "asmg_webhook_deliveries",
            "Deliveries of webhooks by status, of those that are kept, as Postgres has them.",
            ["status"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._canary_share = Gauge(
            "asmg_canary_share",
            "Share of the users whom a new version answers first, as Postgres has it; 0 where none does.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._canaries = Gauge(
            "asmg_canaries",
            "Versions that answered a share of the users first, by what became of them, as Postgres has them.",
            ["state"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._exports_waiting = Gauge(
            "asmg_exports_waiting",
            "Learned periods whose logs wait for their export, as Postgres has them; 0 without ASMG_EXPORT_URL.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._export_wait = Gauge(
            "asmg_export_wait_seconds",
            "Seconds since the update of the first of them has ended; 0 where none waits.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._heartbeat_age = Gauge(
            "asmg_worker_heartbeat_age_seconds",
            "Seconds since the leading worker last got any further; infinite where nothing is known of one.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.model_version = Gauge(
            "asmg_model_version",
            "Model version served; of several processes the lowest.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._ready_version = Gauge(
            "asmg_model_ready_version",
            "Newest model version loaded; of several processes the lowest.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._swap_lag = Gauge(
            "asmg_swap_lag_seconds",
            "For how long a version that is not loaded should have been served; of several processes the longest.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._champion_version = Gauge(
            "asmg_champion_version",
            "Model version published last, as Postgres has it.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._api_processes = Gauge(
            "asmg_api_processes",
            "Api processes of all hosts, as Postgres has them. live: all that run; ready: those that have loaded the "
            "champion; behind: those that serve an older version than they should.",
            ["state"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.swaps = Counter("asmg_swaps", "Times that a version began to be served.", registry=registry)
        self.swap_failures = Counter(
            "asmg_swap_failures", "Attempts to load the champion that failed; what was served stays.", registry=registry
        )
        self.snapshot_damage = Counter(
            "asmg_snapshot_damage",
            "Times that a snapshot in memory, or its file, was found to be other than it was written; it is replaced.",
            registry=registry,
        )
        self.history_fallbacks = Counter(
            "asmg_history_fallbacks", "Histories read from Postgres because Redis did not answer.", registry=registry
        )
        self.without_history = Counter(
            "asmg_predictions_without_history",
            "Predictions made without the user's history, since neither Redis nor Postgres gave it in time.",
            registry=registry,
        )

        self.not_logged = Counter(
            "asmg_impressions_not_logged",
            "Impressions of predictions that were not stored in time, or not at all: the answers say so.",
            registry=registry,
        )
        self.rate_limited = Counter(
            "asmg_rate_limited",
            "Requests refused because a key, or somebody with unknown ones, made too many.",
            registry=registry,
        )

    def note_request(self, route: str, status: int, seconds: float) -> None:
        """Count and time one request."""
        found = self._by_route.get((route, status))
        if found is None:  # there are few combinations: of a route and the statuses that it answers with
            found = self.requests.labels(route, status), self.request_seconds.labels(route)
            self._by_route[route, status] = found
        counter, histogram = found
        counter.inc()
        histogram.observe(seconds)

    def note_events(self, kind: str, accepted: int, duplicates: int, conflicts: int) -> None:
        """Count the results of a batch of `interactions`, `impressions` or `clicks`."""
        for result, events in (("accepted", accepted), ("duplicate", duplicates), ("conflict", conflicts)):
            self._events[kind].labels(result).inc(events)

    def note_labels(self, totals: Mapping[str, int]) -> None:
        """Set the totals of impressions and clicks by result."""
        for result, total in totals.items():
            self._labels.labels(result).set(total)

    def note_periods(self, counts: Mapping[str, int]) -> None:
        """Set the numbers of periods by status."""
        for status, count in counts.items():
            self._periods.labels(status).set(count)

    def note_gate(self, decisions: Mapping[str, int], in_a_row: int, losses: Mapping[str, float]) -> None:
        """Set the gate's decisions so far, and the values of LogLoss that it compared last, by model."""
        for decision, count in decisions.items():
            self._gate_decisions.labels(decision).set(count)
        self._gate_refused_in_a_row.set(in_a_row)
        for model, loss in losses.items():
            self._gate_logloss.labels(model).set(loss)

    def note_notifications(self, alerts: Mapping[str, int], deliveries: Mapping[str, int]) -> None:
        """Set the numbers of open alerts by kind, and of deliveries of webhooks by status."""
        for kind, count in alerts.items():
            self._alerts.labels(kind).set(count)
        for status, count in deliveries.items():
            self._deliveries.labels(status).set(count)

    def note_canaries(self, share: float, counts: Mapping[str, int]) -> None:
        """Set the share of the users whom a canary answers, and the numbers of canaries by state."""
        self._canary_share.set(share)
        for state, count in counts.items():
            self._canaries.labels(state).set(count)

    def note_exports(self, waiting: int, seconds: float) -> None:
        """Set how many logs wait for their export, and for how long the first of them has."""
        self._exports_waiting.set(waiting)
        self._export_wait.set(seconds)

    def note_turns(self, ready_version: int, lag_seconds: float) -> None:
        """Set what this process has loaded, and for how long it should have served another version."""
        self._ready_version.set(ready_version)
        self._swap_lag.set(lag_seconds)

    def note_processes(self, champion: int | None, live: int, ready: int, behind: int) -> None:
        """Set the version published last, and how many api processes run, have loaded it, and are behind."""
        if champion is not None:
            self._champion_version.set(champion)
        for state, count in (("live", live), ("ready", ready), ("behind", behind)):
            self._api_processes.labels(state).set(count)

    def note_worker(self, age_seconds: float) -> None:
        """Set the seconds since the last progress of the leading worker."""
        self._heartbeat_age.set(age_seconds)

    def render(self) -> bytes:
        """The metrics in the text format; of all api processes where there are several."""
        registry = self._registry
        if MULTIPROCESS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client has types in part
        return generate_latest(registry)
