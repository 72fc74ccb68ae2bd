"""The snapshot of version 0, which is served before the first period is closed."""

import math
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmg.tensor_writer import Blocks
from service.serving.forward.interface import EPSILON
from service.serving.id_hashes import hash_ids
from service.serving.id_index import IdIndex
from service.serving.snapshot_file import QUESTIONS, write_snapshot

__all__ = ["prior_snapshot"]


def prior_snapshot(ctr: float) -> bytes:
    """The base of a model that knows no id and gives every candidate the score `ctr`, in (0, 1)."""
    widths = (24, 12, 6, 1)
    nobody, _ = IdIndex.of_hashes(np.empty(0, np.uint64), np.zeros(0))
    tensors: dict[str, NDArray[Any] | Blocks] = {}
    for kind in ("users", "items"):
        tensors |= {f"{kind}.hashes": nobody.hashes, f"{kind}.starts": nobody.starts}
        tensors[f"{kind}.vectors"] = np.zeros((1, 8), dtype=np.float32)
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        tensors[f"mlp.{layer}.weight"] = np.zeros((fan_out, fan_in), dtype=np.float32)
        tensors[f"mlp.{layer}.bias"] = np.zeros(fan_out, dtype=np.float32)
    tensors[f"mlp.{len(widths) - 2}.bias"] = np.array([math.log(ctr / (1 - ctr))], dtype=np.float32)
    score = min(max(ctr, EPSILON), 1 - EPSILON)
    # The request has a history, so that the check compiles, or loads, all code that a request needs.
    asked, history = (hash_ids(ids).tolist() for ids in (["anyone", "anything"], ["something"]))
    question = {"asked": asked, "history": history, "scores": [score]}
    model = {"dim": 8, "hidden": widths[1:-1], "categories": False}
    with BytesIO() as file:
        write_snapshot(file, "base", {"model": model, QUESTIONS: [question]}, tensors)
        return file.getvalue()
