"""Preparing the public logs, each against its rule written as a slow loop."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from asmg.datasets.gathering import Gathering
from asmg.datasets.tmall import TmallRule, read_tmall
from asmg.log_format import LogFormatError
from tests.asmg.prepared_logs import (
    BLOCKS,
    KUAIRAND_HEADER,
    T0,
    TMALL_HEADER,
    Row,
    backwards,
    check,
    check_sources,
    flags,
    ms,
    random_clicks,
    random_ratings,
    run,
    write,
)


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
