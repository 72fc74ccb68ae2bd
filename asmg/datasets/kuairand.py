"""KuaiRand (CIKM 2022): what users of a video app were shown and clicked, `log_standard*.csv`, such as that of Pure.

`user_features*.csv` and `video_features_basic*.csv` have fields of users and videos. Columns about the reaction to a
video (is_like, long_view, play_time_ms …) are not read, because they are unknown before it is shown.
"""

from pathlib import Path

from asmg.datasets.columns import click, identifier
from asmg.datasets.events import Events, Ids, joined
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.features import Field
from asmg.log_format import LogFormatError

__all__ = ["KUAIRAND", "read_kuairand"]

_FILES, _USERS, _VIDEOS = "log_standard*.csv", "user_features*.csv", "video_features_basic*.csv"

TIMEZONE = "Asia/Shanghai"
"""Time zone of the app's users, and of the log's date and hour."""

CONTEXT = {"tab": Field("tab", "context", "categorical")}
"""Column of the log → field. `is_rand` is 0 in all of the standard log."""

USER = {
    column: Field(column, "user", "categorical")
    for column in (
        "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
        "fans_user_num_range", "friend_user_num_range", "register_days_range", *(f"onehot_feat{n}" for n in range(18)),
    )
} | {"register_days": Field("register_days", "user", "numeric", enter="log")}  # fmt: skip
"""Column of the users' file → field. Numbers that also exist as ranges are left out."""

VIDEO = {
    "author_id": Field("author", "item", "categorical"),
    "tag": Field("tag", "item", "multi", most=8),
    "video_type": Field("video_type", "item", "categorical"),
    "upload_type": Field("upload_type", "item", "categorical"),
    "upload_dt": Field("upload_day", "item", "categorical"),
    "music_type": Field("music_type", "item", "categorical"),
    "video_duration": Field(
        "duration", "item", "numeric", enter="buckets",
        buckets=(5e3, 7e3, 1e4, 1.5e4, 2e4, 3e4, 4.5e4, 6e4, 9e4, 1.2e5, 1.8e5, 3e5),
    ),
}  # fmt: skip
"""Column of the videos' file → field. The upload day is used instead of the age, because every period would bring ages
in days that no model has seen. The duration is in milliseconds."""


def read_kuairand(gathering: Gathering) -> Events:
    """Every row of all files, in the order of their names; a positive if the video was clicked."""
    readings = {
        "user_id": identifier(),
        "video_id": identifier(),
        "time_ms": time_of("ms"),
        "is_click": click(),
    }
    ids, columns = (Ids(), Ids()), ("user_id", "video_id", "time_ms")
    parts = [
        gathering.gather(gathering.read(path), Layout(), readings, columns, label="is_click", ids=ids, fields=CONTEXT)
        for path in _find_files(gathering)
    ]
    events = joined(parts, ids)
    layout = Layout(quoted=True)
    users = gathering.attributes(gathering.glob(_USERS), layout, "user_id", USER, events.user_ids, by="user")
    videos = gathering.attributes(
        gathering.glob(_VIDEOS), layout, "video_id", VIDEO, events.item_ids, by="item", separator=","
    )
    return events.with_fields(users | videos, timezone=TIMEZONE)


def _find_files(gathering: Gathering) -> list[Path]:
    """`raw` itself, or the log files in it or in one of its folders."""
    found = [gathering.raw] if gathering.raw.is_file() else gathering.glob(_FILES)
    if not found:
        raise LogFormatError(gathering.raw, f"files {_FILES} (or .gz) in it", "none")
    return found


KUAIRAND = Source(
    read=read_kuairand,
    rule=(
        "every row of the standard log is an impression, a positive where is_click is 1",
        "a row that repeats user, video, time and label of an earlier one is left out",
        "fields: tab, and what the files of users and videos say, where they are there; no outcome of an impression",
    ),
    unique=True,
)
