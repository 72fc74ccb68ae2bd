"""Amazon reviews: the CSV files of user, item, rating and timestamp (seconds), one for each department."""

from asmg.datasets.columns import identifier, rating
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.movielens import LIKED
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.log_format import LogFormatError

__all__ = ["AMAZON", "read_amazon"]

_NAMES = ("user", "item", "rating", "timestamp")


def read_amazon(gathering: Gathering) -> Events:
    """All reviews; label 1: 4 or 5 stars. The header line may be missing."""
    path = gathering.raw
    if path.is_dir():
        files = sorted([*path.glob("*.csv"), *path.glob("*.csv.gz")])
        if len(files) != 1:
            received = ", ".join(file.name for file in files[:5]) or "none"
            raise LogFormatError(path, "one file .csv or .csv.gz in it, or the file itself", received)
        path = files[0]
    elif not path.is_file():
        raise LogFormatError(path, "a file or a folder", "nothing there")
    readings = {
        "user": identifier(),
        "item": identifier(),
        "rating": rating(LIKED, 1, 5),
        "timestamp": time_of("s"),
    }
    layout = Layout(names=_NAMES, header_optional=True, quoted=True)
    columns = ("user", "item", "timestamp")
    events = gathering.gather(gathering.read(path), layout, readings, columns, label="rating")
    return events.with_time("weekday")  # all of them are midnights


AMAZON = Source(
    read=read_amazon,
    rule=("every review, its columns being user, item, rating, timestamp; a positive has 4 or 5 stars",),
    unique=True,
)
