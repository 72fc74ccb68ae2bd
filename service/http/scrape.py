"""What `/metrics` answers: the numbers of the processes, and those that Postgres and Redis have at this moment."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

from service.http.app_state import AppState
from service.http.ping import within_time
from service.telemetry.port import metrics_port
from service.use_cases.alerts import alert_counts
from service.use_cases.export import exports_waiting
from service.use_cases.model_status import canary_counts, gate_summary
from service.use_cases.processes import list_processes
from service.use_cases.quality import model_summary
from service.use_cases.status import label_totals, period_counts
from service.use_cases.webhooks.endpoints import delivery_counts

__all__ = ["scrape", "show_metrics"]

ANSWER_SECONDS = 5.0
"""How long the port of the metrics waits for the event loop."""


async def scrape(state: AppState) -> bytes:
    """All metrics in the text format; what Postgres or Redis does not tell in time is as it was."""
    await asyncio.gather(within_time(_note_stored(state)), within_time(_note_worker(state)))
    # With several api processes it reads files, which is done in a thread.
    return await asyncio.to_thread(state.metrics.render)


@contextmanager
def show_metrics(state: AppState, listener: socket | None) -> Iterator[None]:
    """Answer `/metrics` on a socket as long as the block runs; without one do nothing."""
    if listener is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def render() -> bytes:
        return asyncio.run_coroutine_threadsafe(scrape(state), loop).result(ANSWER_SECONDS)

    with metrics_port(listener, render):
        yield


async def _note_stored(state: AppState) -> None:
    state.metrics.note_labels(await label_totals(state.database))
    state.metrics.note_periods(await period_counts(state.database))
    alerts, deliveries = await alert_counts(state.database), await delivery_counts(state.database)
    state.metrics.note_notifications(alerts, deliveries)
    state.metrics.note_canaries(*await canary_counts(state.database))
    if state.settings.export_url is not None:
        state.metrics.note_exports(*await exports_waiting(state.database))
    gate = await gate_summary(state.database)
    state.metrics.note_gate(gate.decisions, gate.in_a_row, gate.losses())
    state.metrics.models.note(await model_summary(state.database))
    listed = await list_processes(state.database)
    ready = sum(process.ready for process in listed.processes)
    behind = sum(process.behind for process in listed.processes)
    state.metrics.note_processes(listed.champion, len(listed.processes), ready, behind)


async def _note_worker(state: AppState) -> None:
    at = await state.notices.leader_at()
    state.metrics.note_worker(math.inf if at is None else max(0.0, time.time() - at))
