"""Avazu (Kaggle, 2014): ten days of advertisements shown on phones, `train.csv` (as published `train.gz`).

The log names neither users nor advertisements. A user is a `device_id`; of devices that hide it, most of them, all have
the same one, and the address and the model of the device are taken for the user. An item is a value of `C14`, of the
anonymous columns of the advertisement (C14–C17) the one with the most values; the others are what is known of it.
"""

import polars as pl

from asmg.datasets.columns import click, identifier
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.features import Field

__all__ = ["AVAZU", "read_avazu"]

HIDDEN = "a99f214a"
"""The `device_id` of all devices that hide theirs."""

FIELDS = {
    column: Field(column.lower(), "context", "categorical")
    for column in (
        "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
        "device_model", "device_type", "device_conn_type", "C18", "C19", "C20", "C21",
    )
} | {column: Field(column.lower(), "item", "categorical") for column in ("C15", "C16", "C17")}  # fmt: skip
"""Column → field. banner_pos is that of the space that is for sale, known before an advertisement is chosen for it, so
it is not learned in training alone."""


def read_avazu(gathering: Gathering) -> Events:
    """Every row; each hour's have the time at which it begins (UTC)."""
    readings = {name: identifier() for name in ("device_id", "device_ip", "device_model", "C14")}
    readings |= {"hour": time_of("%y%m%d%H"), "click": click()}

    def derive(block: pl.DataFrame) -> pl.DataFrame:
        device = pl.concat_str("device_ip", "device_model", separator=" ")
        return block.with_columns(user=pl.when(pl.col("device_id") == HIDDEN).then(device).otherwise("device_id"))

    path = gathering.find("train.csv", "train")
    columns = ("user", "C14", "hour")
    return gathering.gather(path, Layout(), readings, columns, label="click", derive=derive, fields=FIELDS)


AVAZU = Source(
    read=read_avazu,
    rule=(
        "every row is an impression, a positive where click is 1, at the beginning of its hour (UTC)",
        "the user is the device_id, or where the device hides it its address and model; the item is C14",
        "fields: C15 to C17 of the item, all else of the context; banner_pos is known before an item is chosen",
    ),
)
