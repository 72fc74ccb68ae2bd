"""MIND (ACL 2020): what readers of Microsoft News were shown and clicked in a week or two, `behaviors.tsv`, `news.tsv`.

Each row of behaviors.tsv is a page of several impressions, N1-0 N2-1 …. Its column of earlier clicks has no times, so
histories are made of the log's own clicks; that column only gives the topics that the user had read before.
"""

import re
from dataclasses import replace
from pathlib import Path

import polars as pl

from asmg.datasets.columns import Reading, identifier, text
from asmg.datasets.events import Events, Ids, joined
from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.features import Field
from asmg.log_format import LogFormatError

__all__ = ["MIND", "read_mind"]

TOPICS = Field("read_topics", "user", "multi", most=8)
"""The most frequent subcategories of a user's clicks before the log."""

_BEHAVIORS, _NEWS = "behaviors.tsv", "news.tsv"
_PAGES = Layout(delimiter="\t", names=("impression", "user", "time", "history", "impressions"))
_ARTICLES = Layout(
    delimiter="\t",
    names=("news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
)
_SHOWN = "N[0-9]{1,9}-[01]"


def read_mind(gathering: Gathering) -> Events:
    """Every impression of all pages, of one folder or several, such as train and dev; times are read as UTC.

    The impressions of a page have the same time. The categories of an item are its category and subcategory.
    """
    places = [place for place in gathering.folders() if gathering.files_in(place, _BEHAVIORS)]
    if not places:
        raise LogFormatError(gathering.raw, f"a file {_BEHAVIORS} (or .gz) in it or in a folder in it", "none")
    pages = [gathering.files_in(place, _BEHAVIORS)[0] for place in places]
    news = _read_news(gathering, [path for place in places for path in gathering.files_in(place, _NEWS)])
    ids = (Ids(), Ids())
    readings = {"user": identifier(), "time": _time(), "impressions": _impressions()}
    parts = [
        gathering.gather(
            gathering.read(path), _PAGES, readings, ("user", "item", "time"), label="label", derive=_apart, ids=ids
        )
        for path in pages
    ]
    events = joined(parts, ids).with_fields({TOPICS.name: _topics(gathering, pages, news, ids[0].names())})
    known = dict(zip(news["news"], zip(news["category"], news["subcategory"], strict=True), strict=True))
    categories = [tuple(dict.fromkeys(filter(None, known.get(item, ())))) for item in events.item_ids]
    return replace(events, item_categories=categories) if news.height else events


def _time() -> Reading:
    return time_of("%m/%d/%Y %I:%M:%S %p")


def _impressions() -> Reading:
    """Impressions separated by blanks, each a news id, - and the label."""

    def convert(value: str) -> str:
        if not re.fullmatch(f"{_SHOWN}( {_SHOWN})*", value):
            raise ValueError
        return value

    def parse(column: pl.Expr) -> pl.Expr:
        return pl.when(column.str.contains(f"^{_SHOWN}( {_SHOWN})*$")).then(column)

    return Reading(pl.String, parse, convert, "news with labels, such as 'N12-0 N7-1'")


def _apart(block: pl.DataFrame) -> pl.DataFrame:
    """One row per impression of a page."""
    block = block.with_columns(pl.col("impressions").str.split(" ")).explode("impressions")
    shown = pl.col("impressions")
    return block.with_columns(item=shown.str.head(-2), label=shown.str.tail(1).cast(pl.UInt8))


def _read_news(gathering: Gathering, paths: list[Path]) -> pl.DataFrame:
    """The distinct news of several files with their categories."""
    readings = {"news": identifier(), "category": text(), "subcategory": text()}
    found = [pl.DataFrame(schema={name: pl.String for name in readings})]
    for path in paths:
        found += gathering.beside(path, _ARTICLES, readings)
    return pl.concat(found).unique("news", keep="first", maintain_order=True)


def _topics(gathering: Gathering, pages: list[Path], news: pl.DataFrame, users: list[str]) -> FieldColumn:
    """The most frequent subcategories among the earlier clicks on each user's first page."""
    readings, topic = {"user": identifier(), "time": _time(), "history": text()}, TOPICS.name
    found = [
        block.sort("time", maintain_order=True).unique("user", keep="first", maintain_order=True)
        for path in pages
        for block in gathering.scan(path, _PAGES, readings).blocks()
    ]
    first = pl.concat(found).sort("time", maintain_order=True).unique("user", keep="first", maintain_order=True)
    topics = news.filter(pl.col("subcategory") != "").select("news", pl.col("subcategory").alias(topic))
    clicks = first.select("user", pl.col("history").str.split(" ").alias("news")).explode("news")
    counts = clicks.join(topics, on="news", maintain_order="left").group_by("user", topic, maintain_order=True).len()
    counts = counts.sort("len", descending=True, maintain_order=True)
    lists = counts.group_by("user", maintain_order=True).agg(pl.col(topic).head(TOPICS.most))
    known = dict(zip(lists["user"], lists[topic].to_list(), strict=True))
    return FieldColumn.of(TOPICS, (known.get(user) for user in users), "user")


MIND = Source(
    read=read_mind,
    rule=(
        "every impression of a page, a positive where it is -1; those of a page have one time, which is read as UTC",
        "categories are category and subcategory; the field read_topics is made of the column of earlier clicks, "
        "as of a user's first page",
    ),
)
