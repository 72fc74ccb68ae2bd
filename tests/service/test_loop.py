"""The whole loop with real processes: predict, log, close, update, swap, roll back, without a gap in predictions."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import orjson
import pytest

from asmg.datasets.synthetic import DriftConfig, DriftPeriod, drift_stream
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect
from tests.service.programs import Program, program, wait_for
from tests.service.update_support import open_snapshot

pytestmark = pytest.mark.slow

STREAM = DriftConfig(users=200, items=60, events=3_000, categories=6)
# Of somebody of whom nothing goes on changing: models read what users did last.
PROBE = {"user_id": "a stranger", "items": [f"i{n}" for n in range(12)], "history": ["i5", "i7", "i5"]}
ADMIN = {"sequence": "keep", "reason": "a test"}


@dataclass
class Watch:
    """What several clients have seen, each with connections of its own, in the order of their requests."""

    answers: list[list[tuple[int, tuple[float, ...]]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def versions(self) -> list[list[int]]:
        return [[version for version, _ in seen] for seen in self.answers]


@contextmanager
def predictions(url: str, clients: int = 3) -> Iterator[Watch]:
    """Keep asking the same question for as long as the block runs."""
    watch, stop = Watch(answers=[[] for _ in range(clients)]), Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            # A new connection now and then, so that each client is served by both processes in turn.
            with httpx.Client(base_url=url) as client:
                for _ in range(5):
                    response = client.post("/predict", json=PROBE)
                    if response.status_code != 200:
                        watch.failures.append(response.text)
                        continue
                    body = response.json()
                    watch.answers[number].append((body["model_version"], tuple(body["scores"])))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield watch
        finally:
            stop.set()
            for future in running:
                future.result()


def log_period(client: httpx.Client, period: DriftPeriod) -> None:
    items = [{"item_id": item, "categories": list(names)} for item, names in period.new_items.items()]
    assert client.put("/items", json={"items": items}).status_code == 200
    rows = zip(period.user_ids, period.item_ids, period.labels.tolist(), period.timestamps_ms.tolist(), strict=True)
    events = [
        {"event_id": f"{period.number}-{n}", "user_id": u, "item_id": i, "label": y, "timestamp": t}
        for n, (u, i, y, t) in enumerate(rows)
    ]
    answer = client.post("/interactions", json={"interactions": events})
    assert answer.json() == {"accepted": len(events), "duplicates": 0, "period": period.number}


def close(client: httpx.Client, period: int) -> int:
    """Close a period and wait for the version it becomes."""
    answer = client.post("/periods/close", json={"expected_period": period})
    assert answer.status_code == 202

    def updated() -> int | None:
        document = client.get(answer.json()["status_url"]).json()
        assert document["status"] != "quarantined", document["error"]
        return document["version"]

    return wait_for(updated)


def is_served(client: httpx.Client, version: int) -> bool:
    return client.post("/predict", json=PROBE).json()["model_version"] == version


async def scores_of_versions(dsn: str, redis_url: str, folder: Path) -> AsyncIterator[tuple[int, tuple[float, ...]]]:
    """What each stored version says to the probe, computed here from its artifact."""
    database, redis = Database(dsn), connect(redis_url)
    async with database.read() as session:
        models = await session.models.list(100)
    for model in models:
        snapshot = await open_snapshot(ArtifactStore(database, redis), model, folder)
        scores = snapshot.predict(PROBE["user_id"], PROBE["items"], PROBE["history"]).scores
        yield model.version, tuple(orjson.loads(orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY)))
    await redis.aclose()
    await database.close()


@pytest.fixture
def service(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Program]:
    """Two api processes and a worker, without fields: a version says the same at any hour."""
    schema = tmp_path / "features.toml"
    schema.write_text("time = []\n", encoding="utf-8")
    places = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / "data")}
    places |= {"ASMG_FEATURES": str(schema)}
    with program(tmp_path, "--workers", "2", "--worker", **places) as running:
        yield running


def test_the_loop(service: Program, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
    stream = drift_stream(STREAM, seed=1)
    with httpx.Client(base_url=service.url, timeout=30) as client:
        with predictions(service.url) as watch:
            for period in islice(stream, 3):
                log_period(client, period)
                assert close(client, period.number) == period.number
                wait_for(lambda number=period.number: is_served(client, number))
        assert watch.failures == []
        for seen in watch.versions():
            assert seen == sorted(seen), "a client saw an older version after a newer one"
            assert {0, 3} <= set(seen)

        with predictions(service.url) as back:
            answer = client.post("/admin/rollback", json={"to_version": 2, **ADMIN})
            assert answer.status_code == 200
            # The answer means that every process serves it now.
            assert all(is_served(client, 2) for _ in range(20))
            time.sleep(0.2)
        assert back.failures == []
        for seen in back.versions():
            assert seen == sorted(seen, reverse=True)
            assert set(seen) <= {3, 2}
            assert seen[-1] == 2

        with predictions(service.url) as forward:
            assert client.post("/admin/rollback", json={"to_version": 3, **ADMIN}).status_code == 200
            assert all(is_served(client, 3) for _ in range(20))
        assert forward.failures == []
        assert all(seen == sorted(seen) for seen in forward.versions())

        document = client.get("/periods/3").json()
        assert set(document["scores"]) == {"generated", "incremental", "previous", "baseline"}
        stages = [
            "resolve",
            "prepare",
            "score",
            "train_generator",
            "update_base",
            "generate",
            "count",
            "gate",
            "publish",
        ]
        assert [stage["stage"] for stage in document["stages"]] == stages
        models = client.get("/admin/models").json()["models"]
        assert [(model["version"], model["champion"]) for model in models] == [
            (3, True),
            (2, False),
            (1, False),
            (0, False),
        ]

        # Taken out of the sequence, the periods after version 1 are as if they had never been.
        answer = client.post("/admin/rollback", json={"to_version": 1, "sequence": "excise", "reason": "bad data"})
        assert answer.status_code == 200
        assert client.get("/admin/models/1").json()["head"]
        log_period(client, next(stream))
        assert close(client, 4) == 4
        model = client.get("/admin/models/4").json()
        assert (model["parent_version"], model["period"]) == (1, 4)
        # One model in the sequence before this period, so one more with it.
        assert "model.1" in model["state"]["parts"]
        assert "model.2" not in model["state"]["parts"]

    async def expected() -> dict[int, tuple[float, ...]]:
        return dict([pair async for pair in scores_of_versions(postgres_dsn, redis_url, tmp_path / "artifacts")])

    scores = asyncio.run(expected())
    assert len(set(scores.values())) == 5
    for watched in (watch, back, forward):
        for version, answer_scores in (pair for seen in watched.answers for pair in seen):
            assert answer_scores == scores[version], f"a response that is not wholly of version {version}"


def noise(period: DriftPeriod) -> DriftPeriod:
    """The same period with 95 % clicks, whoever saw what."""
    labels = (np.random.default_rng(period.number).random(len(period.labels)) < 0.95).astype(np.uint8)
    return replace(period, labels=labels)


def gauges(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(("asmg_gate", "asmg_worker", "asmg_alerts")))
    return {name: float(value) for name, value in pairs}


def test_a_period_of_noise_is_not_served_and_the_service_recovers(service: Program) -> None:
    """95 % of a period are random clicks; the periods around it are normal."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        stream = drift_stream(STREAM, seed=1)
        for period in islice(stream, 4):
            log_period(client, period)
            close(client, period.number)
        models = client.get("/admin/models").json()["models"]
        assert "previous" not in {model["kind"] for model in models}
        sane = next(model for model in models if model["champion"])
        before = gauges(client)
        assert before['asmg_gate_decisions{decision="previous"}'] == before["asmg_gate_refused_in_a_row"] == 0
        assert 0 <= before["asmg_worker_heartbeat_age_seconds"] < 60

        log_period(client, noise(next(stream)))
        refused = client.get(f"/admin/models/{close(client, 5)}").json()
        assert (refused["kind"], refused["gate"]["decision"]) == ("previous", "previous")
        assert refused["digest"] == sane["digest"]  # what is served is what was served
        reason, trial = refused["gate"]["reason"], refused["gate"]["trial"]
        assert "the period is strange, 1 in a row" in reason
        assert trial["served"]["logloss"] > 3 * trial["served"]["other"]
        assert trial["rehearsals"]["generated"].keys() == {"constant", "served"}
        assert "WARNING service.use_cases.alerts[" in service.err and reason in service.err
        shown = gauges(client)
        assert shown['asmg_alerts{kind="gate_refused"}'] == 1
        (alert,) = client.get("/admin/alerts?open=true").json()["alerts"]
        assert (alert["kind"], alert["period"], alert["version"]) == ("gate_refused", 5, refused["version"])
        assert reason in alert["message"] and alert["numbers"]["trial"] == trial
        assert shown['asmg_gate_decisions{decision="previous"}'] == shown["asmg_gate_refused_in_a_row"] == 1
        assert shown['asmg_gate_logloss{model="served"}'] == pytest.approx(
            trial["rehearsals"]["incremental"]["served"]["other"]
        )
        assert shown['asmg_gate_logloss{model="incremental"}'] == pytest.approx(
            trial["rehearsals"]["incremental"]["served"]["logloss"]
        )

        # The noise has been learned, so the next model has to prove itself: the period after it shows what was spared.
        losses = {}
        for period in islice(stream, 3):
            log_period(client, period)
            close(client, period.number)
            scores = client.get(f"/periods/{period.number}").json()["scores"]
            losses[period.number] = {name: found["logloss"] for name, found in scores.items()}
        assert losses[6]["incremental"] > 0.95
        assert losses[6]["previous"] < 0.75
        newest = client.get("/admin/models").json()["models"][0]
        assert (newest["champion"], newest["kind"]) == (True, "generated")
        assert newest["digest"] != sane["digest"]
        shown = gauges(client)
        assert shown["asmg_gate_refused_in_a_row"] == shown['asmg_alerts{kind="gate_refused"}'] == 0
        # What was served on the period before it, and what serves now, is sane.
        assert losses[8][client.get("/admin/models/7").json()["kind"]] < 0.75
