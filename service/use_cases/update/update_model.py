"""The period cycle: resolve → score → train the generator → update the base → generate → gate → publish.

Each stage notes its result in Postgres when it is done; what it made lies there as content-addressed artifacts,
written before the note. A worker that starts anew goes on behind the last stage that was noted, and every stage is
deterministic (its randomness follows from the seed, the period and its name), so the outcome is the same version, once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from asmg import metrics
from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, dump_data, load_data
from asmg.features import DEFAULT, Schema
from asmg.metrics import Scores
from asmg.models import BaseModel, Params, build_model, config_from_json, forget, table_sizes
from asmg.numbers import NumberMoments
from asmg.progressive import stage_rng
from asmg.statistics import Statistics
from asmg.training import evaluate, predict_logits
from asmg.updaters.base import Updater
from asmg.updaters.with_statistics import PART as STATISTICS
from service.files import DigestedFile, create, keep_newest
from service.serving.encode import Known, encode_model
from service.settings import Settings
from service.storage.artifacts.store import FILE_SUFFIX, ArtifactStore
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import (
    AliasName,
    EntityKind,
    Evaluation,
    ModelKind,
    ModelVersion,
    PeriodStatus,
    Stage,
)
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from service.use_cases.quarantine import MOST_CRASHES, CrashLoop
from service.use_cases.update.gate import Decision, Trial, decide, rehearsed, try_out
from service.use_cases.update.negatives import Sampling, logit_correction
from service.use_cases.update.period_data import prepare_period
from service.use_cases.update.period_fields import fields_of_snapshot
from service.use_cases.update.resolve_labels import resolve_labels
from service.use_cases.update.training_state import cannot_go_on

__all__ = ["PeriodUpdate", "Superseded", "Workshop"]

logger = logging.getLogger(__name__)

RECENT_EVENTS = 50_000
"""The newest interactions of the period, on which the gate looks at the new models."""

PROGRESS_SECONDS = 0.25
"""Between two notices of progress."""

OF_THE_LOG = ("resolve",)
"""Stages that have nothing to do with the training state."""

HOT_PARTS = ("hidden",)
"""Parts of the training state that Redis keeps too, beside the serving snapshot."""

NOTHING_TO_LEARN = "the log is empty, what was shown waits for its clicks; the model served before stays"

NOTHING_LEFT = "all that was in the log has been deleted; the model served before stays"

SERVED = ("serving", "serving_allocations", "serving_schema", "serving_statistics", "logit_correction")
"""Of a version's state: the parameters that it serves, which ids these know, the schema of the fields, the statistics
that go with them, and what is added to their logits."""

ACTOR = "worker"


class Superseded(Exception):
    """What an update began from holds no more: an operator has changed the sequence or the period, or another worker is
    at it. Nothing of it was published.
    """


@dataclass(frozen=True)
class Workshop:
    """What an update works with."""

    settings: Settings
    database: Database
    artifacts: ArtifactStore
    notices: Notices
    updater: Updater[Any]
    histories: HistoryStore
    schema: Schema = DEFAULT
    """Of the fields."""
    worker: str = field(default_factory=lambda: uuid4().hex)
    """Name of the process, that no other one ever had."""
    beat: Callable[[], None] = lambda: None
    """Called when something got further, also from the training thread."""


class PeriodUpdate:
    """The update on one sealed period.

    Args:
        workshop: storage and the update method.
        period: number of a sealed period.
    """

    def __init__(self, workshop: Workshop, period: int) -> None:
        self._w, self.period = workshop, period
        self._names = ("resolve", "prepare", "score", *workshop.updater.stages, "gate", "publish")
        self._done: dict[str, Stage] = {}
        self._head: ModelVersion | None = None
        self._late = False
        self._state: Any = None
        self._parts: dict[str, str] = {}
        self._allocations: Mapping[str, int] = {}
        self._sampling: Sampling | None = None
        self._written: dict[str, tuple[Checkpoint, str]] = {}
        self._data: PeriodData | None = None

    async def run(self) -> int:
        """Run every stage that is not done yet and return the version; of an updated period, the one it has.

        Raises:
            Superseded: the period waits for no update any more, another worker is at it, or the training state to go on
                from has changed; see which period is the next.
            CrashLoop: too many workers have died at it.
            DivergedError: training failed; nothing was published.
            ConfigurationError: the update method cannot go on from the training state of the head.
        """
        if (version := await self._take()) is not None:
            return version
        await self._begin()
        resolved = await self._stage("resolve", self._resolve)
        self._sampling = None if resolved["sampling"] is None else Sampling(**resolved["sampling"])
        if not resolved["events"]:
            return await self._finish({}, Decision(ModelKind.PREVIOUS, NOTHING_TO_LEARN, {}).to_json())
        if not await self._is_left():
            return await self._finish({}, Decision(ModelKind.PREVIOUS, NOTHING_LEFT, {}).to_json())
        prepared = await self._stage("prepare", self._prepare)
        self._allocations = prepared.get("allocations", {})
        if self._data is None:
            self._data = load_data(await self._read(prepared["data"], "period-data"))
        scored = await self._stage("score", self._score)
        for name in self._w.updater.stages:
            await self._stage(name, lambda progress, name=name: self._train(name, progress))  # type: ignore[misc]
        gate = await self._stage("gate", lambda _: self._gate(scored))
        return await self._finish(scored["scores"], gate)

    async def _is_left(self) -> bool:
        """Whether anything is there to learn from; it may have been deleted since it was counted."""
        if "prepare" in self._done:
            return True
        async with self._w.database.read() as session:
            return await session.interactions.count(self.period) > 0

    async def _finish(self, scored: Mapping[str, Any], gate: Mapping[str, Any]) -> int:
        """The version that the period produces, published."""
        published = await self._stage("publish", lambda _: self._publish(scored, gate))
        await self._w.notices.publish_swap()
        return int(published["version"])

    async def _take(self) -> int | None:
        """Note who is at the period; the version, where the period has one already."""
        async with self._w.database.unit_of_work() as work:
            # A worker that lost its leadership unaware may be publishing this very period: wait for its end.
            await work.lock_exclusive(Lock.MODELS)
            period = await work.periods.get(self.period)
            if period is not None and period.version is not None:
                return period.version
            period = await work.periods.take(self.period, self._w.worker)
            if period is None:
                raise Superseded(f"period {self.period} does not wait for its update")
            stages = await work.stages.list(self.period)
            await work.commit()
        if period.crashes >= MOST_CRASHES:
            raise CrashLoop(period.crashes, next((stage.stage for stage in stages if stage.status == "running"), None))
        return None

    async def _begin(self) -> None:
        """Find out where to go on."""
        async with self._w.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            await self._hold(work)
            self._head = await _head(work)
            newest = await work.models.newest_period()
            self._late = newest is not None and newest > self.period
            done = {stage.stage: stage for stage in await work.stages.list(self.period) if stage.status == "done"}
            first = done.get("prepare")
            if first is not None and first.result.get("origin") == self._origin(self._head):
                self._done = done
            else:  # what was made from another training state is worth nothing now, and must not look done later
                self._done = {name: done[name] for name in OF_THE_LOG if name in done}
                await work.stages.clear(self.period, keep=OF_THE_LOG)
                if not self._late:  # then they are from the period's own time
                    await work.evaluations.clear(self.period)
            trained = [self._done[name].result["state"] for name in self._w.updater.stages if name in self._done]
            self._parts = trained[-1] if trained else self._head.state.get("parts", {})
            self._allocations = self._head.state.get("allocations", {})
            await work.commit()

    async def _hold(self, work: UnitOfWork, **values: Any) -> None:
        """See that this worker is at the period, until the transaction ends."""
        if await work.periods.hold(self.period, self._w.worker, **values) is None:
            raise Superseded(f"period {self.period} is another's, or nobody's")

    async def _stage(self, name: str, run: Callable[[Callable[[float], None]], Awaitable[dict[str, Any]]]) -> Any:
        """Run one stage and note its result, unless that was done before."""
        if name in self._done:
            return self._done[name].result
        async with self._w.database.unit_of_work() as work:
            await self._hold(work)
            await work.stages.start(self.period, name)
            await work.commit()
        loop, told, started, cancelled = asyncio.get_running_loop(), 0.0, time.perf_counter(), False
        await self._tell(name, 0.0)

        def progress(fraction: float) -> None:  # called from the training thread
            nonlocal told
            if cancelled:
                raise asyncio.CancelledError  # ends the thread, which the process would wait for otherwise
            self._w.beat()
            if time.perf_counter() - told >= PROGRESS_SECONDS:
                told = time.perf_counter()
                asyncio.run_coroutine_threadsafe(self._tell(name, fraction), loop)

        try:
            result = await run(progress)
        except asyncio.CancelledError:
            cancelled = True
            raise
        if name != "publish":  # which notes itself, in the transaction that publishes
            async with self._w.database.unit_of_work() as work:
                await self._hold(work, crashes=0)
                await work.stages.finish(self.period, name, time.perf_counter() - started, result)
                await work.commit()
        logger.info("period %d: %s took %.2f s", self.period, name, time.perf_counter() - started)
        self._w.beat()
        return result

    async def _tell(self, stage: str, fraction: float) -> None:
        done = (self._names.index(stage) + fraction) / len(self._names)
        await self._w.notices.publish_progress(self.period, {"stage": stage, "progress": round(done, 4)})

    async def _resolve(self, _: Callable[[float], None]) -> dict[str, Any]:
        settings = self._w.settings
        period = await resolve_labels(
            self._w.database,
            self._w.histories,
            self.period,
            settings.attribution_window,
            negatives_per_positive=settings.negatives_per_positive,
            seed=settings.seed,
            evict_after=settings.evict_after_periods,
        )
        assert period.labels is not None
        return {"events": period.events, "sampling": period.labels.get("sampling")}

    async def _prepare(self, _: Callable[[float], None]) -> dict[str, Any]:
        assert self._head is not None
        settings = self._w.settings
        data, allocations = await prepare_period(
            self._w.database,
            self.period,
            settings.history_length,
            evict_after=settings.evict_after_periods,
            schema=self._w.schema,
        )
        self._allocations = allocations
        self._data = await asyncio.to_thread(self._w.updater.prepare, await self._load_state(), data)
        digest = await self._write(dump_data(self._data))
        return {"origin": self._origin(self._head), "data": digest, "allocations": allocations}

    def _origin(self, head: ModelVersion) -> dict[str, Any]:
        """What the stages of this update are made from, beside the log: training state, method and schema."""
        return {"head": head.version, "schema": self._w.schema.to_json(), **self._w.updater.signature()}

    async def _score(self, progress: Callable[[float], None]) -> dict[str, Any]:
        """Progressive validation: every model that was there before, on a log that none of them has seen.

        Where a later period was learned before this one, there is no such model: what users clicked here was in their
        histories there. The gate's questions are asked all the same.
        """
        assert self._head is not None and self._data is not None
        updater, data, state = self._w.updater, self._data, await self._load_state()
        models: dict[str, tuple[int, BaseModel, Params, PeriodData]] = {
            name: (self._head.version, updater.model, params, data)
            for name, params in updater.serving_models(state).items()
        }
        async with self._w.database.read() as session:
            champion = await session.models.alias(AliasName.CHAMPION)
            baseline = await session.models.alias(AliasName.BASELINE)
            others: dict[str, ModelVersion | None] = {}
            previous = self._head.parent_version
            if champion is not None and champion.version != self._head.version:
                previous = champion.version
            if previous is not None:
                others["previous"] = await session.models.get(previous)
            if baseline is not None:
                others["baseline"] = await session.models.get(baseline.version)
        for name, version in others.items():
            if version is not None and "serving" in version.state:
                models[name] = (version.version, *await self._served_by(version))
        # The head serves what its update has made, or what its parent served; another champion is the `previous` above.
        served = self._head.kind if champion is not None and champion.version == self._head.version else "previous"
        found: dict[str, Any] = {}
        rows = []
        logits: Tensor | None = None
        for name, (number, model, params, read) in models.items():
            answers = await asyncio.to_thread(predict_logits, model, params, read)
            logits = answers if name == served else logits
            if self._late:
                continue
            scores = metrics.scores(answers, data.label)
            found[name] = {"version": number, **scores.to_json()}
            rows.append(
                Evaluation(
                    period=self.period,
                    model=name,
                    version=number,
                    events=scores.events,
                    auc=scores.auc,
                    logloss=scores.logloss,
                    calibration=scores.calibration,
                )
            )
        trial = await asyncio.to_thread(self._try_out, state, logits, progress)
        async with self._w.database.unit_of_work() as work:
            await self._hold(work)
            await work.evaluations.put(rows)
            await work.commit()
        return {"scores": found, "trial": trial.to_json()}

    async def _served_by(self, version: ModelVersion) -> tuple[BaseModel, Params, PeriodData]:
        """The model that a version serves, which may be another method's, without rows that changed hands since; and
        the period as it reads it, with the statistics that it is served with.
        """
        assert self._data is not None
        stored = await self._read(version.state["serving"], "model")
        strange = await self._rows_of_nobody(version.state.get("serving_allocations", {}))
        data = replace(self._data, numeric=None, nobody=None)
        if digest := version.state.get("serving_statistics"):
            statistics = Statistics.load(await self._read(digest, "statistics")).forgotten(strange)
            data = await asyncio.to_thread(statistics.prepare, data)
        return build_model(config_from_json(stored.meta["model"])), forget(stored.tensors, strange), data

    def _try_out(self, state: Any, served: Tensor | None, progress: Callable[[float], None]) -> Trial:
        """What the gate wants to know of the period before anything is learned from it."""
        assert self._data is not None
        data, rehearsals = self._data, {}
        if (cut := rehearsed(len(data))) < len(data):
            older, newest = data.slice(0, cut), data.slice(cut, len(data))
            rng = stage_rng(self._w.settings.seed, self.period, "rehearse")
            rehearsals = self._w.updater.rehearse(state, older, newest, rng=rng, progress=progress)
        return try_out(data.label, data.user, served, rehearsals)

    async def _train(self, stage: str, progress: Callable[[float], None]) -> dict[str, Any]:
        rng = stage_rng(self._w.settings.seed, self.period, stage)
        state, data = await self._load_state(), self._data
        assert data is not None
        self._state = await asyncio.to_thread(self._w.updater.run_stage, stage, state, data, rng=rng, progress=progress)
        parts = await asyncio.to_thread(self._w.updater.dump, self._state)
        self._parts = {name: await self._store(name, part) for name, part in parts.items()}
        return {"state": self._parts}

    async def _store(self, name: str, part: Checkpoint) -> str:
        """The digest of a part of the state; what the stage before had too, tensor for tensor, is not written again."""
        before = self._written.get(name)
        if before is not None and before[0].same_as(part):
            return before[1]
        digest = await self._write(part, hot=name in HOT_PARTS)
        self._written[name] = (part, digest)
        return digest

    async def _load_state(self) -> Any:
        """The training state: the one at hand, or as the last finished stage left it, or as the head version has it.

        In that of the head, rows that changed hands since it was made are nobody's yet.
        """
        if self._state is None:
            assert self._head is not None
            if self._parts:
                blobs = {name: await self._w.artifacts.get(digest) for name, digest in self._parts.items()}
                parts = {name: Checkpoint.from_bytes(data) for name, data in blobs.items()}
                of_the_head = not any(stage in self._done for stage in self._w.updater.stages)
                try:
                    self._state = await asyncio.to_thread(self._restored, parts)
                except (ValueError, KeyError) as error:
                    if not of_the_head:
                        raise
                    meta = parts["updater"].meta if "updater" in parts else {}
                    raise cannot_go_on(self._w.updater, self._head, meta, error) from error
                if of_the_head:
                    rows = await self._rows_of_nobody(self._head.state.get("allocations", {}))
                    self._state = await asyncio.to_thread(self._w.updater.forgotten, self._state, rows)
            else:
                self._state = self._w.updater.initial(stage_rng(self._w.settings.seed, 0, "initial"))
        return self._state

    async def _rows_of_nobody(self, allocations: Mapping[str, int]) -> dict[str, Tensor]:
        """Table name → rows that belong to nobody whom a model with these latest allocations knows."""
        async with self._w.database.read() as session:
            return {
                str(kind): torch.from_numpy(await session.entities.rows_of_nobody(kind, allocations.get(kind, 0)))
                for kind in EntityKind
            }

    def _restored(self, parts: Mapping[str, Checkpoint]) -> Any:
        """The state in these parts; where another method or one without fields left them, one from their base model."""
        updater = self._w.updater
        meta = parts["updater"].meta if "updater" in parts else {}
        owner = meta.get("updater")
        if owner is None or updater.loads(meta):
            return updater.load(parts)
        logger.warning("period %d: %s goes on from the base model that %s left", self.period, updater.name, owner)
        if updater.base.only_lacks_fields(meta.get("model")):
            logger.warning("period %d: that base model was made before it had fields, and gets them", self.period)
        return updater.adopted(parts, rng=stage_rng(self._w.settings.seed, self.period, "adopted"))

    async def _gate(self, scored: Mapping[str, Any]) -> dict[str, Any]:
        assert self._data is not None and self._head is not None
        recent = self._data.slice(max(0, len(self._data) - RECENT_EVENTS), len(self._data))
        models = self._w.updater.serving_models(await self._load_state())
        scores = {
            name: await asyncio.to_thread(evaluate, self._w.updater.model, p, recent) for name, p in models.items()
        }
        progressive = {
            name: Scores(**{key: value for key, value in values.items() if key != "version"})
            for name, values in scored["scores"].items()
        }
        decision = decide(progressive, scores, Trial.from_json(scored["trial"]), self._head.gate)
        if decision.kind is ModelKind.PREVIOUS:
            logger.warning("period %d: its model does not serve: %s", self.period, decision.reason)
        return decision.to_json()

    async def _publish(self, scored: Mapping[str, Any], gate: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that readers will see, in one transaction; the artifacts were written before."""
        assert self._head is not None
        started = time.perf_counter()
        kind = ModelKind(gate["decision"])
        serving_digest: str | None = None
        served: dict[str, Any] = {}
        async with self._w.database.read() as session:
            deletions = await session.deletions.finished(with_row=True)
        if kind is not ModelKind.PREVIOUS:
            params = self._w.updater.serving_models(await self._load_state())[kind]
            serving = await self._write(Checkpoint("model", {"model": self._w.updater.model.config.to_json()}, params))
            served = {"serving": serving, "serving_allocations": self._allocations}
            if "field" in self._w.updater.model.tables:
                served["serving_schema"] = self._w.schema.to_json()
            if STATISTICS in self._parts:
                served["serving_statistics"] = self._parts[STATISTICS]
            prior_ctr = self._w.settings.prior_ctr
            if self._sampling is not None and self._sampling.negatives and prior_ctr is not None:
                # In what is served alone: training goes on from what was trained.
                served["logit_correction"] = logit_correction(self._sampling, prior_ctr)
                params = self._w.updater.model.shifted(params, served["logit_correction"])
            serving_digest = await self._put_snapshot(params)
        async with self._w.database.unit_of_work() as work:
            await work.lock_exclusive(Lock.MODELS)
            await self._hold(work)
            if (await _head(work)).version != self._head.version:
                raise Superseded(f"head is not version {self._head.version} any more")
            if await work.deletions.finished(with_row=True) != deletions:
                logger.warning("period %d: its snapshot may know somebody who was deleted meanwhile", self.period)
                raise Superseded("somebody was deleted whom the snapshot may know; it is written again")
            if kind is ModelKind.PREVIOUS:
                serving_digest, served = await _served_now(work)
            version = (await work.models.latest_version() or 0) + 1
            await work.models.insert(
                ModelVersion(
                    version=version,
                    period=self.period,
                    kind=kind,
                    parent_version=self._head.version,
                    serving_digest=serving_digest,
                    state={"parts": self._parts, "allocations": self._allocations, **served},
                    scores=scored,
                    gate=gate,
                    created_by=ACTOR,
                )
            )
            await self._move_aliases(work, version, gate["reason"], trained="serving" in served)
            await work.periods.set_status(self.period, PeriodStatus.UPDATED, version=version)
            result = {"version": version}
            await work.stages.finish(self.period, "publish", time.perf_counter() - started, result)
            detail = {"version": version, "period": self.period, "kind": str(kind)}
            await work.audit.add(ACTOR, "publish", detail, reason=gate["reason"])
            await work.commit()
        return result

    async def _move_aliases(self, work: UnitOfWork, version: int, reason: str, *, trained: bool) -> None:
        lead = self._w.settings.swap_lead_seconds
        await work.models.set_alias(AliasName.CHAMPION, version, lead_seconds=lead, actor=ACTOR, reason=reason)
        await work.models.set_alias(
            AliasName.HEAD, version, lead_seconds=0, actor=ACTOR, reason=f"period {self.period}"
        )
        if trained and await work.models.alias(AliasName.BASELINE) is None:
            await work.models.set_alias(
                AliasName.BASELINE, version, lead_seconds=0, actor=ACTOR, reason="the first trained model"
            )

    async def _put_snapshot(self, params: Params) -> str:
        """The digest of the serving snapshot, which lies in Postgres and, for the processes of this host, as a file."""
        assert self._data is not None
        categories = self._data.item_categories
        statistics = self._w.updater.statistics_of(await self._load_state())
        schema, model = self._w.schema, self._w.updater.model
        async with self._w.database.read() as session:
            known = {
                kind: await session.entities.rows(kind, self._allocations.get(kind, 0))
                for kind in (EntityKind.USER, EntityKind.ITEM, EntityKind.FIELD)
            }
            features = await session.features.latest("item", None if schema.of("item") else ())
        sizes = table_sizes(params)
        numbers = NumberMoments.initial() if statistics is None else statistics.numbers

        def within(kind: EntityKind) -> Known:
            ids, rows = known[kind]
            inside = int((rows < sizes[kind]).sum())  # rows ascend; the others belong to later periods
            return Known(ids[:inside], rows[:inside])

        def write() -> DigestedFile:
            users, items = within(EntityKind.USER), within(EntityKind.ITEM)
            fields = None
            if EntityKind.FIELD in sizes:
                fields = fields_of_snapshot(schema, within(EntityKind.FIELD), items, features, sizes["item"], numbers)
            with create(self._w.settings.serving_dir, FILE_SUFFIX) as file:
                encode_model(file, model, params, users, items, categories, statistics, fields)
            assert file.path is not None
            keep_newest(file.path)
            return file

        return await self._w.artifacts.put_file(await asyncio.to_thread(write), "serving")

    async def _write(self, checkpoint: Checkpoint, *, hot: bool = False) -> str:
        data = await asyncio.to_thread(checkpoint.to_bytes)
        return await self._w.artifacts.put(data, checkpoint.kind, hot=hot)

    async def _read(self, digest: str, kind: str) -> Checkpoint:
        data = await self._w.artifacts.get(digest)
        return await asyncio.to_thread(Checkpoint.from_bytes, data, kind)


async def _head(work: UnitOfWork) -> ModelVersion:
    alias = await work.models.alias(AliasName.HEAD)
    assert alias is not None, "version 0 is made before the first update"
    version = await work.models.get(alias.version)
    assert version is not None, "aliases refer to versions"
    return version


async def _served_now(work: UnitOfWork) -> tuple[str | None, dict[str, Any]]:
    """The champion's snapshot, and what its state says of its parameters (of the prior's, which has none, nothing)."""
    alias = await work.models.alias(AliasName.CHAMPION)
    assert alias is not None, "version 0 is made before the first update"
    version = await work.models.get(alias.version)
    assert version is not None, "aliases refer to versions"
    return version.serving_digest, {name: version.state[name] for name in SERVED if name in version.state}
