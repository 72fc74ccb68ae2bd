"""Logs that the tests of `asmg import` read, and a function that sorts one."""

import shutil
from pathlib import Path

from asmg.datasets import CutBy, LogOptions
from asmg.datasets.generic import find_form
from asmg.datasets.scan import Malformed
from asmg.features import Field, Schema
from service.cli.import_log.sorted_log import SortedLog
from service.cli.import_log.sorting import sort_log
from service.cli.import_log.temporary_database import open_database

SHOP = Schema((
    Field("device", "context", "categorical"), Field("tags", "context", "multi", 2),
    Field("age", "user", "categorical"),
    Field("price", "item", "numeric"), Field("brand", "item", "categorical"), Field("page", "context", "categorical"),
))  # fmt: skip
"""Fields of a shop; the log has no column for the page."""

SHOP_LOG = """user_id;item_id;timestamp;Device;tags;age;price;brand
u1;i1;1700000000;web;a|b;30;1.5;x
u2;i1;1700000001;app;;;1.5;x
u1;i2;1700000002;;;30;;
u1;i1;1700000003;web;b;31;2.5;
u1;i1;1700000004;web;;;2.5;
"""

HEAD = "user_id,item_id,label,timestamp\n"


def sort_file(
    path: Path, by: CutBy, log: LogOptions | None = None, *, malformed: Malformed = "error", negatives: int = 1
) -> SortedLog:
    """Sort a file in a database beside it."""
    folder = path.with_name("sorted")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    form = find_form(path, log or LogOptions())
    return sort_log(
        form,
        by,
        open_database(folder),
        malformed=malformed,
        negatives=negatives,
        seed=0,
        progress=lambda fraction: None,
    )
