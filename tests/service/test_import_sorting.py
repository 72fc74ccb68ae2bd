"""How `asmg import` sorts a log on disk: order, periods, negatives, fields and rows that are left out."""

import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from asmg.datasets import ColumnMap, CutBy, LogFormatError, LogOptions, cut, read_log, sample_negatives
from asmg.datasets.scan import Scan
from asmg.features import Field, Schema
from service.cli.import_log.options import ImportOptions
from service.cli.import_log.plan import ImportPlan
from service.cli.import_log.sorted_log import LoggedInteraction
from tests.service.copied import copied
from tests.service.import_support import HEAD, SHOP, SHOP_LOG, sort_file


def test_fields_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interaction and its negatives have a context; for users and items only changes are stored."""
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 60)
    path = tmp_path / "log.csv"
    path.write_text(SHOP_LOG)
    log = LogOptions(features=SHOP, some_features=True, context={"device": "Device"}, delimiter=";")
    sorted_log = sort_file(path, "count", log)
    whole = range(len(sorted_log))
    contexts = ['{"device":"web","tags":["a","b"]}', '{"device":"app"}', None, '{"device":"web","tags":["b"]}',
                '{"device":"web"}']  # fmt: skip
    found = [(row.label, row.context) for row in sorted_log.interactions(whole)]
    # u1 has had both items, u2 not: one negative.
    assert found == [(1, contexts[0]), (1, contexts[1]), (0, contexts[1]), *((1, context) for context in contexts[2:])]
    assert list(sorted_log.feature_changes("user", whole)) == [
        ("u1", 1_700_000_000_000, '{"age":"30"}'), ("u1", 1_700_000_003_000, '{"age":"31"}'),
        ("u1", 1_700_000_004_000, "{}"),
    ]  # fmt: skip
    of_items = [("i1", 1_700_000_000_000, '{"brand":"x","price":1.5}'), ("i1", 1_700_000_003_000, '{"price":2.5}')]
    assert list(sorted_log.feature_changes("item", whole)) == of_items
    assert list(sorted_log.feature_changes("item", range(3, 6))) == of_items[1:]
    assert list(sorted_log.feature_changes("user", range(1, 3))) == []
    plan = ImportPlan("d", sorted_log, sorted_log.cut("count", 9))
    assert [version.at.timestamp() for version in plan.features("user", range(6))] == [1.7e9, 1.7e9 + 3, 1.7e9 + 4]
    plain = sort_file(path, "count", LogOptions(delimiter=";"))
    assert {row.context for row in plain.interactions(range(9))} == {None}
    assert not list(plain.feature_changes("user", range(9)))


def test_fields_that_are_too_large(tmp_path: Path) -> None:
    schema = Schema(tuple(Field(f"f{n}", "context", "multi", 32) for n in range(2)))
    header, values = "user_id,item_id,timestamp,f0,f1\n", "|".join(f"{n:0150}" for n in range(30))
    path = tmp_path / "log.csv"
    path.write_text(f"{header}u,i,1700000000,{values},{values}\n")
    with pytest.raises(
        LogFormatError, match=r"expected at most 8192 bytes of the fields of the context; received 9\d+"
    ):
        sort_file(path, "day", LogOptions(features=schema, some_features=True))


def test_events_are_called_after_their_place_and_items_come_with_their_first_piece(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,label,timestamp,categories\n"
        "u1,i2,1,1700000002,c|d\nu2,i1,0,1700000001,c\nu1,i2,1,1700000003.001,\n"
    )
    sorted_log = sort_file(path, "count")
    plan = ImportPlan("d", sorted_log, sorted_log.cut("count", 2))
    first = copied(plan.events(plan.pieces[0]))
    assert [(event.event_id, event.user_id, event.item_id, event.label) for event in first] == [
        ("d-0000000000", "u2", "i1", 0),
        ("d-0000000001", "u1", "i2", 1),
    ]
    assert [event.occurred_at.timestamp() for event in copied(plan.events(plan.pieces[1]))] == [1700000003.001]
    assert list(sorted_log.new_categories(plan.pieces)) == [{"i1": ("c",), "i2": ("c", "d")}, {}]
    assert plan.key(2) == "import:d:2"


@pytest.fixture(scope="module")
def unsorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of four weeks in no order, many of whose rows are of one moment; the column w says what week."""
    rng = np.random.default_rng(3)
    times = 1_700_000_000 + 3_600 * rng.integers(28 * 24, size=900)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(40, size=900)],
            "item_id": [f"i{n}" for n in rng.integers(30, size=900)],
            "label": rng.integers(2, size=900),
            "timestamp": times,
            "w": -(times // 604_800),  # the last week first
        }
    )
    path = tmp_path_factory.mktemp("unsorted") / "log.csv"
    frame.write_csv(path)
    return path


@pytest.mark.parametrize(
    ("by", "size"),
    [
        *(("count", size) for size in (7, 900, 901)),
        *(("periods", size) for size in (7, 2_000)),
        *(("hour", 5), ("day", 1), ("day", 3), ("week", 1), ("column", 1)),
    ],
)
def test_a_log_on_disk_is_cut_as_one_in_memory(
    by: CutBy, size: int, unsorted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 999)  # many blocks
    options = LogOptions(columns=ColumnMap(period="w" if by == "column" else None))
    log = read_log(unsorted, options)
    sorted_log = sort_file(unsorted, by, options)
    pieces = sorted_log.cut(by, size)
    found = [[row[1:5] for row in sorted_log.interactions(piece)] for piece in pieces]
    assert found == [
        list(zip(log.user_ids[rows], log.item_ids[rows], log.labels[rows], log.timestamps_ms[rows], strict=True))
        for rows in cut(log, by, size)
    ]
    assert [row.place for piece in pieces for row in sorted_log.interactions(piece)] == list(range(900))


@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_negatives_on_disk_follow_the_rule(at_once: int, unsorted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two right behind each positive, at its time, with items that its user has nowhere in the log."""
    monkeypatch.setattr("service.cli.import_log.sorting.POSITIVES_PER_DRAW", at_once)
    options = LogOptions(positives_only=True)
    log = read_log(unsorted, options)
    sorted_log = sort_file(unsorted, "day", options, negatives=2)
    rows = list(sorted_log.interactions(range(len(sorted_log))))
    has: dict[str, set[str]] = {}
    for user, item in zip(log.user_ids, log.item_ids, strict=True):
        has.setdefault(user, set()).add(item)
    everything = set(log.item_ids)
    assert sorted_log.without_negative == sum(has[user] == everything for user in log.user_ids)
    assert sorted_log.without_negative == sample_negatives(log, rng=np.random.default_rng(0)).without_negative
    order = log.time_order()
    rest = iter(rows)
    for user, item, moment in zip(log.user_ids[order], log.item_ids[order], log.timestamps_ms[order], strict=True):
        assert next(rest)[1:] == (user, item, 1, moment, None)
        for _ in range(0 if has[user] == everything else 2):
            drawn = next(rest)
            assert (drawn.user_id, drawn.label, drawn.time_ms) == (user, 0, moment)
            assert drawn.item_id in everything - has[user]
    assert next(rest, None) is None
    again = sort_file(unsorted, "day", options, negatives=2)
    assert list(again.interactions(range(len(again)))) == rows  # the same negatives, so that an import can go on


def test_a_file_is_read_block_by_block(unsorted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is on disk before the next one is read, and none stays in memory: a log may be larger than
    the memory.
    """
    monkeypatch.setattr("service.cli.import_log.sorting.BLOCK_BYTES", 2_000)
    alive: list[weakref.ref[pl.DataFrame]] = []
    blocks = Scan.blocks

    def watched(scan: Scan) -> Iterator[pl.DataFrame]:
        for block in blocks(scan):
            assert sum(ref() is not None for ref in alive) <= 1, "an earlier block is still held"
            alive.append(weakref.ref(block))
            yield block

    monkeypatch.setattr(Scan, "blocks", watched)
    sorted_log = sort_file(unsorted, "day")
    assert len(alive) >= 10
    assert len(sorted_log) == 900


def test_bad_rows_may_be_left_out_of_an_import_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    ahead = round(time.time()) + 3_600
    path.write_text(HEAD + f"u,i,1,1700000000\nnan,i,1,1700000000\nu,j,1,{ahead}\nu,k\nv,j,0,1700000001\n")
    sorted_log = sort_file(path, "day", malformed="drop")
    assert list(sorted_log.interactions(range(9))) == [
        LoggedInteraction(0, "u", "i", 1, 1_700_000_000_000),
        LoggedInteraction(1, "v", "j", 0, 1_700_000_001_000),
    ]
    assert sorted(sorted_log.dropped.values()) == [1, 1, 1]
    with pytest.raises(LogFormatError, match="line 3, column 'user_id'"):
        sort_file(path, "day")
    path.write_text(HEAD + "None,i,1,1700000000\n")
    with pytest.raises(LogFormatError, match="at least one row that can be read; received none"):
        sort_file(path, "day", malformed="drop")
    with pytest.raises(ValueError, match="malformed: expected error or drop; received 'ignore'"):
        ImportOptions(file=path, malformed="ignore")  # type: ignore[arg-type] # the point of the test
