"""Compares the answers of servers with the scores of the plain torch forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


class WrongAnswers(Exception):
    """A server does not answer with the model's scores."""


def document_of(body: bytes) -> dict[str, Any]:
    """The document of an answer, or the only one where a server answers with a list.

    Raises:
        WrongAnswers: the body is no such document.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswers(f"expected a JSON document; received {body[:100]!r}") from None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict) or not isinstance(document.get("scores"), list):
        raise WrongAnswers(f"expected a document with scores; received {body[:100]!r}")
    return document


def check_scores(bodies: Sequence[bytes], expected: NDArray[np.float64], tolerance: float = 1e-5) -> None:
    """Require that the scores of the answers are those expected, [R, n].

    Raises:
        WrongAnswers: they differ by more than `tolerance`.
    """
    if len(bodies) != len(expected):
        raise WrongAnswers(f"expected {len(expected)} answers; received {len(bodies)}")
    for body, wanted in zip(bodies, expected, strict=True):
        scores = np.array(document_of(body)["scores"], dtype=np.float64)
        if scores.shape != wanted.shape:
            raise WrongAnswers(f"expected {len(wanted)} scores; received {scores.size}")
        if not (error := float(np.abs(scores - wanted).max())) <= tolerance:
            raise WrongAnswers(f"expected the scores of the torch model; received some that differ by {error:.1e}")


def like_ours(scores: NDArray[np.float64]) -> bytes:
    """A body as the real service would send it."""
    document = {
        "model_version": 1,
        "period": 1,
        "scores": scores.astype(np.float32),
        "cold_user": False,
        "cold_items": [],
        "history": "used",
        "request_id": "0" * 32,
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
