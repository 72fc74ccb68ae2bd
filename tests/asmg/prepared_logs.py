"""A prepared log, and the slow, obvious version of what it has to hold."""

import gzip
import hashlib
import json
import random
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import strategies as st

from asmg.datasets.card import Card
from asmg.datasets.prepare import PrepareOptions, prepare
from asmg.datasets.prepared import read_prepared

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


TMALL_HEADER = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"


def random_clicks(
    count: int, seed: int, users: int = 12, items: int = 15, times: int = 40
) -> list[tuple[str, str, int]]:
    """User, item and a second: in no order, with repeats and ties."""
    rng = random.Random(seed)
    found = [(f"u{rng.randrange(users)}", f"{rng.randrange(items)}", T0 + rng.randrange(times)) for _ in range(count)]
    return found + found[3:6]


KUAIRAND_HEADER = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,play_time_ms,is_rand,tab"


def random_ratings(count: int, seed: int, stars: list[str]) -> list[tuple[str, str, str, int]]:
    rng = random.Random(seed)
    return [(user[1:], item, rng.choice(stars), second) for user, item, second in random_clicks(count, seed)] + [
        ("1", "2", stars[0], T0), ("1", "2", stars[0], T0), ("1", "2", stars[-1], T0)
    ]  # fmt: skip


def flags(*numbers: int) -> str:
    return "|".join("1" if n in numbers else "0" for n in range(19))


events = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(T0, T0 + 4)), min_size=1, max_size=25
)
