"""MovieLens (GroupLens): ratings of films; label 1 from 4 stars on; genres are categories.

100k in RecBole's or GroupLens' files, 1M, and the format since 20M: "latest", and 25M with the paper's rule, which
keeps 6,840,091 ratings by 43,181 users of 51,142 films in 20 genres (its authors' counts).
"""

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from asmg.datasets.columns import identifier, rating, read_ids
from asmg.datasets.damage import GZIP_ERRORS, damaged_gzip
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Keep, Source
from asmg.datasets.log import InteractionLog
from asmg.datasets.scan import Layout
from asmg.datasets.table import read_table
from asmg.datasets.times import time_of
from asmg.log_format import LogFormatError

LIKED = 4
"""Lowest rating of a positive."""

_INTERACTIONS = "ml-100k.inter.gz"
_FILMS = "ml-100k.item"


def read_ml_100k(folder: str | Path) -> InteractionLog:
    """Read `ml-100k.inter.gz` and `ml-100k.item` of a folder, in the order of the file.

    Ratings of 4 or 5 have label 1, lower ones label 0. Categories are the genres.

    Raises:
        LogFormatError: the content is unexpected.
    """
    folder = Path(folder)
    columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    ratings = read_table(folder / _INTERACTIONS, columns, delimiter="\t", quoted=False)
    stars = {str(value): value for value in range(1, 6)}
    rated = ratings.column("rating:float").convert(stars.__getitem__, "a rating from 1 to 5")

    films = read_table(folder / _FILMS, ["item_id:token", "class:token_seq"], delimiter="\t", quoted=False)
    genres = [tuple(text.split()) for text in films.column("class:token_seq").values]
    time = time_of("s")
    moments = ratings.column("timestamp:float").convert(time.convert, time.expected)
    return InteractionLog(
        user_ids=read_ids(ratings.column("user_id:token")),
        item_ids=read_ids(ratings.column("item_id:token")),
        labels=(np.array(rated) >= LIKED).astype(np.uint8),
        timestamps_ms=np.array(moments, np.int64),
        categories=dict(zip(read_ids(films.column("item_id:token")), genres, strict=True)),
    )


def is_ml_100k(folder: Path) -> bool:
    """Whether a folder holds the files of MovieLens 100k."""
    return (folder / _INTERACTIONS).is_file() and (folder / _FILMS).is_file()


_FIRST_MS, _END_MS = 1_388_534_400_000, 1_546_300_800_000
"""Start of 2014 and end of 2018, milliseconds since 1970."""

# The genres of 100k's u.item, whose last 19 columns are flags.
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_ml_latest(gathering: Gathering) -> Events:
    """`ratings.csv` and `movies.csv`, the format since MovieLens 20M; all ratings."""
    return _read_csv(gathering, all_years=True)


def read_ml_25m(gathering: Gathering) -> Events:
    """`ratings.csv` and `movies.csv`; only the ratings of 2014 to 2018 (UTC)."""
    return _read_csv(gathering, all_years=False)


def _read_csv(gathering: Gathering, all_years: bool) -> Events:
    def keep(block: pl.DataFrame) -> list[tuple[str, pl.Series]]:
        return [("ratings before 2014 or after 2018", block["timestamp"].is_between(_FIRST_MS, _END_MS, closed="left"))]

    names = ("userId", "movieId", "rating", "timestamp")
    events = _ratings(gathering, "ratings.csv", Layout(quoted=True), names, 0.5, None if all_years else keep)
    films = read_table(gathering.find("movies.csv"), ["movieId", "genres"])
    genres = [tuple(text.split("|")) for text in films.column("genres").values]
    return _with_genres(events, dict(zip(read_ids(films.column("movieId")), genres, strict=True)))


def read_ml_1m(gathering: Gathering) -> Events:
    """`ratings.dat` and `movies.dat`: values separated by "::", no header."""
    names = ("UserID", "MovieID", "Rating", "Timestamp")
    events = _ratings(gathering, "ratings.dat", Layout(delimiter="::", names=names), names, 1)
    path = gathering.find("movies.dat")
    films = {}
    for number, line in _lines(path):
        values = line.split("::")
        if len(values) != 3:
            raise LogFormatError(path, "a film's id, title and genres, separated by '::'", repr(line[:60]), line=number)
        films[values[0]] = tuple(values[2].split("|"))
    return _with_genres(events, films)


def read_ml_100k_files(gathering: Gathering) -> Events:
    """RecBole's two files, or GroupLens' `u.data` and `u.item`."""
    for place in gathering.folders():
        if is_ml_100k(place):
            for name in (_INTERACTIONS, _FILMS):
                gathering.read(place / name)
            return gathering.gather_log(read_ml_100k(place))
    names = ("user id", "item id", "rating", "timestamp")
    events = _ratings(gathering, "u.data", Layout(delimiter="\t", names=names), names, 1)
    path = gathering.find("u.item")
    films = {}
    for number, line in _lines(path):
        values = line.split("|")
        flags = values[-len(_GENRES_100K) :]
        if len(values) != 5 + len(_GENRES_100K) or not set(flags) <= {"0", "1"}:
            raise LogFormatError(path, "24 values, the last 19 of them 0 or 1", repr(line[:60]), line=number)
        films[values[0]] = tuple(genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1")
    return _with_genres(events, films)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a file of films with their numbers; the file may be compressed by gzip."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, error) from error
    for number, line in enumerate(content.split(b"\n"), start=1):  # `splitlines` would also split at 0x85
        if line.strip():
            yield number, line.decode("latin-1").rstrip("\r")


def _ratings(
    gathering: Gathering, name: str, layout: Layout, columns: tuple[str, str, str, str], least: float, keep: Keep = None
) -> Events:
    """Read a file of ratings from `least` to 5 stars; `columns` are user, film, rating and time."""
    gathering.folders()  # a folder is needed: ratings without films are not enough
    user, film, stars, time = columns
    readings = {user: identifier(), film: identifier(), stars: rating(LIKED, least, 5), time: time_of("s")}
    return gathering.gather(gathering.find(name), layout, readings, (user, film, time), label=stars, keep=keep)


def _with_genres(events: Events, films: dict[str, tuple[str, ...]]) -> Events:
    return replace(events, item_categories=[films.get(film, ()) for film in events.item_ids])


_POSITIVE = "a positive is a rating of at least 4"
ML_25M = Source(read=read_ml_25m, rule=("ratings of 2014 to 2018 (UTC)", _POSITIVE), unique=True)
ML_LATEST = Source(read=read_ml_latest, rule=("all ratings", _POSITIVE), unique=True)
ML_1M = Source(read=read_ml_1m, rule=("all ratings", _POSITIVE), unique=True)
ML_100K = Source(read=read_ml_100k_files, rule=("all ratings", _POSITIVE), unique=True)
