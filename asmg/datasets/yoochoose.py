"""YOOCHOOSE (RecSys Challenge 2015): click sessions, `yoochoose-clicks.dat` or period files as DIGINETICA's."""

from asmg.datasets.columns import identifier
from asmg.datasets.diginetica import PERIOD_FILE_TIMES, find_period_files, leave_out_rare, read_period_files
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of

__all__ = ["YOOCHOOSE", "read_yoochoose"]

_NAMES = ("session", "timestamp", "item", "category")


def read_yoochoose(gathering: Gathering) -> Events:
    """The clicks, each a positive; the session plays the user."""
    if files := find_period_files(gathering):
        return read_period_files(gathering, files)
    readings = {"session": identifier(), "timestamp": time_of("utc"), "item": identifier()}
    path = gathering.find("yoochoose-clicks.dat")
    events = gathering.gather(path, Layout(names=_NAMES), readings, ("session", "item", "timestamp"))
    return leave_out_rare(gathering, events)


YOOCHOOSE = Source(
    read=read_yoochoose,
    rule=(
        "every click is a positive, the session plays the user; what the file calls category is left aside",
        "of the raw file: items with at least 5 clicks, then sessions with at least 2 (of period files: all)",
        PERIOD_FILE_TIMES,
    ),
    whole_sessions=True,
)
