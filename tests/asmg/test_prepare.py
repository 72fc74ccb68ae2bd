"""Public logs as they are published, prepared: each row compared with a slow, obvious version of the rule."""

import gzip
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.datasets import ColumnMap
from asmg.datasets.card import Card
from asmg.datasets.gathering import Gathering
from asmg.datasets.generic import LogOptions
from asmg.datasets.prepare import SOURCES, PrepareOptions, prepare
from asmg.datasets.prepared import read_prepared
from asmg.datasets.tmall import TmallRule, read_tmall
from asmg.log_format import LogFormatError
from tests.asmg.test_datasets import DATA, needs

Row = tuple[str, str, int, int]
"""User, item, label, milliseconds."""
Tags = dict[str, list[str]]

T0 = 1_400_000_000  # 2014-05-13T16:53:20Z, in seconds
BLOCKS = pytest.mark.parametrize("block_bytes", [20, 1 << 20])


def ms(*moment: int) -> int:
    return round(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = content.encode(encoding)
    path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)
    return path


def run(name: str, raw: Path, out: Path, **more: Any) -> Card:
    return prepare(PrepareOptions(name=name, raw=raw, out=out, **more))


# --- the slow, obvious version


def in_order(rows: list[Row], *, unique: bool) -> list[Row]:
    """Sorted by time, equal times as they were; perhaps each row once."""
    ordered = sorted(rows, key=lambda row: row[3])
    return list(dict.fromkeys(ordered)) if unique else ordered


def backwards(times: list[int]) -> int:
    return sum(later < earlier for earlier, later in pairwise(times))


def decoded(out: Path) -> list[Row]:
    """The rows of a prepared log, with ids instead of numbers."""
    users, items = (pl.read_parquet(out / f"{name}.parquet")["id"].to_list() for name in ("users", "items"))
    log = pl.read_parquet(out / "log.parquet")
    schema = {"user": pl.UInt32, "item": pl.UInt32, "label": pl.UInt8, "timestamp": pl.Int64}
    assert {name: kind for name, kind in log.schema.items() if not name.startswith("field.")} == schema
    return [(users[user], items[item], label, time) for user, item, label, time in log.select(*schema).iter_rows()]


def check_negatives(rows: list[Row], positives: list[Row], count: int, *, sessions: bool) -> int:
    """Each positive is followed by `count` items its user has not had, or none is left; returns how many of those."""
    everything, had, place, without = {row[1] for row in positives}, defaultdict(set), 0, 0
    for n, (user, item, label, time) in enumerate(positives):
        assert rows[place] == (user, item, label, time)
        had[user].add(item)
        later = set() if sessions else {i for u, i, _, t in positives[n:] if (u, t) == (user, time)}
        allowed = everything - had[user] - later
        place += 1
        without += not allowed
        for _ in range(count if allowed else 0):
            assert rows[place] == (user, rows[place][1], 0, time)
            assert rows[place][1] in allowed
            place += 1
    assert place == len(rows)
    return without


def check(
    card: Card, out: Path, read: list[Row], kept: list[Row], left_out: dict[str, int], *, unique: bool = False,
    tags: Tags | None = None, negatives: int = 0, sessions: bool = False,
) -> None:  # fmt: skip
    """Everything about a prepared log.

    Args:
        card, out: of `prepare`.
        read: all rows of the source, in its order.
        kept: those that its own rule keeps.
        left_out: why the others are not there.
        unique: whether a row that repeats an earlier one goes.
        tags: an item's categories.
        negatives: of a positive; 0: the source has labels.
        sessions: whether an item of the same moment that comes later may be a negative.
    """
    rows, expected = decoded(out), in_order(kept, unique=unique)
    left_out = dict(left_out)
    if unique and len(expected) < len(kept):
        left_out["rows that repeat an earlier one"] = len(kept) - len(expected)
    if negatives:
        assert card.without_negative == check_negatives(rows, expected, negatives, sessions=sessions)
    else:
        assert card.without_negative == 0
        assert rows == expected
    items = pl.read_parquet(out / "items.parquet")
    assert pl.read_parquet(out / "users.parquet")["id"].to_list() == list(dict.fromkeys(row[0] for row in rows))
    assert items["id"].to_list() == list(dict.fromkeys(row[1] for row in rows))
    own = [name for name in items.columns if not name.startswith("field.")]
    assert own == (["id"] if tags is None else ["id", "categories"])
    if tags is not None:
        assert items["categories"].to_list() == [tags.get(item, []) for item in items["id"]]
    distinct = {tag for item in items["id"] for tag in (tags or {}).get(item, [])}
    assert (card.rows, card.positives) == (len(rows), sum(row[2] for row in rows))
    assert (card.users, card.items, card.categories) == (
        len({row[0] for row in rows}),
        len({row[1] for row in rows}),
        len(distinct),
    )
    for said, row in ((card.first, rows[0]), (card.last, rows[-1])):
        assert datetime.fromisoformat(said) == datetime.fromtimestamp(row[3] / 1000, UTC)
        assert said.endswith("Z")
    assert card.rows_read == len(read)
    assert card.out_of_order == backwards([row[3] for row in read])
    assert dict(card.dropped) == left_out
    assert card.duplicates_kept == (0 if unique else len(kept) - len(set(kept)))
    assert (card.negatives_per_positive, card.seed) == (negatives, 0 if negatives else None)
    assert ("sampled" in " ".join(card.rule)) == bool(negatives)
    assert json.loads((out / "card.json").read_text()) == card.to_json()
    assert read_prepared(out).card == card
    assert sorted(path.name for path in out.iterdir()) == [
        *("card.json", "features.toml", "items.parquet", "log.parquet", "users.parquet")
    ]
    assert [path.name for path in out.parent.iterdir() if "partial" in path.name] == []


def check_sources(card: Card, base: Path, names: list[str]) -> None:
    assert [source.file for source in card.sources] == names
    for source in card.sources:
        content = (base / source.file).read_bytes()
        assert (source.bytes, source.sha256) == (len(content), hashlib.sha256(content).hexdigest())


# --- Tmall

TMALL_HEADER = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"


def tmall_rows(count: int, seed: int) -> list[tuple[str, ...]]:
    """Rows of user_log_format1.csv: in no order of time, brands missing, most of them clicks, most in October."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        user = f"{int(rng.expovariate(0.2)) + 100}"
        item = f"{int(rng.expovariate(0.3)) + 7}"
        day = rng.choice(["0511", "0930", "1001", "1001", "1015", "1015", "1020", "1031", "1101", "1112"])
        rows.append((user, item, f"{int(item) % 5}", "9", rng.choice(["", "3.0"]), day, rng.choice("000000123")))
    return rows


def slow_tmall(rows: list[tuple[str, ...]], users: int, clicks: int) -> tuple[list[Row], dict[str, int]]:
    """What the rule leaves, and why the rest is left out."""
    left_out: dict[str, int] = {}

    def leave(found: list[Any], why: str, keep: Callable[[Any], bool]) -> list[Any]:
        good = [row for row in found if keep(row)]
        left_out.update({why: len(found) - len(good)} if len(good) < len(found) else {})
        return good

    rows = leave(rows, "other actions than clicks", lambda row: row[6] == "0")
    rows = leave(rows, "clicks before or after October", lambda row: row[5].startswith("10"))
    of_user = Counter(row[0] for row in rows)  # in order of first appearance, which sorting keeps
    best = sorted(of_user, key=lambda user: -of_user[user])[:users]
    rows = leave(rows, f"clicks of users who are not among the {users:,} most active", lambda row: row[0] in best)
    of_item = Counter(row[1] for row in rows)
    rows = leave(rows, f"clicks on items with fewer than {clicks} of them", lambda row: of_item[row[1]] >= clicks)
    return [(row[0], row[1], 1, tmall_time(row)) for row in rows], left_out


def tmall_time(row: tuple[str, ...]) -> int:
    return ms(2014, int(row[5][:2]), int(row[5][2:]))


@BLOCKS
@pytest.mark.parametrize("seed", range(3))
def test_tmall_with_a_small_rule(tmp_path: Path, seed: int, block_bytes: int) -> None:
    rows = tmall_rows(400, seed)
    lines = [",".join(row) for row in rows]
    raw = write(tmp_path / "user_log_format1.csv", "\n".join([TMALL_HEADER, *lines]))
    gathering = Gathering(raw, block_bytes=block_bytes)
    events = read_tmall(gathering, TmallRule(users=10, item_clicks=4))
    found = [
        (events.user_ids[user], events.item_ids[item], label, time)
        for user, item, label, time in zip(
            events.user, events.item, events.label.tolist(), events.timestamps_ms.tolist(), strict=True
        )
    ]
    kept, left_out = slow_tmall(rows, 10, 4)
    assert len(left_out) == 4  # each part of the rule leaves something out
    assert found == kept
    assert gathering.dropped == left_out
    assert gathering.rows_read == 400
    assert gathering.out_of_order == backwards([tmall_time(row) for row in rows])
    assert events.positives_only
    assert events.item_categories is not None
    assert all(events.item_categories[n] == (f"{int(item) % 5}",) for n, item in enumerate(events.item_ids))


def test_tmall_as_the_paper_has_it(tmp_path: Path) -> None:
    rows = [row for row in tmall_rows(600, 9) if len(row[1]) == 1] + tmall_rows(50, 1)
    raw = write(tmp_path / "raw" / "data_format1" / "user_log_format1.csv.gz",
                "\r\n".join([TMALL_HEADER, *(",".join(row) for row in rows), ""]))  # fmt: skip
    kept, left_out = slow_tmall(rows, 50_000, 20)
    assert kept and "clicks on items with fewer than 20 of them" in left_out
    card = run("tmall", tmp_path / "raw", tmp_path / "out", block_bytes=1000)
    read = [(row[0], row[1], 1, tmall_time(row)) for row in rows]
    tags = {row[1]: [row[2]] for row in rows}
    check(card, tmp_path / "out", read, kept, left_out, tags=tags, negatives=1)
    check_sources(card, tmp_path / "raw", ["data_format1/user_log_format1.csv.gz"])
    assert raw.is_file()


def test_the_category_of_a_tmall_item_is_that_of_its_first_click_that_names_one(tmp_path: Path) -> None:
    rows = [("u", "i", "", "1001"), ("v", "i", "c1", "1003"), ("u", "i", "c2", "1002"), ("u", "j", "", "1001")]
    lines = [f"{user},{item},{category},9,,{day},0" for user, item, category, day in rows]
    raw = write(tmp_path / "log.csv", "\n".join([TMALL_HEADER, *lines]))
    for block_bytes in (10, 1 << 20):
        events = read_tmall(Gathering(raw, block_bytes=block_bytes), TmallRule(users=5, item_clicks=1))
        assert events.item_ids == ["i", "j"]
        assert events.item_categories == [("c1",), ()]


def test_nothing_that_the_rule_keeps(tmp_path: Path) -> None:
    raw = write(tmp_path / "log.csv", f"{TMALL_HEADER}\nu,i,1,1,,0511,0\nu,i,1,1,,1011,2\n")
    with pytest.raises(
        LogFormatError, match=r"one row that the rule keeps; received none \(other actions than clicks: 1"
    ):
        run("tmall", raw, tmp_path / "out")
    write(raw, f"{TMALL_HEADER}\nu,i,1,1,,1011,0\n")
    with pytest.raises(LogFormatError, match=r"received none \(clicks on items with fewer than 20 of them: 1"):
        run("tmall", raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


# --- sources of clicks


def random_clicks(
    count: int, seed: int, users: int = 12, items: int = 15, times: int = 40
) -> list[tuple[str, str, int]]:
    """User, item and a second: in no order, with repeats and ties."""
    rng = random.Random(seed)
    found = [(f"u{rng.randrange(users)}", f"{rng.randrange(items)}", T0 + rng.randrange(times)) for _ in range(count)]
    return found + found[3:6]


@BLOCKS
def test_sobazaar(tmp_path: Path, block_bytes: int) -> None:
    clicks = random_clicks(150, 1)
    actions = ["purchase:buy_clicked", "content:interact:product_clicked", 'a "quoted", action\nof two lines']
    lines = ["Action,UserID,ItemID,Timestamp"]
    for n, (user, item, second) in enumerate(clicks):
        action = actions[n % 3] if n % 3 < 2 else '"' + actions[2].replace('"', '""') + '"'
        when = datetime.fromtimestamp(second, UTC).isoformat()
        lines.append(f"{action},{user},{item},{when.replace('+00:00', ['Z', '', '+00:00'][n % 3])}")
    write(tmp_path / "raw" / "Sobazaar-hashID.csv.gz", "\n".join(lines) + "\n")
    card = run("sobazaar", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes, negatives=2)
    rows = [(user, item, 1, second * 1000) for user, item, second in clicks]
    check(card, tmp_path / "out", rows, rows, {}, negatives=2)
    check_sources(card, tmp_path / "raw", ["Sobazaar-hashID.csv.gz"])
    assert card.duplicates_kept >= 3  # an action twice is two events


def slow_leave_out_rare(rows: list[Row]) -> tuple[list[Row], dict[str, int]]:
    of_item = Counter(row[1] for row in rows)
    popular = [row for row in rows if of_item[row[1]] >= 5]
    of_session = Counter(row[0] for row in popular)
    kept = [row for row in popular if of_session[row[0]] >= 2]
    assert len(rows) > len(popular) > len(kept) > 0
    return kept, {
        "clicks on items with fewer than 5 of them": len(rows) - len(popular),
        "clicks of sessions with a single one of those": len(popular) - len(kept),
    }


@BLOCKS
def test_diginetica_as_published(tmp_path: Path, block_bytes: int) -> None:
    rng = random.Random(5)
    lines, rows = ["sessionId;userId;itemId;timeframe;eventdate"], []
    for _ in range(200):
        session, item = f"{rng.randrange(90)}", f"{int(rng.expovariate(0.15))}"
        day, frame = rng.randrange(1, 29), rng.choice([0, 1, 529_294, 86_399_999, 90_000_000])
        lines.append(f"{session};{rng.choice(['NA', '7'])};{item};{frame};2016-05-{day:02}")
        rows.append((session, item, 1, ms(2016, 5, day) + frame))
    write(tmp_path / "raw" / "train-item-views.csv", "\r\n".join(lines))
    kept, left_out = slow_leave_out_rare(rows)
    card = run("diginetica", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    check(card, tmp_path / "out", rows, kept, left_out, negatives=1, sessions=True)
    check_sources(card, tmp_path / "raw", ["train-item-views.csv"])


@BLOCKS
def test_yoochoose_as_published(tmp_path: Path, block_bytes: int) -> None:
    rng = random.Random(6)
    lines, rows = [], []
    for _ in range(200):
        session, item, second = f"{rng.randrange(90)}", f"2145{int(rng.expovariate(0.15)):02}", T0 + rng.randrange(60)
        fraction = rng.randrange(1000)
        when = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{fraction:03}Z"
        lines.append(f"{session},{when},{item},{rng.choice(['0', 'S', '5'])}")
        rows.append((session, item, 1, second * 1000 + fraction))
    raw = write(tmp_path / "yoochoose-data" / "yoochoose-clicks.dat", "\n".join(lines) + "\n")
    kept, left_out = slow_leave_out_rare(rows)
    card = run("yoochoose", raw, tmp_path / "out", block_bytes=block_bytes)
    check(card, tmp_path / "out", rows, kept, left_out, negatives=1, sessions=True)
    check_sources(card, raw.parent, ["yoochoose-clicks.dat"])


@pytest.mark.parametrize("name", ["diginetica", "yoochoose"])
def test_period_files(tmp_path: Path, name: str) -> None:
    rng, rows = random.Random(7), []
    for period in (0, 2, 11):
        lines = []
        for number in range(1, 30):
            session, item = f"{period}-{rng.randrange(9)}", f"{rng.randrange(8)}"
            lines.append(f"{session} {item}")
            rows.append((session, item, 1, period * 7 * 86_400_000 + number * 5_000))
        write(tmp_path / "raw" / f"period_{period:02}.txt.gz", "\n".join(lines) + "\n")
    card = run(name, tmp_path / "raw", tmp_path / "out", negatives=3)
    check(card, tmp_path / "out", rows, rows, {}, negatives=3, sessions=True)  # nothing is left out of these
    check_sources(card, tmp_path / "raw", [f"period_{period:02}.txt.gz" for period in (0, 2, 11)])


# --- KuaiRand

KUAIRAND_HEADER = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,play_time_ms,is_rand,tab"


def kuairand_rows(count: int, seed: int, start: int) -> list[Row]:
    """Impressions in no order; some are in the file twice, some once more with another outcome."""
    rng = random.Random(seed)
    rows = [
        (f"{rng.randrange(9)}", f"{rng.randrange(12)}", int(rng.random() < 0.4), start + rng.randrange(90))
        for _ in range(count)
    ]
    return rows + rows[4:9] + [(user, item, 1 - label, time) for user, item, label, time in rows[10:14]]


def kuairand_file(rows: list[Row]) -> str:
    lines = [f"{user},{item},20220425,0,{time},{label},0,61802,0,1" for user, item, label, time in rows]
    return "\n".join([KUAIRAND_HEADER, *lines]) + "\n"


@BLOCKS
def test_kuairand(tmp_path: Path, block_bytes: int) -> None:
    first, second = kuairand_rows(120, 1, T0 * 1000), kuairand_rows(60, 2, T0 * 1000 + 90)
    folder = tmp_path / "raw" / "data"
    write(folder / "log_standard_pure_first_week.csv.gz", kuairand_file(first))
    write(folder / "log_standard_pure_second_week.csv", kuairand_file(second))
    write(folder / "log_standard_pure_second_week.csv.gz", "the same, compressed: not read")
    write(folder / "log_random_pure.csv", "videos shown at random: not read")
    card = run("kuairand", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows = first + second
    check(card, tmp_path / "out", rows, rows, {}, unique=True)
    check_sources(card, tmp_path / "raw", [f"data/log_standard_pure_{n}" for n in
                                           ("first_week.csv.gz", "second_week.csv")])  # fmt: skip
    assert card.dropped["rows that repeat an earlier one"] >= 10
    assert len(set(rows)) < len(rows) and len({row[:2] for row in rows}) < card.rows


# --- sources of ratings


def random_ratings(count: int, seed: int, stars: list[str]) -> list[tuple[str, str, str, int]]:
    rng = random.Random(seed)
    return [(user[1:], item, rng.choice(stars), second) for user, item, second in random_clicks(count, seed)] + [
        ("1", "2", stars[0], T0), ("1", "2", stars[0], T0), ("1", "2", stars[-1], T0)
    ]  # fmt: skip


def labelled(ratings: list[tuple[str, str, str, int]]) -> list[Row]:
    return [(user, item, int(float(stars) >= 4), second * 1000) for user, item, stars, second in ratings]


HALVES = ["0.5", "1.0", "3.5", "4.0", "4.5", "5.0"]
MOVIES = (
    "movieId,title,genres\r\n"
    '0,"American President, The (1995)",Comedy|Drama|Romance\r\n'
    '1,"He said ""Hi, ""you"" there"" (2001)",Comedy\r\n'
    "2,Toy Story (1995),Adventure|Animation|Children|Comedy|Fantasy\r\n"
    "3,Les Misérables (1995),(no genres listed)\r\n"
    "99,Nobody rated this (2000),Western\r\n"
)
GENRES = {"0": ["Comedy", "Drama", "Romance"], "1": ["Comedy"], "2": ["Adventure", "Animation", "Children", "Comedy",
          "Fantasy"], "3": ["(no genres listed)"]}  # fmt: skip


@BLOCKS
@pytest.mark.parametrize("folder", [".", "ml-latest-small"])
def test_ml_latest(tmp_path: Path, folder: str, block_bytes: int) -> None:
    ratings = random_ratings(150, 2, HALVES)
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings)]
    write(tmp_path / "raw" / folder / "ratings.csv", "\r\n".join(lines) + "\r\n")
    write(tmp_path / "raw" / folder / "movies.csv", MOVIES)
    card = run("ml-latest", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows = labelled(ratings)
    check(card, tmp_path / "out", rows, rows, {}, unique=True, tags=GENRES)
    check_sources(card, tmp_path / "raw", [(Path(folder) / name).as_posix() for name in ("ratings.csv", "movies.csv")])


@BLOCKS
def test_the_years_of_ml_25m(tmp_path: Path, block_bytes: int) -> None:
    first, end = 1_388_534_400, 1_546_300_800
    assert (first * 1000, end * 1000) == (ms(2014, 1, 1), ms(2019, 1, 1))
    ratings = [("7", "1", "4.0", first - 1), ("7", "0", "3.5", end - 1), ("8", "0", "5.0", end),
               ("7", "3", "0.5", first), ("9", "1", "4.5", end - 1), ("8", "3", "4.0", 1_600_000_000)]  # fmt: skip
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings)]
    write(tmp_path / "raw" / "ratings.csv", "\n".join(lines) + "\n")
    write(tmp_path / "raw" / "movies.csv", MOVIES)
    card = run("ml-25m", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows = labelled(ratings)
    kept = [rows[1], rows[3], rows[4]]
    check(card, tmp_path / "out", rows, kept, {"ratings before 2014 or after 2018": 3}, unique=True, tags=GENRES)
    assert (card.first, card.last) == ("2014-01-01T00:00:00.000Z", "2018-12-31T23:59:59.000Z")


@BLOCKS
def test_ml_1m(tmp_path: Path, block_bytes: int) -> None:
    ratings = random_ratings(150, 3, list("12345"))
    write(tmp_path / "raw" / "ratings.dat", "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in ratings))
    movies = '0::American President, The: Part 2 (1995)::Comedy|Drama\n1::\x85t\xe9 "x" (1995)::Children\'s\n'
    write(tmp_path / "raw" / "movies.dat", movies, "latin-1")
    card = run("ml-1m", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows, tags = labelled(ratings), {"0": ["Comedy", "Drama"], "1": ["Children's"]}
    check(card, tmp_path / "out", rows, rows, {}, unique=True, tags=tags)
    check_sources(card, tmp_path / "raw", ["ratings.dat", "movies.dat"])


def flags(*numbers: int) -> str:
    return "|".join("1" if n in numbers else "0" for n in range(19))


@BLOCKS
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_ml_100k_of_grouplens(tmp_path: Path, suffix: str, block_bytes: int) -> None:
    ratings = random_ratings(150, 4, list("12345"))
    write(tmp_path / "raw" / f"u.data{suffix}", "".join("\t".join(map(str, row)) + "\n" for row in ratings))
    # u.genre: 0 unknown, 1 Action, 2 Adventure, 3 Animation, 4 Children's, 5 Comedy, …, 18 Western
    films = (
        f"0|Toy \x85Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story|{flags(3, 4, 5)}\r\n"
        f'1|"Get Shorty" (1995)|01-Jan-1995||http://x/?caf\xe9|{flags(1, 18)}\r\n2|unknown||||{flags(0)}\r\n'
    )
    write(tmp_path / "raw" / f"u.item{suffix}", films, "latin-1")
    card = run("ml-100k", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows = labelled(ratings)
    tags = {"0": ["Animation", "Children's", "Comedy"], "1": ["Action", "Western"], "2": ["unknown"]}
    check(card, tmp_path / "out", rows, rows, {}, unique=True, tags=tags)
    check_sources(card, tmp_path / "raw", [f"u.data{suffix}", f"u.item{suffix}"])


def test_ml_100k_of_recbole(tmp_path: Path) -> None:
    ratings = random_ratings(150, 4, list("12345"))
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in ratings]
    write(tmp_path / "raw" / "ml-100k.inter.gz", "\n".join(lines) + "\n")
    films = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n0\tToy Story\tAnimation Comedy\n"
    write(tmp_path / "raw" / "ml-100k.item", films)
    card = run("ml-100k", tmp_path / "raw", tmp_path / "out")
    rows = labelled(ratings)
    check(card, tmp_path / "out", rows, rows, {}, unique=True, tags={"0": ["Animation", "Comedy"]})
    check_sources(card, tmp_path / "raw", ["ml-100k.inter.gz", "ml-100k.item"])


@BLOCKS
@pytest.mark.parametrize("header", ["", "user,item,rating,timestamp\r\n"])
def test_amazon(tmp_path: Path, header: str, block_bytes: int) -> None:
    ratings = random_ratings(150, 5, ["1.0", "2.0", "3.0", "4.0", "5.0"])
    content = header + "".join(f"{u},{i},{r},{t}\r\n" for u, i, r, t in ratings)
    write(tmp_path / "raw" / "ratings_Electronics.csv", content)
    card = run("amazon", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    rows = labelled(ratings)
    check(card, tmp_path / "out", rows, rows, {}, unique=True)
    check_sources(card, tmp_path / "raw", ["ratings_Electronics.csv"])


# --- one's own log


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


# --- negatives


events = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(T0, T0 + 4)), min_size=1, max_size=25
)


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


# --- what cannot be


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


# --- the real logs


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
