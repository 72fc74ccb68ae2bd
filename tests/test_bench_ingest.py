"""`asmg bench ingest` sends what it says and counts what is stored. No test depends on how long anything takes."""

import json
from pathlib import Path

import pytest

from benchmarks.ingest import Cell, encode_call, make_batches
from service.http.bodies.interactions import parse_interactions
from tests.bench_support import assert_one_line, bench
from tests.service.copied import copied


@pytest.mark.parametrize(("batch", "duplicates"), [(1, 0), (1, 50), (10, 0), (10, 50)])
def test_the_share_of_events_that_were_sent_before(batch: int, duplicates: int) -> None:
    batches = make_batches(Cell(batch, 4, duplicates), "x", 2000, seed=0)
    assert {len(rows) for rows in batches} == {batch}
    seen: set[str] = set()
    again = 0
    for rows in batches:
        names = {row[0] for row in rows}
        assert len(names) == batch, "a call repeats an earlier one, not itself"
        again += len(names & seen)
        seen |= names
    assert again / (batch * len(batches)) == pytest.approx(duplicates / 100, abs=0.05)
    assert batches == make_batches(Cell(batch, 4, duplicates), "x", 2000, seed=0)


def test_a_call_holds_the_rows() -> None:
    (rows, *_) = make_batches(Cell(10, 1, 0), "x", 100, seed=0)
    head, body = encode_call(rows, "secret").split(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    events = parse_interactions(body, {"headers": [(b"content-type", b"application/json")]})
    found = [(e.event_id, 1, e.user_id, e.item_id, e.label, e.occurred_at, e.request_id) for e in copied(events)]
    assert found == rows


def test_a_small_run(tmp_path: Path) -> None:
    """Against real servers: every answer and the log itself are compared with what was sent."""
    report = tmp_path / "ingest.json"
    sizes = ["--batches", "1,20", "--concurrency", "1,3", "--duplicates", "0,50", "--events", "40", "--rounds", "1"]
    result = bench("ingest", *sizes, "--report", str(report))
    assert result.exit_code == 0, result.output
    document = json.loads(report.read_text())
    assert [(cell["batch"], cell["concurrency"], cell["duplicates"]) for cell in document["cells"]] == [
        (batch, concurrency, duplicates) for batch in (1, 20) for concurrency in (1, 3) for duplicates in (0, 50)
    ]
    for cell in document["cells"]:
        assert cell["ratio"] == pytest.approx(cell["events_per_second"] / cell["bare_copy_events_per_second"])
        assert cell["api_cpu_us_per_event"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "batches: expected"),
        (["--batches", "10001"], "batches: expected"),
        (["--duplicates", "100"], "duplicates: expected"),
        (["--concurrency", "x"], "concurrency: expected whole numbers"),
        (["--rounds", "0"], "rounds: expected at least 1"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str) -> None:
    assert_one_line(bench("ingest", *arguments), message)
