"""Preparing a log: the user's own, negatives, options, bad input, and the real public logs."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.datasets import ColumnMap
from asmg.datasets.generic import LogOptions
from asmg.datasets.prepare import SOURCES, PrepareOptions, prepare
from asmg.datasets.prepared import read_prepared
from asmg.log_format import LogFormatError
from tests.asmg.logs import DATA, needs
from tests.asmg.prepared_logs import (
    BLOCKS,
    KUAIRAND_HEADER,
    T0,
    TMALL_HEADER,
    Tags,
    check,
    check_negatives,
    check_sources,
    decoded,
    events,
    flags,
    in_order,
    ms,
    random_clicks,
    random_ratings,
    run,
    write,
)


def table(ratings: list[tuple[str, str, str, int]], tags: Tags) -> pl.DataFrame:
    """Columns of other names than usual, among others."""
    return pl.DataFrame(
        {
            "note": ['a, "note"\nof two lines' if n % 7 == 3 else "" for n in range(len(ratings))],
            "Who": [row[0] for row in ratings],
            "what kind": ["|".join(tags.get(row[1], [])) for row in ratings],
            "when": [row[3] for row in ratings],
            "Which, one": [row[1] for row in ratings],
            "clicked": [row[2] for row in ratings],
        }
    )


COLUMNS = ColumnMap(user_id="Who", item_id="Which, one", timestamp="when", label="clicked", categories="what kind")

TAGS = {"0": ["x"], "1": ["y", "x"], "4": ["z"]}


def as_csv(frame: pl.DataFrame, path: Path, separator: str = ",", end: str = "\n") -> None:
    write(path, frame.write_csv(separator=separator, line_terminator=end))


@BLOCKS
@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("log.csv", as_csv),
        ("log.csv.gz", partial(as_csv, end="\r\n")),
        ("log.tsv", partial(as_csv, separator="\t")),
        ("log.tsv.gz", partial(as_csv, separator="\t")),
        ("log.parquet", lambda frame, path: frame.write_parquet(path)),
        ("lists.parquet", lambda frame, path: frame.with_columns(
            pl.col("what kind").str.split("|"), pl.col("clicked").cast(pl.Int8) == 1,
            pl.from_epoch(pl.col("when")).dt.replace_time_zone("Asia/Tokyo", ambiguous="raise"),
        ).with_columns(pl.col("when").dt.offset_by("9h")).write_parquet(path)),
    ],
)  # fmt: skip
def test_a_log_of_ones_own(
    tmp_path: Path, name: str, save: Callable[[pl.DataFrame, Path], None], block_bytes: int
) -> None:
    ratings = random_ratings(150, 6, ["0", "1"])
    save(table(ratings, TAGS), tmp_path / name)
    log = LogOptions(columns=COLUMNS)
    card = run("log", tmp_path / name, tmp_path / "out", block_bytes=block_bytes, log=log)
    rows = [(user, item, int(clicked), second * 1000) for user, item, clicked, second in ratings]
    check(card, tmp_path / "out", rows, rows, {}, unique=True, tags=TAGS)
    check_sources(card, tmp_path, [name])


def test_a_log_of_ones_own_has_the_name_that_it_is_given(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", f"user_id,item_id,label,timestamp\nu,i,0,{T0}\n")
    title = "KuaiRand <pure>, Woche 1 · é"
    for n, (called, expected) in enumerate(((title, title), ("a" * 100, "a" * 100), (None, "log"))):
        card = run("log", raw, tmp_path / str(n), title=called)
        assert card.dataset == read_prepared(tmp_path / str(n)).card.dataset == expected


@BLOCKS
@pytest.mark.parametrize("seed", [1, 2])
def test_a_log_of_positives(tmp_path: Path, seed: int, block_bytes: int) -> None:
    clicks = random_clicks(200, seed, users=5, items=12, times=60)
    raw = write(tmp_path / "log.csv", "item_id,timestamp,user_id\n" + "".join(f"{i},{t}\t,{u}\n" for u, i, t in clicks)
                .replace("\t", ""))  # fmt: skip
    card = run("log", raw, tmp_path / "out", block_bytes=block_bytes, negatives=2)
    rows = [(user, item, 1, second * 1000) for user, item, second in clicks]
    check(card, tmp_path / "out", rows, rows, {}, unique=True, negatives=2)
    assert card.without_negative > 0  # somebody has had everything


def test_labels_that_are_not_read(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", f"user_id,item_id,label,timestamp\nu,i,0,{T0}\nv,j,x,{T0 + 1}\n")
    rows = [("u", "i", 1, T0 * 1000), ("v", "j", 1, T0 * 1000 + 1000)]
    card = run("log", raw, tmp_path / "out", log=LogOptions(positives_only=True))
    check(card, tmp_path / "out", rows, rows, {}, unique=True, negatives=1)
    with pytest.raises(LogFormatError, match="line 3, column 'label': expected 0 or 1; received 'x'"):
        run("log", raw, tmp_path / "labels")
    without = write(tmp_path / "clicks.csv", f"user_id,item_id,timestamp\nu,i,{T0}\n")
    with pytest.raises(LogFormatError, match="line 1: expected a column 'label'; received user_id, item_id, timestamp"):
        run("log", without, tmp_path / "labels", log=LogOptions(positives_only=False))


@pytest.mark.parametrize(("first", "second", "more", "expected"), [
    ("1400000000", "1400000000.5", {}, [T0 * 1000, T0 * 1000 + 500]),
    ("1400000000000", "1400000000007", {}, [T0 * 1000, T0 * 1000 + 7]),
    ("2014-05-13T16:53:20Z", "2014-05-13T18:53:21+02:00", {}, [T0 * 1000, T0 * 1000 + 1000]),
    ("2014-05-13", "2014-05-13 16:53", {"timestamp_format": "utc"}, [ms(2014, 5, 13), ms(2014, 5, 13, 16, 53)]),
    ("1400000000", "2014-05-13T16:53:21Z", {}, [T0 * 1000, T0 * 1000 + 1000]),
    ("13-05-2014 18:53", "13-05-2014 18:54", {"timestamp_format": "%d-%m-%Y %H:%M", "timezone": "Europe/Berlin"},
     [ms(2014, 5, 13, 16, 53), ms(2014, 5, 13, 16, 54)]),
    ("1400000000", "1400000001", {"timestamp_format": "s"}, [T0 * 1000, T0 * 1000 + 1000]),
])  # fmt: skip
def test_forms_of_time(tmp_path: Path, first: str, second: str, more: Any, expected: list[int]) -> None:
    raw = write(tmp_path / "log.csv", f"user_id,item_id,label,timestamp\nu,i,0,{first}\nv,j,1,{second}\n")
    run("log", raw, tmp_path / "out", log=LogOptions(**more))
    assert [row[3] for row in decoded(tmp_path / "out")] == expected


@pytest.mark.parametrize(("first", "second", "more", "said"), [
    ("1400000000", "2014-05-13 16:53:20", {}, "line 3, column 'timestamp': .*for times without a zone give"),
    ("2014-05-13", "2014-05-13", {}, r"line 2, column 'timestamp': .*give --timestamp-format utc"),
    ("yesterday", "1", {}, "line 2, column 'timestamp': expected seconds, milliseconds"),
    ("1400000000", "4000000000", {}, "line 3, column 'timestamp': .*it is more than 300 seconds ahead"),
    ("12345", "12345", {}, "line 2, column 'timestamp': expected seconds, milliseconds"),
    ("1400000000", "1400000000", {"timestamp_format": "ms"}, "line 2, column 'timestamp': expected milliseconds"),
])  # fmt: skip
def test_times_that_are_none(tmp_path: Path, first: str, second: str, more: Any, said: str) -> None:
    raw = write(tmp_path / "log.csv", f"user_id,item_id,label,timestamp\nu,i,0,{first}\nv,j,1,{second}\n")
    with pytest.raises(LogFormatError, match=said):
        run("log", raw, tmp_path / "out", log=LogOptions(**more))


@BLOCKS
def test_categories_are_those_of_the_last_row_that_names_any(tmp_path: Path, block_bytes: int) -> None:
    content = (
        f"user_id,item_id,label,timestamp,categories\nu,i,1,{T0},a|b|a\nu,j,1,{T0},\nv,i,1,{T0},c|b\nv,i,1,{T0},\n"
    )
    raw = write(tmp_path / "log.csv", content)
    run("log", raw, tmp_path / "out", block_bytes=block_bytes)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["categories"].to_list() == [["c", "b"], []]
    prepared = read_prepared(tmp_path / "out")
    assert prepared.categories == ("c", "b")
    assert prepared.item_categories is not None
    assert prepared.item_categories.tolist() == [[0, 1], [-1, -1]]


def test_a_column_of_categories_that_names_none(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", f"user_id,item_id,label,timestamp,categories\nu,i,1,{T0},\nu,j,0,{T0},\n")
    assert run("log", raw, tmp_path / "out").categories == 0
    prepared = read_prepared(tmp_path / "out")
    assert prepared.categories == ()
    assert prepared.item_categories is not None and prepared.item_categories.tolist() == [[-1], [-1]]


@BLOCKS
def test_bad_rows_are_left_out_where_that_is_asked_for(tmp_path: Path, block_bytes: int) -> None:
    content = f"user_id,item_id,timestamp,label\nx\nu,i,{T0},1\n\nu,,{T0},1\nv,j,{T0},2\nv,j,{T0 - 1},0\nv,j,never,0\n"
    raw = write(tmp_path / "log.csv", content)
    card = run("log", raw, tmp_path / "out", malformed="drop", block_bytes=block_bytes)
    assert decoded(tmp_path / "out") == [("v", "j", 0, T0 * 1000 - 1000), ("u", "i", 1, T0 * 1000)]
    assert (card.rows_read, card.out_of_order) == (6, 1)
    assert sorted(card.dropped.values()) == [1, 1, 1, 1]
    with pytest.raises(LogFormatError, match="line 2: expected 4 values; received 1"):
        run("log", raw, tmp_path / "other", block_bytes=block_bytes)
    write(raw, "user_id,item_id,timestamp,label\nx\n,i,1400000000,0\n")
    with pytest.raises(LogFormatError, match=r"one row that the rule keeps; received none \(rows with"):
        run("log", raw, tmp_path / "other", malformed="drop", block_bytes=block_bytes)
    assert not (tmp_path / "other").exists()


@BLOCKS
def test_the_first_times_may_be_bad(tmp_path: Path, block_bytes: int) -> None:
    content = f"user_id,item_id,timestamp,label\nu,i,never,1\nu,i,,1\nu,i,{T0},1\nv,j,{T0 + 1},0\n"
    raw = write(tmp_path / "log.csv", content)
    card = run("log", raw, tmp_path / "out", malformed="drop", block_bytes=block_bytes)
    assert decoded(tmp_path / "out") == [("u", "i", 1, T0 * 1000), ("v", "j", 0, T0 * 1000 + 1000)]
    assert sum(card.dropped.values()) == 2
    with pytest.raises(LogFormatError, match=r"line 2, column 'timestamp': expected seconds, milliseconds"):
        run("log", raw, tmp_path / "other", block_bytes=block_bytes)


@pytest.mark.parametrize("name", ["log", "sobazaar"])
@given(clicks=events, count=st.integers(1, 3), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_any_log_of_clicks(
    tmp_path_factory: pytest.TempPathFactory, name: str, clicks: list[tuple[str, str, int]], count: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("clicks")
    if name == "log":
        lines = ["user_id,item_id,timestamp", *(f"{user},{item},{second}" for user, item, second in clicks)]
    else:
        lines = ["Action,ItemID,UserID,Timestamp"]
        lines += [f"a,{i},{u},{datetime.fromtimestamp(t, UTC):%Y-%m-%dT%H:%M:%SZ}" for u, i, t in clicks]
    raw = write(folder / "log.csv", "\n".join(lines))
    positives = in_order([(user, item, 1, second * 1000) for user, item, second in clicks], unique=name == "log")
    card = run(name, raw, folder / "out", negatives=count, seed=seed)
    assert card.without_negative == check_negatives(decoded(folder / "out"), positives, count, sessions=False)
    assert card.seed == seed


def test_negatives_of_one_moment_know_each_other_but_in_sessions(tmp_path: Path) -> None:
    # u views a and b at once, v makes c and d exist: at the first view b may be drawn in a session only.
    views = [("u", "a"), ("u", "b"), ("v", "c"), ("v", "d")]
    raw = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{T0}\n" for u, i in views))
    sessions = write(tmp_path / "raw" / "period_00.txt.gz", "u a\nu b\nv c\nv d\n").parent
    draws = 6_000
    for name, path, allowed in (("log", raw, "cd"), ("diginetica", sessions, "bcd")):
        run(name, path, tmp_path / name, negatives=draws)
        counts = Counter(row[1] for row in decoded(tmp_path / name)[1 : 1 + draws])
        assert set(counts) == set(allowed)
        expected = draws / len(allowed)
        # Five standard deviations of a binomial count.
        assert all(abs(count - expected) < 5 * (expected * (1 - 1 / len(allowed))) ** 0.5 for count in counts.values())


def test_seeds(tmp_path: Path) -> None:
    clicks = random_clicks(100, 8)
    raw = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in clicks))
    cards = [run("log", raw, tmp_path / f"{n}", seed=seed) for n, seed in enumerate((3, 3, 4))]
    first, again, other = (decoded(tmp_path / f"{n}") for n in range(3))
    assert first == again
    assert cards[0] == cards[1]
    assert first != other and [row for row in first if row[2]] == [row for row in other if row[2]]
    assert [card.seed for card in cards] == [3, 3, 4]


@pytest.mark.parametrize(("more", "said"), [
    ({"name": "netflix"}, "name: expected one of tmall, .*, taobao-ad, mind, log; received 'netflix'"),
    ({"name": "ml-1m", "title": "mine"}, "--name: expected none for ml-1m, which has a name; received 'mine'"),
    *(
        ({"title": title}, "--name: expected 1 to 100 printable characters, no blank at either end; received")
        for title in ("", " ", "a ", "a\nb", "\x1b[1m", "a" * 101)
    ),
    ({"seed": -1}, "seed: expected at least 0; received -1"),
    ({"negatives": 0}, "negatives: expected at least 1; received 0"),
    ({"malformed": "ignore"}, "malformed: expected error or drop; received 'ignore'"),
])  # fmt: skip
def test_bad_options(tmp_path: Path, more: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrepareOptions(**{"name": "log", "raw": tmp_path, "out": tmp_path, **more})


def test_bad_options_of_a_log(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected one of s, ms, us, ns, rfc3339, utc, or a pattern .*; received 'days'",
    ):
        LogOptions(timestamp_format="days")
    raw = write(tmp_path / "log.csv", f"a,b,timestamp\nu,i,{T0}\n")
    with pytest.raises(ValueError, match="columns: expected a column of its own for each; received a, a, timestamp"):
        run("log", raw, tmp_path / "out", log=LogOptions(columns=ColumnMap(user_id="a", item_id="a")))


@pytest.mark.parametrize("name", [*SOURCES, "log"])
def test_nothing_where_the_source_should_be(tmp_path: Path, name: str) -> None:
    for raw in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(LogFormatError) as raised:
            run(name, raw, tmp_path / "out")
        assert raised.value.path == raw
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(("name", "file", "content", "said"), [
    ("ml-latest", "ratings.csv", f"userId,movieId,rating,timestamp\n1,1,5.0,{T0}\n", "expected a file movies.csv"),
    ("ml-latest", "ratings.csv", "userId,movieId,rating,timestamp\n1,1,6.0,1\n", "line 2, column 'rating'"),
    ("ml-1m", "ratings.dat", f"1::1::5::{T0}\n", "expected a file movies.dat"),
    ("ml-1m", "ratings.dat", f"1:1:5:{T0}\n", "line 1: expected 4 values; received 1"),
    ("ml-100k", "u.data", f"1\t1\t5\t{T0}\n", "expected a file u.item"),
    ("ml-100k", "u.data", "1\t1\t5\t881250949\n1\t1\t0\t881250949\n", "line 2, column 'rating'"),
    ("amazon", "a.csv", "user,item,rating,timestamp\nu,i,0.5,1400000000\n", "line 2, column 'rating'"),
    ("amazon", "a.txt", "", "expected one file .csv or .csv.gz in it, or the file itself; received none"),
    ("sobazaar", "Sobazaar-hashID.csv", "Action,UserID,ItemID,Timestamp\na,u,i,2014-13-01\n", "column 'Timestamp'"),
    ("tmall", "user_log_format1.csv", f"{TMALL_HEADER}\n1,2,3,4,5,0511,4\n", "line 2, column 'action_type'"),
    ("tmall", "user_log_format1.csv", f"{TMALL_HEADER}\n1,2,3,4,5,0631,0\n", "line 2, column 'time_stamp'"),
    ("diginetica", "train-item-views.csv", "sessionId;userId;itemId;timeframe;eventdate\n1;NA;2;-1;2016-05-09\n",
     "line 2, column 'timeframe'"),
    ("diginetica", "period_00.txt.gz", "1 2\n1\n", "line 2: expected 2 values; received 1"),
    ("kuairand", "log_standard_pure.csv", f"{KUAIRAND_HEADER}\n1,2,20220425,0,{T0}000,2,0,1,0,1\n",
     r"line 2, column 'is_click': expected 0 or 1; received '2'"),
    ("kuairand", "log_standard_pure.csv", f"{KUAIRAND_HEADER}\n1,2,20220425,0,{T0},1,0,1,0,1\n", "column 'time_ms'"),
    ("kuairand", "log_random_pure.csv", f"{KUAIRAND_HEADER}\n", r"expected files log_standard\*.csv \(or .gz\) in it"),
    ("yoochoose", "yoochoose-clicks.dat", "1,2014-04-07T10:51:09.277Z,214536502\n", "line 1: expected 4 values"),
])  # fmt: skip
def test_files_that_are_not_as_published(tmp_path: Path, name: str, file: str, content: str, said: str) -> None:
    write(tmp_path / "raw" / file, content)
    with pytest.raises(LogFormatError, match=said):
        run(name, tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(("name", "ratings", "films", "content", "said"), [
    ("ml-1m", f"1::1::5::{T0}\n", "movies.dat", "1::A (1)::Drama\n\n2::B\n", "movies.dat, line 3: expected"),
    ("ml-100k", f"1\t1\t5\t{T0}\n", "u.item", f"1|A||||{flags(1)}\n2|B||||{flags(2)}|0\n", "u.item, line 2: expected"),
    ("ml-100k", f"1\t1\t5\t{T0}\n", "u.item", f"1|A|||{flags(1)}2|0\n", "u.item, line 1: expected 24 values"),
])  # fmt: skip
def test_films_that_are_not_as_published(
    tmp_path: Path, name: str, ratings: str, films: str, content: str, said: str
) -> None:
    write(tmp_path / "raw" / ("ratings.dat" if name == "ml-1m" else "u.data"), ratings)
    write(tmp_path / "raw" / films, content)
    with pytest.raises(LogFormatError, match=said):
        run(name, tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("name", ["ml-25m", "ml-latest", "ml-1m", "ml-100k"])
def test_one_file_of_ratings_is_not_enough(tmp_path: Path, name: str) -> None:
    raw = write(tmp_path / "ratings.csv", "no matter what\n")
    with pytest.raises(LogFormatError, match="expected a folder that holds the files; received one file"):
        run(name, raw, tmp_path / "out")


def test_progress_is_told(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "".join(f"u,{n},{T0}\n" for n in range(50)))
    told: list[tuple[str, float]] = []
    prepare(
        PrepareOptions(name="log", raw=raw, out=tmp_path / "out", block_bytes=100),
        progress=lambda what, fraction: told.append((what, fraction)),
    )
    stages = list(dict.fromkeys(what for what, _ in told))
    assert stages == ["reading log.csv", "sorting", "drawing negatives", "writing"]
    for stage in stages:
        fractions = [fraction for what, fraction in told if what == stage]
        assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1
    assert told[-1] == ("writing", 1.0)


@needs("ml-100k")
def test_real_ml_100k(tmp_path: Path) -> None:
    card = run("ml-100k", DATA / "ml-100k", tmp_path / "out")
    assert (card.rows, card.users, card.items, card.categories, card.positives) == (100_000, 943, 1_682, 19, 55_375)
    read_prepared(tmp_path / "out")


@needs("kuairand")
def test_real_kuairand(tmp_path: Path) -> None:
    card = run("kuairand", DATA / "kuairand", tmp_path / "out")
    assert (card.rows, card.positives, card.users, card.items) == (91_806, 41_096, 21_184, 5_564)
    assert (card.rows_read, card.negatives_per_positive) == (94_784, 0)
    read_prepared(tmp_path / "out")


@needs("diginetica")
def test_real_diginetica(tmp_path: Path) -> None:
    card = run("diginetica", DATA / "diginetica", tmp_path / "out")
    assert (card.rows, card.positives, card.users, card.items) == (1_986_966, 993_483, 204_789, 43_136)
    log = read_prepared(tmp_path / "out")
    assert np.array_equal(log.label, np.tile(np.array([1, 0], np.uint8), card.positives))
