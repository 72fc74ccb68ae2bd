"""The demo itself: play the periods, roll back, roll forward; through the public HTTP API only."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from asmg.features import Schema
from service.cli.console import StageBar
from service.demo.client import Api, CallFailed
from service.demo.practitioner import Practitioner
from service.demo.report import PeriodReport, Report, RollbackReport
from service.demo.streams import PlayedPeriod, Stream
from service.demo.traffic import Traffic, VersionOrder
from service.tasks import start_alone

__all__ = ["Story"]

PROBES = 8
PROBE_ITEMS = 30
PROBE_HISTORY = 5
PROBE_ATTEMPTS = 20
ROLLED_BACK_SECONDS = 1.0
"""How long the older version answers before the way forward."""

HOUR_SECONDS = 3_600

Context = Mapping[str, Any]

ProbeScores = tuple[int, Sequence[Sequence[float]]]
"""Hours since 1970, which models may read, and the scores of each probe."""


class Story:
    """One run of the demo against a service in its first period.

    Args:
        url: of the service.
        key: with all scopes.
        bar: shows what goes on.
        seed: of the questions.
        practitioner: is told the same events.
    """

    def __init__(self, url: str, key: str, bar: StageBar, seed: int, practitioner: Practitioner) -> None:
        self._api = Api.connect(url, key)
        self._bar, self._practitioner = bar, practitioner
        # Connections of its own, so that no prediction waits behind a batch of the log.
        self._traffic_api = Api.connect(url, key)
        self._traffic = Traffic(self._traffic_api.http, VersionOrder(0), seed)
        self._random = random.Random(seed)
        self._probes: list[dict[str, Any]] = []
        self._example: dict[str, Any] = {}
        self._recorded: dict[int, ProbeScores] = {}

    @property
    def example(self) -> dict[str, Any]:
        """A short question about a user and items of the stream; there is none before the first period."""
        return self._example

    async def play(self, stream: Stream, seed: int, show: Callable[[PeriodReport], None]) -> Report:
        """Play all periods, then the rollback.

        Args:
            stream: the periods.
            seed: for the report.
            show: called with the report of each period as soon as there is one.

        Raises:
            CallFailed: a call other than a prediction failed.
        """
        periods: list[PeriodReport] = []
        async with self._api.http, self._traffic_api.http, AsyncExitStack() as stack:
            for number, period in enumerate(stream.periods, start=1):
                items = list(dict.fromkeys(period.item_ids))
                contexts = _of_questions(period, stream.schema)
                self._traffic.offer(list(dict.fromkeys(period.user_ids)), items, contexts)
                if number == 1:
                    self._choose_probes(period.user_ids, items, contexts)
                    await self._record(0)
                    await stack.enter_async_context(self._traffic.running())
                report = await self._play_one(period, f"period {number} of {stream.count}", f"{stream.name}-{number}")
                periods.append(report)
                show(report)
            rollback = await self._roll_back_and_forward()
        return Report(
            data=stream.name,
            seed=seed,
            yardstick=self._practitioner.name,
            periods=periods,
            rollback=rollback,
            requests=self._traffic.total,
            faults=self._traffic.faults,
        )

    async def _play_one(self, period: PlayedPeriod, title: str, name: str) -> PeriodReport:
        self._bar.begin(f"{title}: sending {len(period.labels):,} events")
        await self._api.put_catalogue(period)
        await self._api.ingest(name, period)

        self._traffic.begin_window()
        closed = await self._api.call("POST", "/periods/close", {}, **{"Idempotency-Key": f"demo-{name}"})
        self._bar.begin(f"{title}: sealed")
        # Beside the update, in a thread of its own: the clients go on asking.
        judged = start_alone(asyncio.to_thread(self._practitioner.score_and_learn, period))
        document: dict[str, Any] = {}
        async for document in self._api.watch(closed["period"]):
            stage, progress = document["stage"], document["progress"]
            if stage is not None:
                self._bar.show(f"{title}: {stage}", progress or 0.0)
        model = None
        if (version := document["version"]) is not None:
            self._bar.show(f"{title}: swapping to version {version}", 1.0)
            await self._traffic.until(version)
            window = self._traffic.window
            model = await self._api.call("GET", f"/admin/models/{version}")
            await self._record(version)
        else:
            window = self._traffic.window
        return PeriodReport.of(
            document,
            model,
            window,
            others={self._practitioner.name: None, **await judged, **period.best},
        )

    def _choose_probes(self, users: Sequence[str], items: Sequence[str], contexts: Sequence[Context]) -> None:
        """Questions whose answers depend on nothing but the model and the hour.

        They bring their histories along, and nothing else is known of who asks: what a user of the stream did of late
        goes on changing, and the model reads it.
        """
        few = self._random.sample(items, min(3, len(items)))
        self._example = {"user_id": self._random.choice(users), "items": few}
        self._example |= self._in_context(contexts)
        for number in range(PROBES):
            self._probes.append(
                {
                    "user_id": f"demo-probe-{number}",
                    "items": self._random.sample(items, min(PROBE_ITEMS, len(items))),
                    "history": self._random.sample(items, min(PROBE_HISTORY, len(items))),
                    **self._in_context(contexts),
                }
            )

    def _in_context(self, contexts: Sequence[Context]) -> Mapping[str, Any]:
        """What a question has beside its items; nothing where there are no contexts."""
        return {"context": self._random.choice(contexts)} if contexts else {}

    async def _record(self, version: int) -> None:
        self._recorded[version] = await self._probe(version)

    async def _probe(self, version: int) -> ProbeScores:
        """The scores of all probes by a version that answers already.

        Raises:
            CallFailed: another version answers.
        """
        hour, scores = int(time.time() // HOUR_SECONDS), []
        for probe in self._probes:
            answer = await self._api.call("POST", "/predict", probe)
            if answer["model_version"] != version:
                raise CallFailed(f"expected version {version} to answer; received version {answer['model_version']}")
            scores.append(answer["scores"])
        return hour, scores

    async def _roll_back_and_forward(self) -> RollbackReport | None:
        current = self._traffic.versions.current
        if current == 0:
            return None
        previous = current - 1
        self._traffic.begin_window()
        window = self._traffic.window
        restored = forward = None
        while restored is None or forward is None:  # where an hour ended meanwhile, once more within this one
            self._bar.begin(f"rolling back to version {previous}")
            restored = await self._serve(previous, "demo: the way back")
            await asyncio.sleep(ROLLED_BACK_SECONDS)
            self._bar.begin(f"rolling forward to version {current}")
            forward = await self._serve(current, "demo: the way forward")
            await asyncio.sleep(ROLLED_BACK_SECONDS / 2)
        (_, new_scores), (_, old_scores) = self._recorded[current], self._recorded[previous]
        return RollbackReport(
            from_version=current,
            to_version=previous,
            restored=restored,
            forward_restored=forward,
            largest_change=max(
                abs(a - b)
                for new, old in zip(new_scores, old_scores, strict=True)
                for a, b in zip(new, old, strict=True)
            ),
            requests=window,
        )

    async def _serve(self, version: int, reason: str) -> bool | None:
        """Make a version the champion; whether it answers the probes exactly as it did before, None where that was in
        another hour.
        """
        self._traffic.versions.announce(version)
        body = {"to_version": version, "sequence": "keep", "reason": reason}
        await self._api.call("POST", "/admin/rollback", body)
        await self._traffic.until(version)
        with suppress(CallFailed):
            before = self._recorded[version]
            await self._record(version)
            hour, _ = self._recorded[version]
            return before == self._recorded[version] if hour == before[0] else None
        return False


def _of_questions(period: PlayedPeriod, schema: Schema) -> list[Context]:
    """The contexts of the period's interactions as they were before anything was shown."""
    later = {field.name for field in schema.fields if field.training_only}
    return [{name: value for name, value in context.items() if name not in later} for context in period.contexts]
