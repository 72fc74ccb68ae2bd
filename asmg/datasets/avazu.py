"""Avazu (Kaggle, 2014): ten days of advertisements shown on phones, `train.csv` (as published `train.gz`).

The log has no ids of users or advertisements. The user is the `device_id`; most devices hide it and share one value,
for these the user is the device's address and model. The item is the value of `C14`, the one of the anonymous columns
of the advertisement (C14–C17) with the most values; the others are its fields.
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
"""The `device_id` of devices that hide theirs."""

FIELDS = {
    column: Field(column.lower(), "context", "categorical")
    for column in (
        "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
        "device_model", "device_type", "device_conn_type", "C18", "C19", "C20", "C21",
    )
} | {column: Field(column.lower(), "item", "categorical") for column in ("C15", "C16", "C17")}  # fmt: skip
"""Column → field. banner_pos belongs to the space for sale and is known before an advertisement is chosen, so it is not
training-only."""


def read_avazu(gathering: Gathering) -> Events:
    """Every row; its time is the start of its hour (UTC)."""
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
