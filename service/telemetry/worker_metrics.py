"""Metrics of a worker process: how long stages take, what became of periods, whether it leads and gets further."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.telemetry.server_metrics import ServerMetrics

__all__ = ["WorkerMetrics"]

STAGE_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Upper bounds in seconds, from a stage of a thousand events to one of a hundred million."""


class WorkerMetrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.servers = ServerMetrics(registry)
        self._stages = Histogram(
            "asmg_worker_stage_seconds",
            "Seconds that this worker took for the stages of updates.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._periods = Counter(
            "asmg_worker_periods", "Updates that this worker ended: updated or failed.", ["result"], registry=registry
        )
        self._compactions = Histogram(
            "asmg_worker_compaction_seconds",
            "Seconds that this worker took to look for layers to merge, and to merge them.",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._compaction_failures = Counter(
            "asmg_worker_compaction_failures",
            "Merges of layers that failed; the layers serve as well.",
            registry=registry,
        )
        self._export_failures = Counter(
            "asmg_worker_export_failures",
            "Attempts of this worker to export logs that failed; each is made again.",
            registry=registry,
        )
        self._shadows = Histogram(
            "asmg_worker_shadow_seconds",
            "Seconds that this worker took to score and learn a period by a method that runs beside the served one.",
            ["method"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._shadow_restarts = Counter(
            "asmg_worker_shadow_restarts",
            "How often a method that runs beside started again from the served one's training state.",
            ["method"],
            registry=registry,
        )
        self._leading = Gauge("asmg_worker_leading", "1 where this worker leads, 0 in reserve.", registry=registry)
        self._age = Gauge(
            "asmg_worker_progress_age_seconds",
            "Seconds since this worker last got any further, leading or in reserve.",
            registry=registry,
        )

    def follow_progress(self, last: Callable[[], float]) -> None:
        """Show the age of the last progress from now on.

        Args:
            last: the time of it, on the monotonic clock.
        """
        self._age.set_function(lambda: time.monotonic() - last())

    def note_stage(self, stage: str, seconds: float) -> None:
        """Note how long a stage took."""
        self._stages.labels(stage).observe(seconds)

    def note_period(self, result: str) -> None:
        """Note that an attempt to update on a period ended: `updated` or `failed`."""
        self._periods.labels(result).inc()

    def note_compaction(self, seconds: float | None) -> None:
        """Note how long a merge of layers took; None where it failed."""
        if seconds is None:
            self._compaction_failures.inc()
        else:
            self._compactions.observe(seconds)

    def note_export_failure(self) -> None:
        """Note that logs could not be exported."""
        self._export_failures.inc()

    def note_shadow(self, method: str, seconds: float) -> None:
        """Note how long a method that runs beside the served one took for a period."""
        self._shadows.labels(method).observe(seconds)

    def note_shadow_restart(self, method: str) -> None:
        """Note that a method that runs beside starts again."""
        self._shadow_restarts.labels(method).inc()

    def note_leading(self, leads: bool) -> None:
        """Note whether this worker leads."""
        self._leading.set(leads)

    def render(self) -> bytes:
        """The metrics in the text format."""
        return generate_latest(self._registry)
