"""DIGINETICA (CIKM Cup 2016): click sessions of a shop.

Either as published by the competition, or cut into 17 periods by the authors of ADER (RecSys 2020).
"""

import gzip
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from asmg.datasets.columns import identifier, read_ids, whole_number
from asmg.datasets.damage import GZIP_ERRORS, damaged_gzip, not_utf8
from asmg.datasets.events import Events, Ids, joined
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.log import InteractionLog
from asmg.datasets.sampling import sample_negatives
from asmg.datasets.scan import Layout
from asmg.datasets.table import Table
from asmg.datasets.time_forms import DAY_MS
from asmg.datasets.times import time_of
from asmg.log_format import LogFormatError

_WEEK_MS = 7 * DAY_MS
_LINE_MS = 5_000
_FILE = re.compile(r"period_(\d\d)\.txt\.gz")


def read_diginetica(folder: str | Path, rng: np.random.Generator) -> InteractionLog:
    """Read the files `period_NN.txt.gz` of a folder, with lines `session item`, and sample negatives.

    The session is the user. Each click is a positive, followed by one negative that is uniform over the items of all
    files that are not in the session so far. The source has no timestamps: line l (from 1) of file NN gets the time
    NN × 7 days + l × 5 s after the start of 1970 (less than 5 s if a file has too many lines for a week). `period` is
    NN + 1.

    Raises:
        LogFormatError: the content is unexpected.
    """
    return sample_negatives(read_diginetica_clicks(folder), rng=rng, mode="so_far").log


def read_diginetica_clicks(folder: str | Path) -> InteractionLog:
    """The log of `read_diginetica` without negatives."""
    folder = Path(folder)
    files = _period_files(folder)
    if not files:
        raise LogFormatError(folder, "files period_NN.txt.gz", "none")
    tables = [_read_period(path) for path in files.values()]
    counts = [len(table.lines) for table in tables]
    numbers = np.repeat(np.array(list(files), np.int64), counts)
    lines = np.concatenate([np.asarray(table.lines, np.int64) for table in tables])
    return InteractionLog(
        user_ids=np.concatenate([read_ids(table.column("session")) for table in tables]),
        item_ids=np.concatenate([read_ids(table.column("item")) for table in tables]),
        labels=np.ones(len(lines), np.uint8),
        timestamps_ms=numbers * _WEEK_MS + lines * _line_ms(max(counts)),
        period=numbers + 1,
        positives_only=True,
    )


def is_diginetica(folder: Path) -> bool:
    """Whether a folder holds period files."""
    return bool(_period_files(folder))


def _period_files(folder: Path) -> dict[int, Path]:
    """Number in the name → file, ascending."""
    matches = ((_FILE.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {int(match[1]): path for match, path in matches if match}


def _read_period(path: Path) -> Table:
    sessions, items = [], []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                words = line.split()
                if len(words) != 2:
                    raise LogFormatError(path, "a session and an item", repr(line.rstrip("\n")[:60]), line=number)
                sessions.append(words[0])
                items.append(words[1])
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    return Table(path, {"session": sessions, "item": items}, range(1, len(items) + 1))


def find_period_files(gathering: Gathering) -> dict[int, Path]:
    """Number → period file: `raw` itself, or those in `raw` or in one of its folders; may be empty."""
    if gathering.raw.is_file():
        match = _FILE.fullmatch(gathering.raw.name)
        return {int(match[1]): gathering.raw} if match else {}
    return next((found for place in gathering.folders() if (found := _period_files(place))), {})


def read_period_files(gathering: Gathering, files: Mapping[int, Path]) -> Events:
    """The clicks of period files, each a positive; see `read_diginetica` for their times."""
    layout, ids = Layout(delimiter=" ", names=("session", "item")), (Ids(), Ids())
    parts = [
        gathering.gather(
            gathering.read(path),
            layout,
            {"session": identifier(), "item": identifier()},
            ("session", "item", "time"),
            derive=lambda block: block.with_columns(time=pl.lit(0, pl.Int64)),
            ids=ids,
        )
        for path in files.values()
    ]
    step = _line_ms(max(map(len, parts)))
    times = [number * _WEEK_MS + np.arange(1, len(part) + 1) * step for number, part in zip(files, parts, strict=True)]
    return replace(joined(parts, ids), timestamps_ms=np.concatenate(times)).with_time()


def _line_ms(lines: int) -> int:
    """Milliseconds between lines, so that a file with this many lines ends within its week."""
    return min(_LINE_MS, (_WEEK_MS - 1) // max(1, lines))


def read_diginetica_raw(gathering: Gathering) -> Events:
    """The item views, each a positive, of period files or of the competition's `train-item-views.csv`.

    The time of a view in the latter is midnight (UTC) of its `eventdate` plus `timeframe` milliseconds.
    """
    if files := find_period_files(gathering):
        return read_period_files(gathering, files)
    readings = {
        "sessionId": identifier(),
        "itemId": identifier(),
        "timeframe": whole_number(0, 365 * DAY_MS),
        "eventdate": time_of("utc"),
    }
    events = gathering.gather(
        gathering.find("train-item-views.csv"),
        Layout(delimiter=";"),
        readings,
        ("sessionId", "itemId", "eventdate"),
        derive=lambda block: block.with_columns(pl.col("eventdate") + pl.col("timeframe")),
    )
    return leave_out_rare(gathering, events.with_time("weekday"))


def leave_out_rare(gathering: Gathering, events: Events) -> Events:
    """Drop items with fewer than 5 clicks, then sessions with a single click, as was done for the period files."""
    clicks = np.bincount(events.item, minlength=len(events.item_ids))
    events = gathering.leave_out(events, clicks[events.item] >= 5, "clicks on items with fewer than 5 of them")
    clicks = np.bincount(events.user, minlength=len(events.user_ids))
    return gathering.leave_out(events, clicks[events.user] >= 2, "clicks of sessions with a single one of those")


PERIOD_FILE_TIMES = "period files have no times: line l of file N is taken to be N weeks and l × 5 s after 1970 began"
DIGINETICA = Source(
    read=read_diginetica_raw,
    rule=(
        "every view of an item is a positive, the session plays the user",
        "of the raw file: items with at least 5 views, then sessions with at least 2 (of period files: all)",
        PERIOD_FILE_TIMES,
    ),
    whole_sessions=True,
)
