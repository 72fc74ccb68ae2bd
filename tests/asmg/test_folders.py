"""The public logs that a folder can hold."""

import gzip
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from asmg.datasets import (
    LogFormatError,
    cut,
    open_folder,
    read_diginetica,
    read_diginetica_clicks,
    read_ml_100k,
    recognise_folder,
)
from tests.asmg.logs import DATA, needs, rng, write


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
@pytest.mark.nightly
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
