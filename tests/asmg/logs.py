"""Small logs: a prepared one from which something can be learned, logs in memory, and the folder of public logs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from asmg.datasets import InteractionLog, SamplingMode
from asmg.datasets.prepared import write_prepared


def prepare_small(folder: Path, *, rows: int = 1_603, seed: int = 0, users: int = 60, items: int = 40) -> Path:
    """Users with tastes and items with places and one or two of five categories; ids appear little by little."""
    rng = np.random.default_rng(seed)
    taste, place = rng.normal(size=(users, 2)), rng.normal(size=(items, 2))
    share = np.linspace(0.5, 1, rows)
    user = (rng.random(rows) * share * users).astype(int)
    item = (rng.random(rows) * share * items).astype(int)
    label = rng.random(rows) < 1 / (1 + np.exp(-2 * (taste[user] * place[item]).sum(1)))
    numbers = [list(dict.fromkeys(ids.tolist())) for ids in (user, item)]
    user_ids, item_ids = ([f"{kind}{n}" for n in known] for kind, known in zip("ui", numbers, strict=True))
    log = pl.DataFrame(
        {
            "user": [numbers[0].index(n) for n in user],
            "item": [numbers[1].index(n) for n in item],
            "label": label.astype(int),
            "timestamp": 1_400_000_000_000 + np.sort(rng.integers(rows, size=rows)) * 1_000,
        }
    )
    categories = [[f"c{n % 5}", f"c{n % 3}"] if n % 3 != n % 5 else [f"c{n % 5}"] for n in numbers[1]]
    card = {
        "dataset": "small", "rows": rows, "positives": int(label.sum()), "users": len(user_ids),
        "items": len(item_ids), "categories": 5, "first": "2014-05-13T16:53:20Z", "last": "2014-05-13T17:20:03Z",
        "rule": ("all of it",), "seed": None, "negatives_per_positive": 0, "without_negative": 0, "sources": (),
        "rows_read": rows, "dropped": {}, "duplicates_kept": 0, "out_of_order": 0, "asmg_version": "0",
    }  # fmt: skip
    frames = pl.DataFrame({"id": user_ids}), pl.DataFrame({"id": item_ids, "categories": categories})
    write_prepared(folder, log, *frames, card)
    return folder


DATA = Path(os.environ.get("ASMG_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

MODES: list[SamplingMode] = ["whole_log", "so_far"]


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(), reason=f"no {folder} in {DATA}; ASMG_TEST_DATA names the folder of the real logs"
    )


def make_log(rows: list[tuple[str, str, int]], **more: Any) -> InteractionLog:
    """A log of positives: (user, item, time in ms) a row."""
    return InteractionLog(
        user_ids=np.array([row[0] for row in rows], np.object_),
        item_ids=np.array([row[1] for row in rows], np.object_),
        labels=np.ones(len(rows), np.uint8),
        timestamps_ms=np.array([row[2] for row in rows], np.int64),
        positives_only=True,
        **more,
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


positive_logs = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 6)), min_size=1, max_size=30
).map(make_log)
