"""`asmg chaos`: each broken promise is found, and a short run holds them all."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.run import ChaosOptions
from benchmarks.chaos.stream import SCHEMA, make_log
from benchmarks.chaos.verdict import Record, State, as_published, content_of, judge, to_json
from benchmarks.reports import exit_code
from tests.bench_support import asmg

CLOSES = 2


def version(number: int, digest: str = "a") -> dict[str, Any]:
    return {
        "period": number,
        "kind": "generated",
        "parent": number - 1 if number else None,
        "serving": f"{digest}{number}",
        "state": {"model": f"m{number}"},
    }


def good() -> tuple[Record, State, State]:
    content = content_of({"device": "tv"}, 2.5)
    sent = {f"{period}-{n}": (period, "u", "i", n % 2, 1000 * n, content) for period in (1, 2) for n in range(3)}
    features = {(kind, "a", ms): content_of({"age": ms}) for kind in ("user", "item") for ms in (5, 7)}
    answers = Counter({"200": 5, "refused": 2})
    record = Record(sent=sent, features=features, acknowledged=set(sent), closes=CLOSES, predictions=answers)
    record.sabotage.append({"victim": "api", "way": "kill", "seconds": 0.0})
    state, calm = (
        State(
            events=[(name, *event) for name, event in sent.items()],
            periods={number: ("updated", number, 0, None) for number in (1, 2)},
            versions={number: version(number) for number in (0, 1, 2)},
            features=dict(features),
        )
        for _ in range(2)
    )
    return record, state, calm


def broken(change: Callable[[Record, State, State], object]) -> list[str]:
    record, state, calm = good()
    change(record, state, calm)
    promises = judge(record, state, calm, CLOSES, ordered=True)
    assert exit_code(promises) == (0 if all(promise.held for promise in promises) else 1)
    return [promise.name for promise in promises if not promise.held]


def lose(_record: Record, state: State, _calm: State) -> None:
    state.events.pop()


def repeat(_record: Record, state: State, _calm: State) -> None:
    state.events.append(state.events[0])


def alter(_record: Record, state: State, _calm: State) -> None:
    name, period, _, *rest = state.events[0]
    state.events[0] = (name, period, "another", *rest)


def alter_context(_record: Record, state: State, _calm: State) -> None:
    *event, _ = state.events[0]
    state.events[0] = (*event, content_of({"device": "phone"}, 2.5))  # type: ignore[assignment]


def twice(_record: Record, state: State, calm: State) -> None:
    state.versions[3] = calm.versions[3] = version(2)


def fail(_record: Record, state: State, _calm: State) -> None:
    state.periods[2] = ("failed", 2, 3, "the connection to Postgres was lost")


def go_back(record: Record, _state: State, _calm: State) -> None:
    record.gone_back = 1


def server_error(record: Record, _state: State, _calm: State) -> None:
    record.failed_predictions = 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lose, "acknowledged = stored events"),
        (lambda record, _s, _c: record.acknowledged.discard("1-0"), "acknowledged = stored events"),
        (repeat, "no duplicates"),
        (alter, "each log is what was sent"),
        (alter_context, "each log is what was sent"),
        (lambda _r, state, _c: state.features.popitem(), "features are what was sent"),
        (lambda record, _s, _c: record.features.popitem(), "features are what was sent"),
        (lambda _r, state, _c: state.features.update({("user", "a", 5): "{}"}), "features are what was sent"),
        (twice, "each period applied exactly once"),
        (fail, "each period applied exactly once"),
        (lambda _r, state, _c: state.periods.pop(2), "each period applied exactly once"),
        (lambda _r, state, _c: state.versions.update({2: version(2, "b")}), "versions of an undisturbed run"),
        (lambda _r, _s, calm: calm.versions.update({3: version(3)}), "versions of an undisturbed run"),
        (go_back, "versions never go back"),
        (server_error, "no prediction 5xx while a snapshot is loaded"),
        (lambda record, _s, _c: setattr(record, "finished", False), "the run came to its end"),
        (lambda record, _s, _c: setattr(record, "closes", 1), "the run came to its end"),
        (lambda record, _s, _c: record.sabotage.clear(), "the run came to its end"),
        (lambda record, _s, _c: record.faults.append("the saboteur ended"), "the run came to its end"),
        (lambda record, _s, _c: record.predictions.clear(), "predictions were answered"),
    ],
)
def test_a_broken_promise_is_named(change: Callable[[Record, State, State], object], name: str) -> None:
    assert broken(change) == [name]


def test_all_promises_held() -> None:
    assert broken(lambda *_: None) == []
    assert broken(lambda record, _s, _c: setattr(record, "not_loaded", 3)) == []


def test_the_report_holds_all_figures() -> None:
    record, state, calm = good()
    document = json.loads(json.dumps(to_json(record, judge(record, state, calm, CLOSES), 7)))
    assert document["held"]
    assert document["figures"]["predictions"] == {"200": 5, "refused": 2}
    assert document["figures"]["acknowledged"] == document["figures"]["sent"] == 6


def test_without_an_undisturbed_run_nothing_is_equal_to_it() -> None:
    record, state, _ = good()
    assert exit_code(judge(record, state, None, CLOSES)) == 1


def test_merging_in_the_background_makes_no_other_version() -> None:
    state = {"parts": {"base": ["b1", "l2", "l3"], "updater": "u3"}, "snapshot": ["s1", "d2", "d3"]}
    merged = {"parts": {"base": ["m2", "l3"], "updater": "u3"}, "snapshot": ["s3"], "replaced": ["s1", "d2", "d3"]}
    merged["compacted"] = [{"replaces": ["m2", "l3"], "by": "m3"}]
    published = as_published("d3", state)
    assert published == as_published("s3", merged)
    for other in ({"base": ["b1", "l2", "l4"], "updater": "u3"}, {"base": ["b1", "l2", "l3"], "updater": "u4"}):
        assert as_published("d3", {**state, "parts": other}) != published
    assert as_published("d4", state) != published


def test_the_log_is_seeded_and_has_one_order() -> None:
    log = make_log(2, 1)
    assert log == make_log(2, 1) != make_log(2, 2)
    for period in log.periods:
        times, ids = ([event[name] for event in period] for name in ("timestamp", "event_id"))
        assert times == sorted(set(times))
        assert ids == sorted(set(ids))
        assert not [fault for event in period for fault in SCHEMA.faults("context", event["context"])]
    for kind, sent in (("user", log.users), ("item", log.items)):
        versions = [(d[f"{kind}_id"], d["timestamp"], d["features"]) for documents in sent for d in documents]
        assert not [fault for *_, features in versions for fault in SCHEMA.faults(kind, features)]  # type: ignore[arg-type]
        latest: dict[str, tuple[int, dict[str, Any]]] = {}
        for id_, ms, features in versions:  # each says something new, later: else it would not be stored
            assert id_ not in latest or (ms > latest[id_][0] and features != latest[id_][1])
            latest[id_] = (ms, features)
        assert len(versions) > len(latest) > 10


@pytest.mark.parametrize("wrong", [{"minutes": 0.0}, {"closes": 0}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        ChaosOptions(**wrong)


@pytest.mark.slow
def test_a_short_run_holds_every_promise(tmp_path: Path) -> None:
    """Two whole services, one after the other: a log undisturbed, and in 18 seconds of kills and pauses."""
    report = tmp_path / "report.json"
    done = asmg("chaos", "--minutes", "0.3", "--closes", "2", "--seed", "1", "--report", str(report))
    assert done.exit_code == 0, done.output
    document = json.loads(report.read_text())
    assert document["held"]
    assert document["figures"]["sabotage"]
    assert document["figures"]["acknowledged"] == document["figures"]["sent"] > 0
