"""KuaiRand (CIKM 2022): what users of a video app were shown and clicked, `log_standard*.csv`, such as that of Pure.

Only ids and time are read: what else the files say of an impression is not known to a model before it is shown.
"""

from dataclasses import replace
from pathlib import Path

from asmg.datasets.columns import identifier, labels
from asmg.datasets.gathering import Events, Gathering, Ids, Source, joined
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.log_format import LogFormatError

__all__ = ["KUAIRAND", "read_kuairand"]

_FILES = "log_standard*.csv"


def read_kuairand(gathering: Gathering) -> Events:
    """Every row of all files, in the order of their names; it is a positive where the video was clicked."""
    readings = {
        "user_id": identifier(),
        "video_id": identifier(),
        "time_ms": time_of("ms"),
        "is_click": replace(labels(), hint=lambda value: ""),  # its options are for a log of one's own
    }
    ids, columns = (Ids(), Ids()), ("user_id", "video_id", "time_ms")
    parts = [
        gathering.gather(gathering.read(path), Layout(), readings, columns, label="is_click", ids=ids)
        for path in _find_files(gathering)
    ]
    return joined(parts, ids)


def _find_files(gathering: Gathering) -> list[Path]:
    """`raw` itself, or the files in it or in a folder in it; of one that is there plain and compressed, the plain."""
    if gathering.raw.is_file():
        return [gathering.raw]
    for place in gathering.folders():
        plain = {path.name: path for path in place.glob(_FILES)}
        found = {path.stem: path for path in place.glob(f"{_FILES}.gz")} | plain
        if found:
            return [found[name] for name in sorted(found)]
    raise LogFormatError(gathering.raw, f"files {_FILES} (or .gz) in it", "none")


KUAIRAND = Source(
    read=read_kuairand,
    rule=(
        "every row of the standard log is an impression, a positive where is_click is 1",
        "a row that repeats user, video, time and label of an earlier one is left out",
    ),
    unique=True,
)
