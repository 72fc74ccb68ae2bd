"""DIGINETICA (CIKM Cup 2016): click sessions of a shop, cut into 17 periods by the authors of ADER (RecSys 2020)."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from asmg.datasets.log import InteractionLog
from asmg.datasets.reading import read_ids
from asmg.datasets.sampling import sample_negatives
from asmg.datasets.table import LogFormatError, Table

_WEEK_MS = 7 * 86_400_000
_LINE_MS = 5_000
_FILE = re.compile(r"period_(\d\d)\.txt\.gz")


def read_diginetica(folder: str | Path, rng: np.random.Generator) -> InteractionLog:
    """Reads the files `period_NN.txt.gz` of a folder, `session item` a line, and samples the negatives.

    The session plays the user. Each click is a positive and is followed by one negative, uniform over the items of all
    files that are not in the session so far. The source has no timestamps: line l (from 1) of file NN happened at
    NN × 7 days + l × 5 s after 1970 began. `period` is NN + 1. Raises LogFormatError for content of another form.
    """
    return sample_negatives(read_diginetica_clicks(folder), rng=rng, mode="so_far").log


def read_diginetica_clicks(folder: str | Path) -> InteractionLog:
    """The same log without negatives."""
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
        timestamps_ms=numbers * _WEEK_MS + lines * _LINE_MS,
        period=numbers + 1,
        positives_only=True,
    )


def is_diginetica(folder: Path) -> bool:
    """Whether a folder holds the period files."""
    return bool(_period_files(folder))


def _period_files(folder: Path) -> dict[int, Path]:
    """Number in the name → file, in ascending order."""
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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogFormatError(path, "a complete gzip file", f"one that is cut short or damaged ({error})") from error
    except UnicodeDecodeError as error:
        raise LogFormatError(path, "text in UTF-8", f"byte {error.object[error.start]:#04x}") from error
    return Table(path, {"session": sessions, "item": items}, range(1, len(items) + 1))
