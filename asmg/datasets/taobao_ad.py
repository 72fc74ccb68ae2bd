"""Taobao Ad (Alibaba, Tianchi): eight days of May 2017 of advertisements shown in a shop, `raw_sample.csv`.

`ad_feature.csv` and `user_profile.csv` have fields of advertisements and users; `behavior_log.csv` is not read.
"""

from asmg.datasets.columns import click, identifier
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Source
from asmg.datasets.scan import Layout
from asmg.datasets.times import time_of
from asmg.features import Field

__all__ = ["TAOBAO_AD", "read_taobao_ad"]

TIMEZONE = "Asia/Shanghai"
"""Time zone of the shop's customers."""

CONTEXT = {"pid": Field("pid", "context", "categorical")}
"""Column of the log → field: the place in the shop."""

USER = {
    column: Field(column, "user", "categorical")
    for column in (
        "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
        "new_user_class_level",
    )
}  # fmt: skip
"""Column of the users' file → field."""

AD = {
    "cate_id": Field("cate", "item", "categorical"),
    "campaign_id": Field("campaign", "item", "categorical"),
    "customer": Field("customer", "item", "categorical"),
    "brand": Field("brand", "item", "categorical"),
    "price": Field("price", "item", "numeric", enter="log"),
}
"""Column of the advertisements' file → field."""


def read_taobao_ad(gathering: Gathering) -> Events:
    """Every row; a positive if the advertisement was clicked."""
    readings = {"user": identifier(), "adgroup_id": identifier(), "time_stamp": time_of("s"), "clk": click()}
    layout = Layout(blanks=True)  # the published header of the users' file has a blank after its last name
    columns = ("user", "adgroup_id", "time_stamp")
    path = gathering.find("raw_sample.csv")
    events = gathering.gather(path, layout, readings, columns, label="clk", fields=CONTEXT)
    users, ads = (gathering.glob(name) for name in ("user_profile.csv", "ad_feature.csv"))
    of_users = gathering.attributes(users, layout, "userid", USER, events.user_ids, by="user")
    of_ads = gathering.attributes(ads, layout, "adgroup_id", AD, events.item_ids, by="item")
    return events.with_fields(of_users | of_ads, timezone=TIMEZONE)


TAOBAO_AD = Source(
    read=read_taobao_ad,
    rule=(
        "every row is an impression, a positive where clk is 1; the item is the adgroup_id",
        "fields: pid, and what the files of users and advertisements say, where they are there",
    ),
)
