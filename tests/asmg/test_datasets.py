"""Logs: reading files, sampling negatives, cutting into periods, the public collections."""

import base64
import gzip
import os
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg import datasets
from asmg.datasets import (
    ColumnMap,
    InteractionLog,
    LogFormatError,
    LogOptions,
    SamplingMode,
    cut,
    open_folder,
    read_diginetica,
    read_diginetica_clicks,
    read_log,
    read_ml_100k,
    recognise_folder,
    sample_negatives,
)

DATA = Path(os.environ.get("ASMG_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
MODES: list[SamplingMode] = ["whole_log", "so_far"]


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(), reason=f"no {folder} in {DATA}; ASMG_TEST_DATA names the folder of the real logs"
    )


def make_log(rows: list[tuple[str, str, int]], **more: Any) -> InteractionLog:
    """A log of positives: (user, item, time in ms) a row."""
    return InteractionLog(
        user_ids=np.array([row[0] for row in rows], np.object_),
        item_ids=np.array([row[1] for row in rows], np.object_),
        labels=np.ones(len(rows), np.uint8),
        timestamps_ms=np.array([row[2] for row in rows], np.int64),
        positives_only=True,
        **more,
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


positive_logs = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 6)), min_size=1, max_size=30
).map(make_log)


# --- the log itself


def test_all_names_of_the_package_are_sorted_and_there() -> None:
    assert datasets.__all__ == sorted(datasets.__all__)
    assert all(hasattr(datasets, name) for name in datasets.__all__)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"period: expected shape \(1,\) like user_ids; received \(2,\)"):
        make_log([("u", "a", 0)], period=np.array([1, 2]))


@pytest.mark.parametrize(("label", "positives_only"), [(2, False), (0, True)])
def test_labels_that_cannot_be_are_refused(label: int, positives_only: bool) -> None:
    ids = np.array(["x"], np.object_)
    with pytest.raises(ValueError, match=f"labels: expected .*; received {label}"):
        InteractionLog(
            user_ids=ids,
            item_ids=ids,
            labels=np.array([label], np.uint8),
            timestamps_ms=np.array([0]),
            positives_only=positives_only,
        )


def test_take_keeps_rows_together() -> None:
    log = make_log([("u", "a", 3), ("v", "b", 1)], period=np.array([7, 8]), categories={"a": ("x",)})
    taken = log.take(np.array([1]))
    assert (taken.user_ids[0], taken.item_ids[0], taken.timestamps_ms[0]) == ("v", "b", 1)
    assert taken.period is not None and taken.period[0] == 8
    assert taken.categories == {"a": ("x",)}
    assert taken.positives_only


# --- negatives


def slow_known(log: InteractionLog, row: int, mode: SamplingMode) -> set[str]:
    """The items that the user of a row has interacted with, as the rule says it, row by row."""
    if mode == "whole_log":
        return {item for user, item in zip(log.user_ids, log.item_ids, strict=True) if user == log.user_ids[row]}
    return {
        log.item_ids[other]
        for other in range(len(log))
        if log.user_ids[other] == log.user_ids[row]
        and (log.timestamps_ms[other], other) <= (log.timestamps_ms[row], row)
    }


@pytest.mark.parametrize("mode", MODES)
@given(log=positive_logs, seed=st.integers(0, 9), per_positive=st.integers(1, 3))
@settings(deadline=None)
def test_negatives_follow_the_rule(mode: SamplingMode, log: InteractionLog, seed: int, per_positive: int) -> None:
    everything = set(log.item_ids)
    sampled, without_negative = sample_negatives(log, rng=rng(seed), per_positive=per_positive, mode=mode)
    place = 0
    missing = 0
    for row in range(len(log)):
        assert (sampled.user_ids[place], sampled.item_ids[place]) == (log.user_ids[row], log.item_ids[row])
        assert (sampled.timestamps_ms[place], sampled.labels[place]) == (log.timestamps_ms[row], 1)
        place += 1
        allowed = everything - slow_known(log, row, mode)
        missing += not allowed
        for _ in range(per_positive if allowed else 0):
            assert sampled.item_ids[place] in allowed
            assert (sampled.user_ids[place], sampled.timestamps_ms[place]) == (
                log.user_ids[row],
                log.timestamps_ms[row],
            )
            assert sampled.labels[place] == 0
            place += 1
    assert place == len(sampled)
    assert missing == without_negative
    assert not sampled.positives_only


@pytest.mark.parametrize("mode", MODES)
def test_negatives_are_uniform_over_the_items_allowed(mode: SamplingMode) -> None:
    # By hand: of a..f, u knows a, b in the whole log but only a at the first row. Other users make c..f exist.
    rows = [("u", "a", 0), ("u", "b", 1), *(("v", item, 0) for item in "cdef")]
    draws = 6000
    sampled, _ = sample_negatives(make_log(rows), rng=rng(), per_positive=draws, mode=mode)
    counts = Counter(sampled.item_ids[1 : 1 + draws])
    allowed = "cdef" if mode == "whole_log" else "bcdef"
    assert set(counts) == set(allowed)
    expected = draws / len(allowed)
    # Five standard deviations of a binomial count.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_one_item_left_is_found_among_many(mode: SamplingMode) -> None:
    # u knows 999 of 1000 items: 32 rounds of drawing miss the last one with probability 0.97, so the exact way is used.
    rows = [("u", f"i{n}", 0) for n in range(999)] + [("v", "last", 0)]
    sampled, without_negative = sample_negatives(make_log(rows), rng=rng(), mode=mode)
    assert without_negative == 0
    assert sampled.item_ids[2 * 998 + 1] == "last"
    if mode == "whole_log":
        assert set(sampled.item_ids[1 : 2 * 999 : 2]) == {"last"}


@pytest.mark.parametrize("mode", MODES)
def test_equal_seeds_give_equal_negatives_and_others_do_not(mode: SamplingMode) -> None:
    log = make_log([(f"u{n % 7}", f"i{n % 100}", n) for n in range(500)])
    first, again, other = (sample_negatives(log, rng=rng(seed), mode=mode).log.item_ids for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_who_knows_every_item_gets_no_negative() -> None:
    log = make_log([("u", "a", 0), ("u", "b", 1), ("v", "a", 2)])
    sampled, without_negative = sample_negatives(log, rng=rng())
    assert list(zip(sampled.user_ids, sampled.item_ids, sampled.labels, strict=True)) == [
        ("u", "a", 1),
        ("u", "b", 1),
        ("v", "a", 1),
        ("v", "b", 0),
    ]
    assert without_negative == 2


def test_so_far_follows_time_and_not_the_order_of_the_file() -> None:
    # u chose b before a; at the time of b, a is allowed, at the time of a nothing is.
    sampled, without_negative = sample_negatives(make_log([("u", "a", 9), ("u", "b", 5)]), rng=rng(), mode="so_far")
    assert list(sampled.item_ids) == ["a", "b", "a"]
    assert without_negative == 1


def test_periods_and_categories_survive_sampling() -> None:
    log = make_log([("u", "a", 0), ("v", "b", 1)], period=np.array([4, 5]), categories={"a": ("x",)})
    sampled, _ = sample_negatives(log, rng=rng())
    assert sampled.period is not None
    assert list(sampled.period) == [4, 4, 5, 5]
    assert sampled.categories == log.categories


def test_an_empty_log_stays_empty() -> None:
    sampled, without_negative = sample_negatives(make_log([]), rng=rng())
    assert (len(sampled), without_negative) == (0, 0)


def test_bad_arguments_of_sampling_are_named() -> None:
    log = make_log([("u", "a", 0), ("v", "b", 0)])
    with pytest.raises(ValueError, match="per_positive: expected at least 1; received 0"):
        sample_negatives(log, rng=rng(), per_positive=0)
    with pytest.raises(ValueError, match="mode: expected 'whole_log' or 'so_far'; received 'none'"):
        sample_negatives(log, rng=rng(), mode="none")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="log: expected positives only; received 2 negatives"):
        sample_negatives(sample_negatives(log, rng=rng()).log, rng=rng())


# --- cutting


@given(log=positive_logs, size=st.integers(1, 40), by=st.sampled_from(["count", "periods", "hour", "day", "week"]))
@settings(deadline=None)
def test_a_cut_loses_nothing_and_keeps_time_order(log: InteractionLog, size: int, by: Any) -> None:
    periods = cut(log, by, size)
    rows = np.concatenate(periods)
    assert sorted(rows) == list(range(len(log)))
    assert list(rows) == sorted(range(len(log)), key=lambda row: (log.timestamps_ms[row], row))
    assert all(len(period) for period in periods)


@given(n=st.integers(1, 60), size=st.integers(1, 70))
@settings(deadline=None)
def test_cuts_by_count_and_into_periods(n: int, size: int) -> None:
    log = make_log([("u", "a", t) for t in range(n)])
    sizes = [len(period) for period in cut(log, "count", size)]
    assert all(count == size for count in sizes[:-1])
    assert 0 < sizes[-1] <= size
    sizes = [len(period) for period in cut(log, "periods", size)]
    assert len(sizes) == min(size, n)
    assert max(sizes) - min(sizes) <= 1


moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(times=st.lists(moments, min_size=1, max_size=30), by=st.sampled_from(["hour", "day", "week"]))
@settings(deadline=None)
def test_windows_are_those_of_the_calendar(times: list[datetime], by: Any) -> None:
    def window(moment: datetime) -> tuple[int, ...]:
        year, week, _ = moment.isocalendar()
        return {
            "hour": (moment.year, moment.month, moment.day, moment.hour),
            "day": (moment.year, moment.month, moment.day),
            "week": (year, week),
        }[by]

    times = [moment.replace(microsecond=0) for moment in times]
    expected: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in sorted(range(len(times)), key=lambda row: (times[row], row)):
        expected[window(times[row])].append(row)
    log = make_log([("u", "a", round(moment.timestamp()) * 1000) for moment in times])
    assert [list(period) for period in cut(log, by)] == list(expected.values())


def test_wide_windows_start_with_the_window_of_the_first_interaction() -> None:
    day = 86_400_000
    # Days 3, 4 | 5 (and 6, on which nothing happened) | (7, 8: no period) | 9.
    log = make_log([("u", "a", round(days * day)) for days in (3.9, 4.1, 5.5, 9.0)])
    assert [list(period) for period in cut(log, "day", 2)] == [[0, 1], [2], [3]]


def test_a_cut_by_column_follows_the_numbers() -> None:
    log = make_log([("u", "a", t) for t in (5, 4, 3, 2)], period=np.array([10, 2, 10, 2]))
    assert [list(period) for period in cut(log, "column")] == [[3, 1], [2, 0]]


def test_an_empty_log_has_no_periods() -> None:
    assert cut(make_log([]), "count", 5) == []


@pytest.mark.parametrize(
    ("by", "size", "message"),
    [
        ("count", 0, "size: expected at least 1; received 0"),
        ("column", 2, "size: expected 1; received 2"),
        ("column", 1, "by: expected a log with a period column for 'column'; received one without"),
        ("month", 1, "by: expected one of count, periods, hour, day, week, column; received 'month'"),
    ],
)
def test_bad_arguments_of_cut_are_named(by: Any, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(make_log([("u", "a", 0)]), by, size)


# --- files

CSV = (
    "user_id,item_id,label,timestamp,categories,when\n"
    "u1,i1,1,1700000000,red|round,3\n"
    '"u,2",i2,0,1700000001.5,,4\n'
    "ü3,i1,1,1600000000,blue,4\n"
)


def check_example(log: InteractionLog) -> None:
    assert list(log.user_ids) == ["u1", "u,2", "ü3"]
    assert list(log.item_ids) == ["i1", "i2", "i1"]
    assert list(log.labels) == [1, 0, 1]
    assert list(log.timestamps_ms) == [1_700_000_000_000, 1_700_000_001_500, 1_600_000_000_000]
    assert log.categories == {"i1": ("blue",)}  # the last row that names any
    assert not log.positives_only


@pytest.mark.parametrize("kind", ["plain", "byte order mark", "CRLF", "gzip", "tabs", "blank lines", "Parquet"])
def test_a_log_is_read_from(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    if kind == "gzip":
        path.write_bytes(gzip.compress(CSV.encode()))
    elif kind == "tabs":
        path = write(tmp_path / "log.tsv", CSV.replace('"u,2"', "U").replace(",", "\t").replace("U", "u,2"))
    elif kind == "Parquet":
        pl.read_csv(CSV.encode()).write_parquet(path)
    else:
        write(
            path,
            {
                "plain": CSV,
                "byte order mark": "\ufeff" + CSV,
                "CRLF": CSV.replace("\n", "\r\n"),
                "blank lines": CSV.replace("\n", "\n\n"),
            }[kind],
        )
    log = read_log(path)
    check_example(log)
    assert log.period is None
    log = read_log(path, LogOptions(columns=ColumnMap(period="when")))
    assert log.period is not None
    assert list(log.period) == [3, 4, 4]


def is_id(text: str) -> bool:
    """Whether it is an id, and one that has no blanks around it; numbers have tests of their own."""
    missing = ("", "nan", "NaN", "None", "null", "NULL")
    return text == text.strip(" \t") and text not in missing and not re.fullmatch(r"[\d.eE+-]+", text)


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(is_id),
            st.text("ab,\"'\n\r\t| ", min_size=1, max_size=8).filter(is_id),
            st.integers(0, 1),
            st.integers(631_152_000_000, 1_700_000_000_000),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(
    rows: list[tuple[str, str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "label", "timestamp"], orient="row")
    folder = tmp_path_factory.mktemp("log")
    frame.write_csv(folder / "log.csv", quote_style="always")
    frame.write_parquet(folder / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        log = read_log(folder / name)
        assert list(zip(log.user_ids, log.item_ids, log.labels, log.timestamps_ms, strict=True)) == rows


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who;what;liked;at;kinds\nu;i;1;1700000000000;a|b|a\n")
    columns = ColumnMap(user_id="who", item_id="what", label="liked", timestamp="at", categories="kinds")
    log = read_log(path, LogOptions(columns=columns, delimiter=";"))
    assert (log.user_ids[0], log.item_ids[0], log.labels[0], log.timestamps_ms[0]) == ("u", "i", 1, 1_700_000_000_000)
    assert log.categories == {"i": ("a", "b")}


@pytest.mark.parametrize(
    ("header", "positives_only", "label", "expected"),
    [
        ("kind", None, None, True),
        ("label", None, None, False),
        ("label", True, None, True),
        ("label", False, None, False),
        ("liked", False, "liked", False),
        ("liked", True, "liked", True),
    ],
)
def test_which_logs_hold_positives_only(
    tmp_path: Path, header: str, positives_only: bool | None, label: str | None, expected: bool
) -> None:
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp,{header}\nu,i,1700000000,0\n")
    log = read_log(path, LogOptions(columns=ColumnMap(label=label), positives_only=positives_only))
    assert log.positives_only is expected
    assert list(log.labels) == [int(expected)]


NOON = 1_700_049_600_000
"""2023-11-15T12:00:00Z; by `date -u -d 2023-11-15T12:00:00Z +%s`."""


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("1700049600", None, NOON),
        ("1700049600.25", None, NOON + 250),
        ("1700049600000", None, NOON),
        ("1700049600000.0", None, NOON),
        ("2023-11-15T12:00:00Z", None, NOON),
        ("2023-11-15t12:00:00z", None, NOON),
        ("2023-11-15 13:00:00.1239+01:00", None, NOON + 123),
        ("2023-11-15T12:00:00", "utc", NOON),
        ("2023-11-15T07:00:00-05:00", "utc", NOON),
        ("2023-11-15", "utc", NOON - 43_200_000),
        ("700049600", "s", 700_049_600_000),
        ("1700049600000999", None, NOON),
        ("1700049600000999999", "ns", NOON),
        ("15.11.2023 12:00", "%d.%m.%Y %H:%M", NOON),
    ],
)
def test_timestamps(tmp_path: Path, text: str, form: Any, expected: int) -> None:
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,i,{text}\n")
    assert read_log(path, LogOptions(timestamp_format=form)).timestamps_ms[0] == expected


@given(
    moment=st.datetimes(datetime(1990, 1, 2), datetime(2026, 1, 1), timezones=st.just(UTC)), hours=st.integers(-12, 14)
)
@settings(deadline=None)
def test_rfc_3339_in_any_zone(moment: datetime, hours: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = (moment + timedelta(hours=hours)).replace(tzinfo=None).isoformat()
    path = tmp_path_factory.getbasetemp() / "zones.csv"
    write(path, f"user_id,item_id,timestamp\nu,i,{local}{'-' if hours < 0 else '+'}{abs(hours):02}:00\n")
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert read_log(path).timestamps_ms[0] == expected


@pytest.mark.parametrize(
    ("timestamp", "item", "label", "categories"),
    [
        (
            pl.Series([datetime(2023, 11, 15, 12, tzinfo=UTC)]),
            pl.Series([7]),
            pl.Series([True]),
            pl.Series([["x", "y"]]),
        ),
        (pl.Series([1_700_049_600.0]), pl.Series(["7"], dtype=pl.Categorical), pl.Series([1.0]), pl.Series(["x|y"])),
        (
            pl.Series([datetime(2023, 11, 15, 13)]).dt.replace_time_zone("Europe/Paris"),
            pl.Series([7], dtype=pl.UInt8),
            pl.Series(["1"]),
            pl.Series([["x", "y", "x"]]),
        ),
        (pl.Series([NOON], dtype=pl.Int64), pl.Series(["7"]), pl.Series([1], dtype=pl.Int8), pl.Series(["x|y"])),
    ],
)
def test_types_of_parquet(
    tmp_path: Path, timestamp: pl.Series, item: pl.Series, label: pl.Series, categories: pl.Series
) -> None:
    path = tmp_path / "log.parquet"
    frame = {"user_id": ["u"], "item_id": item, "label": label, "timestamp": timestamp, "categories": categories}
    pl.DataFrame(frame).write_parquet(path)
    log = read_log(path)
    assert (log.item_ids[0], log.labels[0], log.timestamps_ms[0]) == ("7", 1, NOON)
    assert log.categories == {"7": ("x", "y")}


HEADER = "user_id,item_id,label,timestamp\n"
GOOD = "u,i,1,1700000000\n"
A_TIME = (
    "seconds, milliseconds, microseconds or nanoseconds since 1970, or a date and time (RFC 3339) with a time zone, as "
    "in 2026-01-31T23:59:59Z, of the years 1990 to 2099 and not ahead of now"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header line and rows; received an empty file"),
        ("\n\n", "expected a header line and rows; received blank lines"),
        (HEADER, "expected at least one row; received none"),
        ("user_id,timestamp\n", "line 1: expected a column 'item_id'; received user_id, timestamp"),
        ("user_id;timestamp\n", "line 1: expected a column 'item_id'; received user_id, timestamp"),
        ("user_id,item_id,user_id,timestamp\n", "line 1: expected one column 'user_id'; received 2 of them"),
        (HEADER + GOOD + "u,i,1\n", "line 3: expected 4 values; received 3"),
        (HEADER + GOOD + '"u,i,1,1\n', "line 3: expected delimited values (RFC 4180); received unexpected end"),
        (
            HEADER + GOOD + "\n" + "u,i,2,1700000000\n",
            "line 4, column 'label': expected 0 or 1; received '2'; --positive",
        ),
        (HEADER + '"u\nu",i,1,1700000000\nu,i,,1700000000\n', "line 4, column 'label': expected 0 or 1; received ''"),
        (HEADER + ",i,1,1700000000\n", "line 2, column 'user_id': expected an id of 1 to 256 characters"),
        (HEADER + GOOD + "u,12.0,1,1700000000\n", "line 3, column 'item_id': expected an id of 1 to 256 characters"),
        (HEADER + GOOD + "u,nan,1,1700000000\n", "received 'nan'; the id is missing; --malformed drop"),
        (HEADER + GOOD + f"u,{'i' * 257},1,1700000000\n", f"received '{'i' * 60}…'"),
        (
            HEADER + "u,i\0,1,1700000000\n",
            "line 2, column 'item_id': expected an id of 1 to 256 characters without NUL",
        ),
        (HEADER + "u,i,1,yesterday\n", f"line 2, column 'timestamp': expected {A_TIME}; received 'yesterday'"),
        (HEADER + GOOD + "u,i,1,99999999\n", f"line 3, column 'timestamp': expected {A_TIME}; received '99999999'"),
        (HEADER + "u,i,1,-5\n", "line 2, column 'timestamp': expected seconds, milliseconds"),
        (HEADER + "u,i,1,٣\n", "line 2, column 'timestamp': expected seconds, milliseconds"),
        (
            HEADER + "u,i,1,2021-01-29 07:00:00\n",
            "received '2021-01-29 07:00:00'; for times without a zone give --timestamp-format utc, or --timezone",
        ),
        (HEADER + "u,i,1,29-01-2021 07:00\n", "give --timestamp-format with a pattern of strptime, such as '%d-%m"),
        (HEADER + "u,i,1,2023-02-30T12:00:00Z\n", "received '2023-02-30T12:00:00Z'"),
        (HEADER + "u,i,1,1969-12-31T23:59:59Z\n", "of the years 1990 to 2099 and not ahead of now; received '1969"),
        (HEADER + "u,i,1,4000000000\n", "received '4000000000'; it is more than 300 seconds ahead of the clock here"),
    ],
)
def test_bad_csv_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_the_error_carries_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.csv", HEADER + "u,i,x,1700000000\n")
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    error = caught.value
    assert (error.path, error.line, error.column, error.expected, error.received) == (path, 2, "label", "0 or 1", "'x'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ColumnMap(label="liked")}, "expected a column 'liked'"),
        ({"columns": ColumnMap(categories="kinds")}, "expected a column 'kinds'"),
        ({"columns": ColumnMap(period="week")}, "expected a column 'week'"),
        ({"columns": ColumnMap(period="odd")}, "column 'odd': expected a whole number from"),
        ({"positives_only": False}, "expected a column 'label'"),
        ({"timestamp_format": "rfc3339"}, "expected a date and time (RFC 3339) with a time zone"),
    ],
)
def test_what_was_asked_for_has_to_be_there(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,odd\nu,i,1700000000,a||b\n")
    with pytest.raises(LogFormatError) as caught:
        read_log(path, LogOptions(**arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timestamp_format": "days"}, "timestamp_format: expected one of s, ms, us, ns, rfc3339, utc, or a pattern"),
        ({"timestamp_format": "%q"}, "timestamp_format: expected a pattern of strptime; received '%q'"),
        ({"timestamp_format": "%d.%m."}, "timestamp_format: expected a pattern with year, month and day; received '%d"),
        (
            {"timezone": "Mars"},
            "timezone: expected a name of the IANA database, such as Europe/Berlin; received 'Mars'",
        ),
        ({"timezone": "../etc"}, "timezone: expected a name of the IANA database"),
        ({"timezone": "UTC", "timestamp_format": "s"}, "timezone: expected none with the timestamp format s"),
        ({"positive_from": 4, "positives_only": True}, "positive_from: expected none with positives only"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        LogOptions(**options)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none.csv")


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 40]) + content[middle + 40 :]


@pytest.mark.parametrize("break_it", [cut_short, damaged])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log.csv.gz"
    lines = "".join(f"u{n * n % 977},i{n},1,{1_700_000_000 + n}\n" for n in range(5000))
    path.write_bytes(break_it(gzip.compress((HEADER + lines).encode())))
    with pytest.raises(LogFormatError, match="expected "):
        read_log(path)


def test_a_gzip_file_cut_short_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress((HEADER + GOOD).encode())[:-9])
    with pytest.raises(LogFormatError, match="expected a complete gzip file; received one that is cut short"):
        read_log(path)


@pytest.mark.parametrize("break_it", [cut_short, damaged])
def test_a_broken_parquet_file_is_refused(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log.parquet"
    users = [f"u{n * n % 977}" for n in range(5000)]
    pl.DataFrame({"user_id": users, "item_id": users, "timestamp": 1_700_000_000}).write_parquet(path)
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(LogFormatError, match="expected a complete Parquet file"):
        read_log(path)


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes((HEADER + GOOD).encode() + "ü,i,1,1700000000\n".encode("latin-1"))
    with pytest.raises(LogFormatError, match="line 3: expected text in UTF-8; received byte 0xfc"):
        read_log(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "item_id",
            [1.0, 2.0],
            "column 'item_id': expected an id of 1 to 256 characters without NUL; received Float64; text or",
        ),
        ("item_id", ["i", None], "row 2, column 'item_id': expected an id of 1 to 256 characters"),
        (
            "item_id",
            [b"i", b"\xff"],
            "column 'item_id': expected text in UTF-8, or UUIDs of 16 bytes; received other bytes",
        ),
        ("label", [0, 2], "row 2, column 'label': expected 0 or 1; received '2'"),
        ("label", [0.0, 0.5], "row 2, column 'label': expected 0 or 1; received '0.5'"),
        ("timestamp", [1_700_000_000, None], "row 2, column 'timestamp': expected seconds, milliseconds"),
        (
            "timestamp",
            [datetime(2023, 1, 1)] * 2,
            "received '2023-01-01T00:00:00.000'; for times without a zone give --timestamp-format utc",
        ),
        ("timestamp", [float("nan")] * 2, "row 1, column 'timestamp': expected seconds, milliseconds"),
    ],
)
def test_bad_parquet_is_refused_with_its_place(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    path = tmp_path / "log.parquet"
    good = {"user_id": ["u", "u"], "item_id": ["i", "j"], "label": [0, 1], "timestamp": [1_700_000_000] * 2}
    pl.DataFrame({**good, column: values}).write_parquet(path)
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    assert message in str(caught.value)


# --- what pandas, spreadsheets and databases write

SEVEN = 1_611_903_600_000
"""2021-01-29T07:00:00Z, by `date -u -d 2021-01-29T07:00:00Z +%s`."""

ODD_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: the file, of u1 and i1 with label 1 at seven o'clock and u2 and i2 with label 0 a second later, and options
    "pandas, naive": (HEADER + "u1,i1,True,2021-01-29 07:00:00\nu2,i2,False,2021-01-29 07:00:01\n",
                      {"timestamp_format": "utc"}),
    "pandas, local": (HEADER + "u1,i1,1.0,2021-01-29 08:00:00.000\nu2,i2,0.0,2021-01-29 08:00:01.000\n",
                      {"timezone": "Europe/Berlin"}),
    "pandas, with a zone": (HEADER + "u1,i1,1,2021-01-29 07:00:00+00:00\nu2,i2,0,2021-01-29 07:00:01+00:00\n", {}),
    "microseconds": (HEADER + "u1,i1,1,1611903600000000\nu2,i2,0,1611903601000000\n", {}),
    "nanoseconds": (HEADER + "u1,i1,1,1611903600000000000\nu2,i2,0,1611903601000000000\n", {}),
    "floats": (HEADER + "u1,i1,1,1.6119036e+09\nu2,i2,0,1611903601.0\n", {}),
    "a spreadsheet": ("user_id;item_id;label;timestamp\r\n"
                      "u1;i1;TRUE;29-01-2021 07:00:00\r\nu2;i2;FALSE;29-01-2021 07:00:01\r\n",
                      {"timestamp_format": "%d-%m-%Y %H:%M:%S"}),
    "tabs": ("user_id\titem_id\tlabel\ttimestamp\nu1\ti1\t1\t1611903600\nu2\ti2\t0\t1611903601\n", {}),
    "bars": ("user_id|item_id|label|timestamp\nu1|i1|1|1611903600\nu2|i2|0|1611903601\n", {}),
    "blanks": ("user_id,  item_id, label ,timestamp\nu1 , i1, 1,2021-01-29 07:00:00 \nu2,i2,0 , 2021-01-29 07:00:01\n",
               {"timestamp_format": "utc"}),
    "offsets": (HEADER + "u1,i1,1,2021-01-29T08:00:00+0100\nu2,i2,0,2021-01-29 01:30:01-0530\n", {}),
    "ratings": (HEADER + "u1,i1,4.5,1611903600\nu2,i2,3.5,1611903601\n", {"positive_from": 4}),
    "quotes, a mark and CRLF": ('\ufeff"user_id";"item_id";"label";"timestamp"\r\n"u1";"i1";"1";"1611903600"\r\n'
                                '"u2";"i2";"0";"1611903601"\r\n', {}),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ODD_FORMS)
def test_odd_forms(name: str, compressed: bool, tmp_path: Path) -> None:
    content, options = ODD_FORMS[name]
    path = tmp_path / "log"
    path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
    log = read_log(path, LogOptions(**options))
    rows = zip(log.user_ids, log.item_ids, log.labels, log.timestamps_ms, strict=True)
    assert list(rows) == [("u1", "i1", 1, SEVEN), ("u2", "i2", 0, SEVEN + 1000)]


def test_empty_parts_of_categories(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,categories\nu,i,1700000000,x||y\nu,j,1700000000,|\n")
    assert read_log(path).categories == {"i": ("x", "y")}


UUIDS = ["12345678" + "12345678" * 3, "1".zfill(32)]

# Of pyarrow 26, `store_schema=False`: a column of 16 bytes (UUID), whole numbers, booleans, timestamp[ns] without and
# with a zone, decimal128(20, 0), and dictionaries of text and of numbers.
ARROW = base64.b64decode(
    "UEFSMRUEFUAVQEwVBBUAEgAAEjRWeBI0VngSNFZ4EjRWeAAAAAAAAAAAAAAAAAAAAAEVABUSFRIsFQQVEBUGFQYcAAAAAgAAAAQBAQMCFQQV"
    "IBUgTBUEFQASAAAMAAAAAAAAAA0AAAAAAAAAFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUAFQ4VDiwVBBUAFQYVBhwAAAACAAAABAEB"
    "FQQVIBUgTBUEFQASAAAAYCyyyKFeFoDcrfzIoV4WFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUEFSAVIEwVBBUAEgAAAGAsssihXhaA"
    "3K38yKFeFhUAFRIVEiwVBBUQFQYVBhwAAAACAAAABAEBAwIVBBUkFSRMFQQVABIAAAAAAAAAAAAADAAAAAAAAAAADRUAFRIVEiwVBBUQFQYV"
    "BhwAAAACAAAABAEBAwIVBBUUFRRMFQQVABIAAAEAAABhAQAAAGIVABUSFRIsFQQVEBUGFQYcAAAAAgAAAAQBAQMCFQQVIBUgTBUEFQASAAAH"
    "AAAAAAAAAAgAAAAAAAAAFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUEGZw1ABgGc2NoZW1hFRAAFQ4VIBUCGAd1c2VyX2lkABUEJQIY"
    "B2l0ZW1faWQAFQAlAhgFbGFiZWwAFQQlAhgJdGltZXN0YW1wbIwSHDwAAAAAABUEJQIYBXpvbmVkbIwRHDwAAAAAABUOFRIVAhgHZGVjaW1h"
    "bCUKFQAVKCxcFQAVKAAAABUMJQIYBGtpbmQlAEwcAAAAFQQlAhgLbnVtYmVyX2tpbmQAFgQZHBmMJgAcFQ4ZNQAGEBkYB3VzZXJfaWQVABYE"
    "FpQBFpQBJmQmCCksFQQVABUCABUAFRAVAgA8KQYZJgAEAAAAJgAcFQQZNQAGEBkYB2l0ZW1faWQVABYEFnQWdCbYASacASksFQQVABUCABUA"
    "FRAVAgA8KQYZJgAEAAAAJgAcFQAZJQYAGRgFbGFiZWwVABYEFjQWNCaQAkkcFQAVABUCADwpBhkmAAQAAAAmABwVBBk1AAYQGRgJdGltZXN0"
    "YW1wFQAWBBZ0FnQmgAMmxAIpLBUEFQAVAgAVABUQFQIAPCkGGSYABAAAACYAHBUEGTUABhAZGAV6b25lZBUAFgQWdBZ0JvQDJrgDKSwVBBUA"
    "FQIAFQAVEBUCADwpBhkmAAQAAAAmABwVDhk1AAYQGRgHZGVjaW1hbBUAFgQWeBZ4JuwEJqwEKSwVBBUAFQIAFQAVEBUCADwpBhkmAAQAAAAm"
    "ABwVDBk1AAYQGRgEa2luZBUAFgQWaBZoJtQFJqQFKSwVBBUAFQIAFQAVEBUCADwWBBkGGSYABAAAACYAHBUEGTUABhAZGAtudW1iZXJfa2lu"
    "ZBUAFgQWdBZ0JsgGJowGKSwVBBUAFQIAFQAVEBUCADwpBhkmAAQAAAAW+AYWBCYIFvgGACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAy"
    "Ni4wLjEZjBwAABwAABwAABwAABwAABwAABwAABwAAADOAgAAUEFSMQ=="
)


@pytest.mark.parametrize(
    ("columns", "options", "users", "items"),
    [
        ({}, {"timestamp_format": "utc"}, UUIDS, ["12", "13"]),
        ({"timestamp": "zoned", "item_id": "decimal"}, {}, UUIDS, ["12", "13"]),
        ({"timestamp": "zoned", "user_id": "kind", "item_id": "number_kind"}, {}, ["a", "b"], ["7", "8"]),
        ({"item_id": "kind"}, {"timezone": "UTC"}, UUIDS, ["a", "b"]),
    ],
)  # fmt: skip
def test_columns_of_arrow(
    columns: dict[str, str], options: dict[str, Any], users: list[str], items: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(ARROW)
    log = read_log(path, LogOptions(columns=ColumnMap(**columns), **options))
    expected = [str(uuid.UUID(user)) if len(user) == 32 else user for user in users]
    assert list(log.user_ids) == expected
    assert list(log.item_ids) == items
    assert list(log.labels) == [1, 0]
    assert list(log.timestamps_ms) == [SEVEN, SEVEN + 1250]


@pytest.mark.parametrize(
    "timestamp",
    [
        pl.Series([SEVEN * 10**6] * 2),
        pl.Series([SEVEN * 10**3] * 2),
        pl.Series([SEVEN * 1e6] * 2),
        pl.Series([SEVEN / 1e3] * 2),
        pl.Series([datetime(2021, 1, 29, 7, tzinfo=UTC)] * 2, dtype=pl.Datetime("ns", "UTC")),
        pl.Series(["1611903600.000"] * 2).cast(pl.Decimal(20, 3)),
    ],
)
def test_times_in_parquet(timestamp: pl.Series, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    ids = pl.Series(["12.00", "13.00"]).cast(pl.Decimal(10, 0))
    kinds = pl.Series(["a", "b"], dtype=pl.Categorical)
    pl.DataFrame({"user_id": ids, "item_id": kinds, "timestamp": timestamp}).write_parquet(path)
    log = read_log(path)
    assert list(log.timestamps_ms) == [SEVEN, SEVEN]
    assert (list(log.user_ids), list(log.item_ids)) == (["12", "13"], ["a", "b"])


# --- public collections


def write_diginetica(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_diginetica_by_hand(tmp_path: Path) -> None:
    write_diginetica(tmp_path, period_00="1 a\n2 b\n", period_02="1 b\n")
    log = read_diginetica_clicks(tmp_path)
    week, line = 604_800_000, 5_000
    assert list(log.user_ids) == ["1", "2", "1"]
    assert list(log.item_ids) == ["a", "b", "b"]
    assert list(log.timestamps_ms) == [line, 2 * line, 2 * week + line]
    assert log.period is not None and list(log.period) == [1, 1, 3]
    assert log.positives_only
    # Session 1 has seen a when it clicks a (b is left), all when it clicks b; session 2 has seen b.
    sampled = read_diginetica(tmp_path, rng())
    assert list(zip(sampled.user_ids, sampled.item_ids, sampled.labels, strict=True)) == [
        ("1", "a", 1),
        ("1", "b", 0),
        ("2", "b", 1),
        ("2", "a", 0),
        ("1", "b", 1),
    ]
    assert [list(period) for period in cut(sampled, "column")] == [[0, 1, 2, 3], [4]]


def test_a_bad_line_of_diginetica_is_named(tmp_path: Path) -> None:
    write_diginetica(tmp_path, period_00="1 a\n2\n")
    with pytest.raises(LogFormatError, match=r"period_00.txt.gz, line 2: expected a session and an item; received '2'"):
        read_diginetica_clicks(tmp_path)


def test_period_files_without_a_line_are_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "period_00.txt.gz").write_bytes(gzip.compress(b""))
    assert len(read_diginetica_clicks(tmp_path)) == 0


def test_a_folder_of_neither_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=r"expected period_NN\.txt\.gz .* received an empty folder"):
        recognise_folder(tmp_path)
    for n in range(7):
        (tmp_path / f"f{n}").touch()
    with pytest.raises(LogFormatError, match="received f0, f1, f2, f3, f4 and 2 more"):
        open_folder(tmp_path, rng())
    with pytest.raises(NotADirectoryError):
        recognise_folder(tmp_path / "f0")
    with pytest.raises(FileNotFoundError):
        recognise_folder(tmp_path / "none")


def test_ml_100k_by_hand(tmp_path: Path) -> None:
    ratings = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t9\t4\t881250949\n2\t9\t3\t891717742\n"
    (tmp_path / "ml-100k.inter.gz").write_bytes(gzip.compress(ratings.encode()))
    films = 'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n9\t"Quoted\t1995\tSci-Fi War\n'
    write(tmp_path / "ml-100k.item", films)
    log = read_ml_100k(tmp_path)
    assert list(log.user_ids) == ["1", "2"]
    assert list(log.labels) == [1, 0]
    assert list(log.timestamps_ms) == [881_250_949_000, 891_717_742_000]
    assert log.categories == {"9": ("Sci-Fi", "War")}
    assert not log.positives_only


def test_a_bad_rating_is_named(tmp_path: Path) -> None:
    ratings = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t9\t6\t881250949\n"
    (tmp_path / "ml-100k.inter.gz").write_bytes(gzip.compress(ratings.encode()))
    with pytest.raises(
        LogFormatError, match="line 2, column 'rating:float': expected a rating from 1 to 5; received '6'"
    ):
        read_ml_100k(tmp_path)


@needs("ml-100k")
def test_ml_100k_is_what_its_authors_say() -> None:
    name, log = open_folder(DATA / "ml-100k", rng())
    assert name == "ml-100k"
    # GroupLens: 100,000 ratings, 943 users, 1,682 films, the evening of 19 September 1997 (Minnesota) to 22 April 1998.
    assert (len(log), len(set(log.user_ids)), len(set(log.item_ids))) == (100_000, 943, 1682)
    assert set(log.item_ids) == set(log.categories)
    first, last = (
        datetime.fromtimestamp(ms / 1000, UTC).date() for ms in (log.timestamps_ms.min(), log.timestamps_ms.max())
    )
    assert (str(first), str(last)) == ("1997-09-20", "1998-04-22")
    # The 18 genres of GroupLens; films of which the genre is unknown have none or say so.
    genres = {genre for genres in log.categories.values() for genre in genres}
    assert len(genres - {"unknown"}) == 18


@needs("diginetica")
def test_diginetica_is_what_its_readme_says() -> None:
    name, log = open_folder(DATA / "diginetica", rng())
    assert name == "diginetica"
    clicks = log.labels == 1
    assert int(clicks.sum()) == 993_483
    assert (len(set(log.user_ids)), len(set(log.item_ids))) == (204_789, 43_136)
    assert log.period is not None
    assert list(np.unique(log.period)) == list(range(1, 18))
    assert (np.diff(log.timestamps_ms) >= 0).all()
    # By a slow loop: each click is followed by one item that its session has not seen so far.
    assert list(log.labels[:10]) == [1, 0] * 5 and (clicks[::2]).all() and not clicks[1::2].any()
    seen: dict[str, set[str]] = defaultdict(set)
    for user, clicked, other_user, drawn in zip(
        log.user_ids[::2], log.item_ids[::2], log.user_ids[1::2], log.item_ids[1::2], strict=True
    ):
        seen[user].add(clicked)
        assert other_user == user
        assert drawn not in seen[user]
