"""What the demo does, through the public HTTP API only: play the periods, roll back, roll forward."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from asmg.features import Schema
from service.cli.console import StageBar
from service.demo.client import Api, CallFailed
from service.demo.comparison import ComparisonModels
from service.demo.report import PeriodReport, Report, RollbackReport
from service.demo.streams import PlayedPeriod, Stream
from service.demo.traffic import Traffic, VersionOrder
from service.tasks import start_alone

__all__ = ["Scenario", "contexts_for_prediction"]

PROBES = 8
"""Prediction requests whose scores are compared before and after a rollback."""
PROBE_ITEMS = 30
"""Most candidates of a probe."""
PROBE_HISTORY = 5
"""Most items in the history of a probe."""
ROLLED_BACK_SECONDS = 1.0
"""Seconds for which the older version answers before the demo rolls forward."""

HOUR_SECONDS = 3_600

Context = Mapping[str, Any]

ProbeScores = tuple[int, Sequence[Sequence[float]]]
"""The hour of the answers (hours since 1970, which models may read), and the scores of each probe."""


class Scenario:
    """One run of the demo, against a service in its first period.

    Args:
        url: address of the service.
        key: of all scopes.
        bar: shows what is being done.
        seed: of the prediction requests.
        comparison: learns from the same events.
    """

    def __init__(self, url: str, key: str, bar: StageBar, seed: int, comparison: ComparisonModels) -> None:
        self._api = Api.connect(url, key)
        self._bar, self._comparison = bar, comparison
        # Connections of its own, so that no prediction waits behind a batch of the log.
        self._traffic_api = Api.connect(url, key)
        self._traffic = Traffic(self._traffic_api.http, VersionOrder(0), seed)
        self._random = random.Random(seed)
        self._probes: list[dict[str, Any]] = []
        self._example: dict[str, Any] = {}
        self._recorded: dict[int, ProbeScores] = {}

    @property
    def example(self) -> dict[str, Any]:
        """A short prediction request about a user and items of the stream; empty before the first period."""
        return self._example

    async def play(self, stream: Stream, seed: int, show: Callable[[PeriodReport], None]) -> Report:
        """Play all periods, then the rollback.

        Args:
            stream: the periods.
            seed: for the report.
            show: called with the report of each period once its update has ended.

        Raises:
            CallFailed: a call other than a prediction failed.
        """
        periods: list[PeriodReport] = []
        async with self._api.http, self._traffic_api.http, AsyncExitStack() as stack:
            for number, period in enumerate(stream.periods, start=1):
                items = list(dict.fromkeys(period.item_ids))
                contexts = contexts_for_prediction(period, stream.schema)
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
            yardstick=self._comparison.name,
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
        # In a thread of its own, while the update runs and clients keep asking.
        comparison = start_alone(asyncio.to_thread(self._comparison.score_and_learn, period))
        document: dict[str, Any] = {}
        async for document in self._api.watch(closed["period"]):
            stage, progress = document["stage"], document["progress"]
            if stage is not None:
                self._bar.show(f"{title}: {stage}", progress or 0.0)
        model = None
        if (version := document["version"]) is not None:
            self._bar.show(f"{title}: swapping to version {version}", 1.0)
            await self._traffic.wait_for_version(version)
            window = self._traffic.window
            model = await self._api.call("GET", f"/admin/models/{version}")
            await self._record(version)
        else:
            window = self._traffic.window
        return PeriodReport.of(
            document,
            model,
            window,
            others={self._comparison.name: None, **await comparison, **period.best},
        )

    def _choose_probes(self, users: Sequence[str], items: Sequence[str], contexts: Sequence[Context]) -> None:
        """Choose prediction requests whose scores depend on nothing but the model and the hour.

        They bring their histories along, and their users have no events: the recent events of the stream's users keep
        changing, and the model reads them.
        """
        few = self._random.sample(items, min(3, len(items)))
        self._example = {"user_id": self._random.choice(users), "items": few}
        self._example |= self._random_context(contexts)
        for number in range(PROBES):
            self._probes.append(
                {
                    "user_id": f"demo-probe-{number}",
                    "items": self._random.sample(items, min(PROBE_ITEMS, len(items))),
                    "history": self._random.sample(items, min(PROBE_HISTORY, len(items))),
                    **self._random_context(contexts),
                }
            )

    def _random_context(self, contexts: Sequence[Context]) -> Mapping[str, Any]:
        """The context of a request; empty if the stream has no contexts."""
        return {"context": self._random.choice(contexts)} if contexts else {}

    async def _record(self, version: int) -> None:
        self._recorded[version] = await self._probe(version)

    async def _probe(self, version: int) -> ProbeScores:
        """Return the scores of all probes by a version that is being served.

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
        while restored is None or forward is None:  # repeated if the hour has changed meanwhile
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
        """Make a version the champion; return whether it scores the probes exactly as it did before.

        None if it did so in another hour, which its scores may depend on.
        """
        self._traffic.versions.announce(version)
        body = {"to_version": version, "sequence": "keep", "reason": reason}
        await self._api.call("POST", "/admin/rollback", body)
        await self._traffic.wait_for_version(version)
        with suppress(CallFailed):
            before = self._recorded[version]
            await self._record(version)
            hour, _ = self._recorded[version]
            return before == self._recorded[version] if hour == before[0] else None
        return False


def contexts_for_prediction(period: PlayedPeriod, schema: Schema) -> list[Context]:
    """The contexts of the period's interactions, without fields that are known only after an item was shown."""
    later = {field.name for field in schema.fields if field.training_only}
    return [{name: value for name, value in context.items() if name not in later} for context in period.contexts]
