"""Public logs with fields, and one's own: small files of just the published form, and every value as it has to be."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from asmg.datasets import ColumnMap, LogOptions, read_log
from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.features import DEFAULT, Field, Schema
from asmg.log_format import LogFormatError
from tests.asmg.logs import DATA, needs
from tests.asmg.prepared_logs import BLOCKS, T0, ms, run, write

AT = T0 * 1000


def values(log: PreparedLog, name: str) -> list[Any]:
    """Of each interaction: a text or a list of texts, None for a missing number."""
    column = log.by_row(name)
    if column.field.kind == "numeric":
        return [None if np.isnan(number) else number for number in column.values.tolist()]
    several = [column.distinct[place] for place in column.values.tolist()]
    return several if column.field.kind == "multi" else [value for (value,) in several]


def table(log: PreparedLog, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(values(log, name) for name in names), strict=True))


def names_of(log: PreparedLog) -> dict[str, list[str]]:
    assert log.schema is not None and list(log.fields) == [field.name for field in log.schema.fields]
    return {of: [f.name for f in log.schema.of(of)] for of in ("context", "user", "item")}


# --- KuaiRand

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
SHOWN = [
    f"7,70,20140514,0,{AT},1,0,0,0,0,0,1,61802,49866,0,0,0,0,1",
    f"8,71,20140514,0,{AT + 1},0,0,0,0,0,0,0,0,11933,0,0,0,0,0",
    f"7,72,20140514,0,{AT + 2},0,0,0,0,0,0,0,0,0,0,0,0,0,12",
]
USERS_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{n}" for n in range(18))
)
USERS = [
    '7,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,1,29,949,,0,0,14,135,6,3,0,0.0,1.0,0,0,0,0',
    '9,low_active,0,1,1,5,"(0,10]",1,"[1,10)",3,"[1,5)",1474,730+,1,3,2,1160,4.0,0,0,31,283,6,2,2,1.0,0.0,1,0,0,0',
]
VIDEOS_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
VIDEOS = [
    "70,7349781,NORMAL,2014-04-10,LongImport,0.0,87433.0,720.0,1280.0,9155697141,9.0,39",
    '72,2103883,AD,2014-04-11,Kmovie,0.0,,720.0,1280.0,6355810746,,"68,39,2"',
    "70,1,AD,2014-04-11,Web,0.0,1.0,1.0,1.0,1,1.0,1",
]


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


@BLOCKS
@pytest.mark.parametrize("end", ["", ".gz"])
def test_kuairand(tmp_path: Path, end: str, block_bytes: int) -> None:
    raw = tmp_path / "KuaiRand-Pure" / "data"
    write(raw / f"log_standard_4_08_to_4_21_pure.csv{end}", lines(LOG_HEADER, *SHOWN[:2]))
    write(raw / f"log_standard_4_22_to_5_08_pure.csv{end}", lines(LOG_HEADER, *SHOWN[2:]))
    write(raw / f"user_features_pure.csv{end}", lines(USERS_HEADER, *USERS))
    write(raw / f"video_features_basic_pure.csv{end}", lines(VIDEOS_HEADER, *VIDEOS))
    card = run("kuairand", tmp_path / "KuaiRand-Pure", tmp_path / "out", block_bytes=block_bytes)
    log = read_prepared(tmp_path / "out")
    assert [source.file.removesuffix(".gz") for source in card.sources] == [f"data/{name}.csv" for name in (
        "log_standard_4_08_to_4_21_pure", "log_standard_4_22_to_5_08_pure", "user_features_pure",
        "video_features_basic_pure",
    )]  # fmt: skip
    names = names_of(log)
    assert names["context"] == ["hour", "weekday", "tab"] and len(names["user"]) == 27
    assert names["item"] == ["author", "tag", "video_type", "upload_type", "upload_day", "music_type", "duration"]
    outcomes = {"like", "follow", "comment", "forward", "hate", "long_view", "play", "stay", "enter", "click"}
    assert not [name for name in log.fields if any(part in name.split("_") for part in outcomes - {"follow"})]
    assert log.schema is not None and log.schema.timezone == "Asia/Shanghai"
    assert table(log, "tab") == [("1",), ("0",), ("12",)]
    users = table(log, "user_active_degree", "fans_user_num_range", "onehot_feat4", "onehot_feat13", "register_days")
    assert users == [("full_active", "[100,1k)", "", "1.0", 799), ("", "", "", "", None), *users[:1]]
    videos = table(log, "author", "tag", "upload_day", "music_type", "duration")
    assert videos == [
        ("7349781", ("39",), "2014-04-10", "9.0", 87_433),  # of two rows the first
        ("", ("",), "", "", None),
        ("2103883", ("2", "39", "68"), "2014-04-11", "", None),
    ]
    assert Schema.read(tmp_path / "out" / "features.toml") == log.schema == Schema.from_json(card.features or {})


def test_kuairand_without_the_files_beside_its_log(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw" / "log_standard_pure.csv", lines(LOG_HEADER, *SHOWN))
    for n, source in enumerate((raw, raw.parent)):
        run("kuairand", source, tmp_path / f"{n}")
        log = read_prepared(tmp_path / f"{n}")
        assert values(log, "tab") == ["1", "0", "12"]
    write(tmp_path / "raw" / "user_features_pure.csv", lines(USERS_HEADER, *USERS))
    run("kuairand", raw.parent, tmp_path / "users")
    log = read_prepared(tmp_path / "users")
    assert values(log, "user_active_degree") == ["full_active", "", "full_active"] and set(values(log, "author")) == {
        ""
    }
    run("kuairand", raw, tmp_path / "alone")  # the file alone is the file alone
    assert set(values(read_prepared(tmp_path / "alone"), "user_active_degree")) == {""}


@needs("kuairand")
def test_the_true_week_of_kuairand(tmp_path: Path) -> None:
    run("kuairand", DATA / "kuairand", tmp_path / "out")
    log = read_prepared(tmp_path / "out")
    assert sum(map(len, names_of(log).values())) == 2 + 1 + 27 + 7
    found = pl.read_csv(DATA / "kuairand" / "video_features_basic_pure.csv.gz", infer_schema=False)
    known = dict(zip(found["video_id"], found["tag"].fill_null(""), strict=True))
    ids = pl.read_parquet(tmp_path / "out" / "items.parquet")["id"].to_list()
    assert values(log, "tag") == [tuple(sorted(set(known[ids[item]].split(",")))) for item in log.item.tolist()]
    assert not np.isnan(log.by_row("register_days").values).any()


# --- Avazu

AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
AVAZU_ROWS = [
    "1000009418151094273,0,14102100,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,"
    "44956a24,1,2,15706,320,50,1722,0,35,-1,79",
    "10000169349117863715,1,14102100,1005,1,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,96809ac8,"
    "711ee120,1,0,15704,320,50,1722,0,35,100084,79",
    "10000371904215119486,0,14103123,1002,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,8b1aa260,b3cf8def,"
    "8a4875bd,1,0,15706,300,250,1722,0,35,100084,79",
]


@BLOCKS
@pytest.mark.parametrize("name", ["train.csv", "train.gz"])
def test_avazu(tmp_path: Path, name: str, block_bytes: int) -> None:
    write(tmp_path / "raw" / name, lines(AVAZU_HEADER, *AVAZU_ROWS))
    run("avazu", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    log = read_prepared(tmp_path / "out")
    users, items = (
        pl.read_parquet(tmp_path / "out" / f"{name}.parquet")["id"].to_list() for name in ("users", "items")
    )
    assert users == ["ddd2926e 44956a24", "96809ac8 711ee120", "8b1aa260"] and items == ["15706", "15704"]
    assert log.item.tolist() == [0, 1, 0] and log.label.tolist() == [0, 1, 0]
    assert log.timestamps_ms.tolist() == [ms(2014, 10, 21), ms(2014, 10, 21), ms(2014, 10, 31, 23)]
    names = names_of(log)
    assert names["user"] == [] and sorted(names["item"]) == ["c15", "c16", "c17"]
    assert len(names["context"]) == 2 + 15 and not {"click", "id", "c14"} & set(log.fields)
    assert table(log, "c15", "banner_pos", "c20") == [
        ("320", "0", "-1"),
        ("320", "1", "100084"),
        ("300", "0", "100084"),
    ]
    assert log.schema is not None and log.schema.time == ("hour", "weekday")
    assert not any(field.training_only for field in log.schema.fields)


# --- Criteo


def criteo_row(label: int, numbers: list[str], first: str) -> str:
    return "\t".join([str(label), *numbers, first, *(f"{n:08x}" for n in range(2, 27))])


@BLOCKS
def test_criteo(tmp_path: Path, block_bytes: int) -> None:
    rows = [
        criteo_row(0, ["1", "-3", "", *("5" for _ in range(10))], "68fd1e64"),
        criteo_row(1, ["2", "0", "44", *("" for _ in range(10))], ""),
        criteo_row(0, ["2", "0", "1", *("260" for _ in range(10))], "68fd1e64").replace(f"{3:08x}", ""),
    ]
    write(tmp_path / "raw" / "train.txt", lines(*rows))
    run("criteo", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    log = read_prepared(tmp_path / "out")
    assert log.timestamps_ms.tolist() == [0, 10, 20] and log.label.tolist() == [0, 1, 0]
    users, items = (
        pl.read_parquet(tmp_path / "out" / f"{name}.parquet")["id"].to_list() for name in ("users", "items")
    )
    assert (users, items) == (["00000003", "none"], ["0000000a"]) and log.user.tolist() == [0, 0, 1]
    assert names_of(log) == {
        "context": [*(f"i{n}" for n in range(1, 14)), *(f"c{n}" for n in range(1, 27) if n not in (3, 10))],
        "user": [], "item": [],
    }  # fmt: skip
    assert table(log, "i1", "i2", "i3", "i13", "c1", "c26") == [
        (1, -3, None, 5, "68fd1e64", "0000001a"), (2, 0, 44, None, "", "0000001a"),
        (2, 0, 1, 260, "68fd1e64", "0000001a"),
    ]  # fmt: skip


# --- Taobao Ad

SAMPLE = lines(
    "user,time_stamp,adgroup_id,pid,nonclk,clk",
    "581738,1494137644,1,430548_1007,1,0",
    "449818,1494638778,3,430548_1007,0,1",
    "914836,1494650879,1,430539_1007,1,0",
)
ADS = lines(
    "adgroup_id,cate_id,campaign_id,customer,brand,price",
    "1,6406,83237,1,95471,170.0",
    "3,392,83237,1,NULL,199.5",
)
PROFILES = lines(
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
    "new_user_class_level ",
    "581738,0,5,2,5,,3,0,3",
    "914836,5,2,2,2,1,3,1,",
)


def test_taobao_ad(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "raw_sample.csv", SAMPLE)
    write(tmp_path / "raw" / "ad_feature.csv.gz", ADS)
    write(tmp_path / "raw" / "user_profile.csv", PROFILES)
    run("taobao-ad", tmp_path / "raw", tmp_path / "out")
    log = read_prepared(tmp_path / "out")
    assert log.label.tolist() == [0, 1, 0] and log.timestamps_ms.tolist()[0] == ms(2017, 5, 7, 6, 14, 4)
    assert names_of(log) == {
        "context": ["hour", "weekday", "pid"],
        "user": ["cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
                 "occupation", "new_user_class_level"],
        "item": ["cate", "campaign", "customer", "brand", "price"],
    }  # fmt: skip
    assert table(log, "pid", "cate", "brand", "price") == [
        ("430548_1007", "6406", "95471", 170), ("430548_1007", "392", "", 199.5), ("430539_1007", "6406", "95471", 170)
    ]  # fmt: skip
    assert table(log, "age_level", "pvalue_level", "new_user_class_level") == [
        ("5", "", "3"),
        ("",) * 3,
        ("2", "1", ""),
    ]


# --- MIND

NEWS = lines(
    'N1\tsports\tfootball\tA "title\t\thttps://x\t[]\t[]',
    "N2\tnews\tworld\tB\tabstract\thttps://x\t[]\t[]",
    "N3\tsports\tsports\tC\tabstract\thttps://x\t[]\t[]",
)
PAGES = lines(
    "1\tU13740\t11/11/2019 9:05:58 AM\tN2 N1 N2 N99\tN1-0 N2-1",
    "2\tU91836\t11/12/2019 6:11:30 PM\t\tN3-0 N4-1 N1-0",
)


@BLOCKS
def test_mind(tmp_path: Path, block_bytes: int) -> None:
    write(tmp_path / "raw" / "MINDsmall_train" / "behaviors.tsv", PAGES)
    write(tmp_path / "raw" / "MINDsmall_train" / "news.tsv", NEWS)
    later = "1\tU13740\t11/15/2019 12:00:00 AM\tN1 N1 N1 N3\tN3-1\n"
    write(tmp_path / "raw" / "MINDsmall_dev" / "behaviors.tsv.gz", later)
    write(tmp_path / "raw" / "MINDsmall_dev" / "news.tsv.gz", NEWS + "N4\t\t\tD\t\thttps://x\t[]\t[]\n")
    card = run("mind", tmp_path / "raw", tmp_path / "out", block_bytes=block_bytes)
    log = read_prepared(tmp_path / "out")
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")["id"].to_list()
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    moments = [ms(2019, 11, 11, 9, 5, 58), ms(2019, 11, 12, 18, 11, 30), ms(2019, 11, 15)]
    assert [(users[u], items["id"][i], y, t) for u, i, y, t in zip(
        log.user.tolist(), log.item.tolist(), log.label.tolist(), log.timestamps_ms.tolist(), strict=True
    )] == [
        ("U13740", "N1", 0, moments[0]), ("U13740", "N2", 1, moments[0]), ("U91836", "N3", 0, moments[1]),
        ("U91836", "N4", 1, moments[1]), ("U91836", "N1", 0, moments[1]), ("U13740", "N3", 1, moments[2]),
    ]  # fmt: skip
    assert dict(zip(items["id"], items["categories"].to_list(), strict=True)) == {
        "N1": ["sports", "football"], "N2": ["news", "world"], "N3": ["sports"], "N4": []
    }  # fmt: skip
    # What the user had read before the first page, not what the later file says of the log's own week.
    assert values(log, "read_topics") == [("football", "world")] * 2 + [("",)] * 3 + [("football", "world")]
    assert card.rows_read == 3 and card.rows == 6


@pytest.mark.parametrize(("name", "files", "said"), [
    ("mind", {"behaviors.tsv": "1\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2\n"},
     "behaviors.tsv, line 1, column 'impressions': expected news with labels, such as 'N12-0 N7-1'; received 'N1 N2'"),
    ("mind", {"behaviors.tsv": "1\tU1\t2019-11-11\t\tN1-0\n"}, "line 1, column 'time': expected a time of the form"),
    ("mind", {"news.tsv": NEWS}, r"expected a file behaviors.tsv \(or .gz\) in it or in a folder in it; received none"),
    ("criteo", {"train.txt": criteo_row(0, ["x", *("1" for _ in range(12))], "a") + "\n"},
     r"line 1, column 'I1': expected a number from -1e\+30 to 1e\+30, or nothing; received 'x'"),
    ("criteo", {"train.txt": "1\t2\n"}, "train.txt, line 1: expected 40 values; received 2"),
    ("avazu", {"train.csv": lines(AVAZU_HEADER, AVAZU_ROWS[0].replace(",14102100,", ",2014102100,"))},
     "train.csv, line 2, column 'hour': expected a time of the form '%y%m%d%H'"),
    ("avazu", {"train.csv": lines(AVAZU_HEADER.replace(",C21", ",C22"), AVAZU_ROWS[0])}, "expected a column 'C21'"),
    ("taobao-ad", {"raw_sample.csv": SAMPLE.replace(",1,0\n", ",1,2\n")}, "'clk': expected 0 or 1; received '2'$"),
    ("taobao-ad", {"raw_sample.csv": SAMPLE, "ad_feature.csv": ADS.replace("170.0", "cheap")},
     "ad_feature.csv, line 2, column 'price': expected a number"),
    ("kuairand", {"log_standard_pure.csv": lines(LOG_HEADER, *SHOWN),
                  "user_features_pure.csv": USERS_HEADER.replace("onehot_feat17", "x") + "\n"},
     "user_features_pure.csv, line 1: expected a column 'onehot_feat17'"),
    ("kuairand", {"log_standard_pure.csv": lines(LOG_HEADER, *SHOWN), "video_features_basic_pure.csv": lines(
        VIDEOS_HEADER, VIDEOS[1].replace('"68,39,2"', f'"{",".join(map(str, range(9)))}"'))},
     "line 2, column 'tag': expected at most 8 values, separated by ','"),
])  # fmt: skip
def test_files_that_are_not_as_published(tmp_path: Path, name: str, files: dict[str, str], said: str) -> None:
    for file, content in files.items():
        write(tmp_path / "raw" / file, content)
    with pytest.raises(LogFormatError, match=said):
        run(name, tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_bad_rows_beside_a_log_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "raw_sample.csv", SAMPLE)
    write(tmp_path / "raw" / "ad_feature.csv", ADS.replace("170.0", "cheap"))
    card = run("taobao-ad", tmp_path / "raw", tmp_path / "out", malformed="drop")
    expected = "rows whose price is not a number from -1e+30 to 1e+30, or nothing, in ad_feature.csv"
    assert card.dropped == {expected: 1} and card.rows == card.rows_read == 3
    assert values(read_prepared(tmp_path / "out"), "price") == [None, 199.5, None]


@pytest.mark.parametrize(("name", "file", "content", "time"), [
    ("tmall", "user_log_format1.csv", "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
     + "".join(f"{u},{i},3,4,5,1011,0\n" for u in range(20) for i in range(2)), ("weekday",)),
    ("amazon", "a.csv", f"u,i,5.0,{T0}\n", ("weekday",)),
    ("diginetica", "period_00.txt.gz", "1 2\n", ()),
    ("diginetica", "train-item-views.csv", "sessionId;userId;itemId;timeframe;eventdate\n"
     + "1;NA;2;5;2016-05-09\n" * 5, ("weekday",)),
    ("yoochoose", "yoochoose-clicks.dat", "1,2014-04-07T10:51:09.277Z,214536502,0\n" * 5, ("hour", "weekday")),
    ("sobazaar", "Sobazaar-hashID.csv", "Action,UserID,ItemID,Timestamp\na,u,i,2014-10-01T10:00:00Z\n",
     ("hour", "weekday")),
])  # fmt: skip
def test_the_time_fields_are_those_that_a_source_tells(
    tmp_path: Path, name: str, file: str, content: str, time: tuple[str, ...]
) -> None:
    write(tmp_path / "raw" / file, content)
    run(name, tmp_path / "raw", tmp_path / "out")
    assert read_prepared(tmp_path / "out").schema == Schema((), "UTC", time)


# --- a log of one's own

OWN = lines(
    "user_id;item_id;label;timestamp;tab;price;author;Age;tags;heat",
    f"u1;i1;1;{T0};home; 1.5 ;7;;x|y;1e3",
    f"u2;i2;0;{T0 + 1};search;NaN;8;30;;-2.",
    f"u1;i2;1;{T0 + 2};;2;null;31;y|y|;",
)


def own(path: Path, **more: Any) -> LogOptions:
    write(path, OWN)
    return LogOptions(**more)


@BLOCKS
def test_kinds_are_guessed(tmp_path: Path, block_bytes: int) -> None:
    options = own(
        tmp_path / "log.csv", context={"hour": "hour", "tab": "tab"}, user_features={"age": "Age"},
        item_features={"price": "price", "author": "author", "label_text": "tags"}, timezone="Europe/Berlin",
    )  # fmt: skip
    run("log", tmp_path / "log.csv", tmp_path / "out", log=options, block_bytes=block_bytes)
    log = read_prepared(tmp_path / "out")
    assert log.schema == Schema((
        Field("tab", "context", "categorical"), Field("age", "user", "categorical"), Field("price", "item", "numeric"),
        Field("author", "item", "categorical"), Field("label_text", "item", "categorical"),
    ), "Europe/Berlin")  # fmt: skip
    # As of each row: the price of i2 is missing at first.
    assert table(log, "tab", "age", "price", "author") == [
        ("home", "", 1.5, "7"), ("search", "30", None, "8"), ("", "31", 2, ""),
    ]  # fmt: skip
    small = read_log(tmp_path / "log.csv", options)
    for name, column in small.fields.items():
        mine = log.by_row(name)
        if mine.field.kind == "numeric":
            assert np.array_equal(mine.values, column.values, equal_nan=True)
        else:
            texts = [[c.distinct[place] for place in c.values.tolist()] for c in (mine, column)]
            assert texts[0] == texts[1]
    assert list(small.take(np.array([2])).fields["price"].values) == [2]


def test_a_schema_says_the_kinds(tmp_path: Path) -> None:
    schema = Schema((
        Field("years", "user", "numeric", enter="buckets", buckets=(18, 31)), Field("tags", "item", "multi", 2),
        Field("price", "item", "categorical"), Field("heat", "context", "numeric", enter="log"),
    ), "Asia/Tokyo", ("hour",))  # fmt: skip
    options = own(tmp_path / "log.csv", features=schema, user_features={"years": "Age"})
    run("log", tmp_path / "log.csv", tmp_path / "out", log=options)
    log = read_prepared(tmp_path / "out")
    assert log.schema == schema
    assert table(log, "years", "tags", "price", "heat") == [
        (None, ("x", "y"), "1.5", 1000), (30, ("",), "", -2), (31, ("y",), "2", None)
    ]  # fmt: skip


def test_columns_of_parquet(tmp_path: Path) -> None:
    frame = pl.DataFrame({
        "user_id": ["u", "v"], "item_id": ["i", "j"], "label": [1, 0], "timestamp": [T0, T0 + 1],
        "whole": [1.0, None], "code": [3, None], "seen": [True, None], "tags": [["a", "b", "c"], None],
    })  # fmt: skip
    frame.write_parquet(tmp_path / "log.parquet")
    names = {name: name for name in ("whole", "code", "seen", "tags")}
    run("log", tmp_path / "log.parquet", tmp_path / "out", log=LogOptions(context=names))
    log = read_prepared(tmp_path / "out")
    assert [(field.kind, field.most) for field in (log.schema or DEFAULT).fields] == [
        ("numeric", 1), ("categorical", 1), ("categorical", 1), ("multi", 3)
    ]  # fmt: skip
    assert table(log, *names) == [(1, "3", "true", ("a", "b", "c")), (None, "", "", ("",))]
    schema = Schema((Field("whole", "context", "categorical"),))
    with pytest.raises(LogFormatError, match=r"column 'whole': expected text of at most 256 .*; received Float64"):
        run("log", tmp_path / "log.parquet", tmp_path / "more", log=LogOptions(features=schema))


def test_negatives_have_the_context_and_what_is_known_of_their_item(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", lines(
        "user_id,item_id,timestamp,tab,price,age", f"u,i,{T0},a,1.5,20", f"v,j,{T0 + 10},b,2.5,30",
        f"w,i,{T0 + 20},c,3.5,40", f"w,k,{T0 + 30},d,4.5,41",
    ))  # fmt: skip
    names = {"context": {"tab": "tab"}, "item_features": {"price": "price"}, "user_features": {"age": "age"}}
    run("log", tmp_path / "log.csv", tmp_path / "out", log=LogOptions(**names), negatives=3)  # type: ignore[arg-type]
    log = read_prepared(tmp_path / "out")
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")["id"].to_list()
    prices = {
        "i": [1.5, 1.5, 3.5, 3.5],
        "j": [2.5] * 4,
        "k": [4.5] * 4,
    }  # after each positive; before its first the first
    negatives = 0
    for row, (tab, price, age) in enumerate(table(log, "tab", "price", "age")):
        assert (tab, age) == ("abcd"[row // 4], ["20", "30", "40", "41"][row // 4])
        assert price == prices[items[log.item[row]]][row // 4]
        negatives += row % 4 > 0
        assert log.label[row] == (row % 4 == 0)
    assert negatives == 12 and {items[n] for n in log.item[1:4].tolist()} <= {"j", "k"}


@pytest.mark.parametrize(("options", "said"), [
    ({"context": {"Tab": "tab"}}, "fields.Tab: expected a name of at most 32 characters.*; a column of another name is "
                                  "given as name=column"),
    ({"context": {"label": "tab"}}, "fields.label: expected a name that is not reserved"),
    ({"context": {"tab": "nowhere"}}, "expected a column 'nowhere'"),
    ({"context": {"tab": "user_id"}}, "columns: expected a column of its own for each; received user_id, "),
    ({"context": {"tab": "tab"}, "item_features": {"tab": "author"}}, "fields.tab: expected a name that no other"),
    ({"features": Schema((Field("shop", "item", "categorical"),))}, "expected a column 'shop'"),
    ({"features": DEFAULT, "item_features": {"author": "author"}},
     r"item-feature: expected a field of the item that the schema has \(it has none\); received author"),
    ({"features": Schema((Field("tab", "context", "numeric"),))}, "line 2, column 'tab': expected a number"),
    ({"features": Schema((Field("tags", "item", "multi", 1),))}, "column 'tags': expected at most 1 values"),
])  # fmt: skip
def test_bad_fields_of_a_log(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    log = own(tmp_path / "log.csv", **options)
    with pytest.raises(ValueError, match=said):
        run("log", tmp_path / "log.csv", tmp_path / "out", log=log)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_public_logs_have_their_own_fields(tmp_path: Path) -> None:
    for options in (LogOptions(context={"tab": "tab"}), LogOptions(features=DEFAULT)):
        with pytest.raises(ValueError, match="features: expected none for kuairand, whose fields are known"):
            run("kuairand", tmp_path, tmp_path / "out", log=options)
    assert ColumnMap() == LogOptions().columns
