"""`asmg bench serve` judges answers, options and rounds as it says. No test depends on how fast anything is."""

import numpy as np
import orjson
import pytest

from benchmarks.http_load.load import Answers
from benchmarks.serving.answers import WrongAnswers, check_scores, like_ours
from benchmarks.serving.contest import CLOSED, OPEN
from benchmarks.serving.options import OURS, PEER_CELL, VARIANTS, Cell, ServeOptions
from benchmarks.serving.results import summaries
from benchmarks.serving.swap_verdict import Swap, judge
from tests.bench_support import assert_one_line, bench

# --- judging answers


def test_wrong_answers_are_noticed() -> None:
    wanted = np.array([[0.25, 0.5], [0.125, 0.75]])
    bodies = [like_ours(scores) for scores in wanted]
    check_scores(bodies, wanted)
    check_scores([b"[" + body + b"]" for body in bodies], wanted)
    for wrong, message in (
        (bodies[:1], "expected 2 answers; received 1"),
        ([bodies[0], like_ours(wanted[1] + 1e-4)], r"differ by 1\.0e-04"),
        ([bodies[0], like_ours(wanted[1][:1])], "expected 2 scores; received 1"),
        ([bodies[0], b"<html>"], "expected a JSON document; received b'<html>'"),
        ([bodies[0], b'{"detail": 1}'], "expected a document with scores"),
        ([bodies[0], b'{"scores": [null, 0.75]}'], "differ by nan"),
    ):
        with pytest.raises(WrongAnswers, match=message):
            check_scores(wrong, wanted)


def answers_of(*entries: tuple[float, float, int, int, bytes]) -> Answers:
    """Of (due, done, request, connection, body)."""
    found = Answers()
    for due, done, request, connection, body in sorted(entries, key=lambda entry: entry[1]):
        found.due.append(due)
        found.sent.append(due)
        found.done.append(done)
        found.request.append(request)
        found.connection.append(connection)
        found.bodies.append(body)
    return found


def body_of(version: int, *scores: float) -> bytes:
    return orjson.dumps({"model_version": version, "scores": scores})


BY_SNAPSHOT = [np.array([[0.2], [0.4]]), np.array([[0.6], [0.8]])]
"""Of versions 2, 4 … and of 1, 3 …: the score of requests 0 and 1."""


def test_answers_are_compared_with_the_version_that_they_name() -> None:
    right = [
        (0.0, 0.1, 0, 1, body_of(1, 0.6)),
        (0.1, 0.2, 1, 2, body_of(1, 0.8)),
        (1.2, 1.3, 0, 1, body_of(2, 0.2)),
        (1.3, 1.4, 1, 2, body_of(2, 0.4000001)),
        (2.2, 2.3, 1, 1, body_of(3, 0.8)),
    ]
    swaps = [Swap(2, 1.0, 1.25), Swap(3, 2.0, 2.25)]
    found = judge(answers_of(*right), swaps, BY_SNAPSHOT, settled=0.0, after=0.5)
    assert (found.mixed, found.went_back) == (0, 0)
    assert found.last_old == [0.0, 0.0]
    for wrong, fault in (
        (body_of(2, 0.6), "scores that are not those of its version"),
        (body_of(2, 0.200002), "scores that are not those of its version"),
        (body_of(2, 0.2, 0.2), "scores that are not those of its version"),
        (body_of(4, 0.2), "version 4, which was never published"),
        (body_of(0, 0.2), "version 0, which was never published"),
        (b'{"model_version": 2}', "expected a document with scores; received b'{\"model_version\": 2}'"),
    ):
        found = judge(answers_of(*right, (1.5, 1.6, 0, 9, wrong)), swaps, BY_SNAPSHOT, settled=0.0, after=0.5)
        assert found.faults == {fault: 1}
        assert found.mixed == 1


def test_a_version_that_goes_back_is_noticed() -> None:
    swaps = [Swap(2, 1.0, 1.2)]
    forth = [(1.1, 1.3, 0, 1, body_of(2, 0.2))]
    same = judge(
        answers_of(*forth, (1.4, 1.5, 0, 1, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert same.faults == {"an older version than the answer before on the same connection": 1}
    assert same.went_back == 1
    other = judge(
        answers_of(*forth, (1.4, 1.5, 0, 2, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert (other.mixed, other.went_back) == (0, 1)
    assert other.last_old == [pytest.approx(0.5)]
    beside = judge(
        answers_of(*forth, (1.2, 1.35, 0, 2, body_of(1, 0.6))), swaps, BY_SNAPSHOT, settled=0.0, after=0.5
    )  # fmt: skip
    assert (beside.mixed, beside.went_back) == (0, 0), "it was on its way when the newer one came"


def test_latencies_are_told_apart_by_when_their_requests_were_due() -> None:
    swaps = [Swap(2, 10.0, 11.0)]
    entries = [
        (due, due + seconds, 0, 1, body_of(1 if due + seconds < 11 else 2, 0.6 if due + seconds < 11 else 0.2))
        for due, seconds in ((4.0, 3.0), (9.9, 0.4), (10.0, 0.6), (12.0, 0.5), (12.1, 0.1))
    ]
    found = judge(answers_of(*entries), swaps, BY_SNAPSHOT, settled=5.0, after=1.0)
    assert (found.during.requests, found.between.requests) == (2, 2), "the first was due before it had settled"
    assert found.during.max_ms == pytest.approx(600)
    assert found.during.p50_ms == pytest.approx(600), "the higher one of two"
    assert found.between.max_ms == pytest.approx(400)
    assert found.ratios == [pytest.approx(6.0)], "to what follows the swap"
    swaps.append(Swap(2, 20.0, 21.0, renewal=True))
    found = judge(
        answers_of(*entries, (20.5, 20.7, 0, 1, body_of(2, 0.2)), (23.0, 23.4, 0, 1, body_of(2, 0.2))),
        swaps, BY_SNAPSHOT, settled=5.0, after=1.0,
    )  # fmt: skip
    assert (found.during.requests, found.renewing.requests, found.between.requests) == (2, 1, 3)
    assert found.renewing.max_ms == pytest.approx(200)
    assert found.ratios == [pytest.approx(6.0), pytest.approx(0.5)]
    assert len(found.last_old) == 1, "a new base is no new version"
    nothing = judge(Answers(), [], BY_SNAPSHOT, settled=0.0, after=1.0)
    assert nothing.during.p99_ms is None and nothing.mixed == 0 and nothing.went_back == 0


# --- options and results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "1,x"], "items: expected whole numbers separated by commas; received '1,x'"),
        (["--items", "0"], "items: expected distinct numbers of at least 1; received 0"),
        (["--items", "5,5"], "items: expected distinct numbers of at least 1; received 5, 5"),
        (["--items", "1001"], "items: expected at most 1000 of a request; received 1001"),
        (["--items", "200", "--catalogue", "100"], "items: expected at most 100 of a request; received 200"),
        (["--concurrency", "0"], "concurrency: expected distinct numbers of at least 1; received 0"),
        (["--workers", ""], "workers: expected whole numbers separated by commas; received ''"),
        (["--users", "0"], "users: expected at least 1; received 0"),
        (["--catalogue", "29"], "catalogue: expected at least the 30 of a history; received 29"),
        (["--requests", "0"], "requests: expected at least 1; received 0"),
        (["--rounds", "0"], "rounds: expected at least 1; received 0"),
        (["--seconds", "0"], "seconds: expected more than 0; received 0.0"),
        (["--seconds", "nan"], "seconds: expected more than 0; received nan"),
        (["--rate", "-5"], "rate: expected more than 0; received -5.0"),
        (["--warm-up", "-1"], "warm-up: expected at least 0; received -1"),
        (["--seed", "-1"], "seed: expected at least 0; received -1"),
        (["--open-loop", "1"], "open-loop: expected a share of at least 0 and below 1; received 1.0"),
        (["--open-loop", "0", "--during-swap"], "open-loop: expected more than 0 with --during-swap; received 0"),
        (["--versions", "0"], "versions: expected at least 1; received 0"),
        (["--rows", "10", "--during-swap"], "rows: expected at least 1000; received 10"),
        (["--rows", "10000000000000", "--during-swap"], "rows: expected versions that fit; "),
        (
            ["--variants", "asmg,flask"],
            "variants: expected some of asmg, asmg-statistics, asmg-fields, plain, noop, litserve, ",
        ),
        (["--variants", "asmg-fields"], "fields: expected their number for asmg-fields; received none"),
        (["--fields", "0"], "fields: expected 1 to 54; received 0"),
        (["--fields", "55"], "fields: expected 1 to 54; received 55"),
        (["--report", "/no/such/folder/report.json"], "/no/such/folder/report.json: expected"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments: list[str], message: str) -> None:
    assert_one_line(bench("serve", *arguments), message)


def test_what_is_measured_of_whom() -> None:
    options = ServeOptions(workers=(1, 2))
    assert options.names == ("asmg",)
    assert len(options.cells(VARIANTS["asmg"], 2)) == 9
    options = ServeOptions(compare=True)
    assert options.names == tuple(name for name in VARIANTS if name != "asmg-fields")
    assert ServeOptions(compare=True, fields=10).names == tuple(VARIANTS)
    assert ServeOptions(fields=10).names == ("asmg-statistics", "asmg-fields")
    assert len(options.cells(VARIANTS["plain"], 1)) == len(options.cells(VARIANTS["noop"], 1)) == 9
    assert options.cells(VARIANTS["ray"], 1) == [PEER_CELL] == [Cell(50, 16, 1)]
    assert options.cells(VARIANTS["ray"], 2) == []
    assert len(ServeOptions(compare=True, all_cells=True).cells(VARIANTS["ray"], 2)) == 9
    assert ServeOptions(compare=True, variants=("noop", "asmg")).names == ("asmg", "noop")


def test_summaries_are_medians_and_sums() -> None:
    figures = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "max_ms": 4.0, "memory_mb": 5.0, "rate": None}
    raw = {
        ("asmg", Cell(50, 16, 1), OPEN): [{**figures, "rps": 7.0, "cpu_us": 9.0, "failed": 0, "rate": 10.0}],
        ("plain", Cell(50, 16, 1), CLOSED): [{**figures, "rps": 5.0, "cpu_us": 9.0, "failed": 0}],
        ("asmg", Cell(50, 16, 1), CLOSED): [
            {**figures, "rps": rps, "cpu_us": 100 / rps, "failed": failed}
            for rps, failed in ((10.0, 0), (30.0, 2), (20.0, 1))
        ],
    }
    closed, plain, opened = summaries(raw)
    assert (closed["variant"], closed["loop"], closed["n"], closed["concurrency"], closed["workers"]) == (
        "asmg",
        "closed",
        50,
        16,
        1,
    )
    assert (closed["rps"], closed["cpu_us"], closed["failed"]) == (20.0, 5.0, 3)
    assert closed["rate"] is None and len(closed["rounds"]) == 3
    assert plain["variant"] == "plain"
    assert (opened["loop"], opened["rate"]) == ("open", 10.0)


def test_the_real_service_is_a_variant_of_its_own() -> None:
    assert VARIANTS[OURS].file is None
    assert [name for name, variant in VARIANTS.items() if variant.package is None] == [
        *("asmg", "asmg-statistics", "asmg-fields", "plain", "noop")
    ]
