"""Sobazaar: what users of a fashion app did from September to December 2014, `Sobazaar-hashID.csv.gz`.

The paper takes all of it: 842,660 rows of 17,126 users and 24,785 items (its authors' counts).
"""

from asmg.datasets.columns import identifier
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of

__all__ = ["SOBAZAAR", "read_sobazaar"]


def read_sobazaar(gathering: Gathering) -> Events:
    """All rows, each a positive."""
    readings = {"UserID": identifier(), "ItemID": identifier(), "Timestamp": time_of("utc")}
    path = gathering.find("Sobazaar-hashID.csv")
    return gathering.gather(path, Layout(quoted=True), readings, ("UserID", "ItemID", "Timestamp"))


SOBAZAAR = Source(read=read_sobazaar, rule=("every row, whatever the action, is a positive",))
