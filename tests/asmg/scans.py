"""Layouts, times and values for the tests of reading files."""

from datetime import UTC, datetime
from functools import partial

from hypothesis import strategies as st

from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.log_format import LATEST_MS

MAY_2014 = 1_400_000_000_000  # 2014-05-13T16:53:20Z

CSV = Layout(quoted=True)

BLANKS = Layout(quoted=True, blanks=True)

ever = partial(time_of, now_ms=LATEST_MS)  # so that no time is ahead of now


def ms(*moment: int) -> int:
    """Milliseconds since 1970 of a moment in UTC, by another way than that of the code."""
    return round(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


values = st.text(st.sampled_from("ab,\"\n\r é'€;"), max_size=6)
