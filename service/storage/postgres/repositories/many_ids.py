"""How hundreds of thousands of ids travel between the service and Postgres: in pages, and not as arrays.

asyncpg makes an array element by element on the event loop, a third of a millisecond for a thousand texts, and a
parameter holds at most 1 GB. So a page of ids is one text with separators, which Postgres splits, and rows come back as
bytes, which numpy reads.
"""

from collections.abc import Iterator, Sequence
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

__all__ = ["IDS_PER_PAGE", "array_text", "int_array", "joined", "pages_of", "split_texts"]

IDS_PER_PAGE = 50_000
"""Ids of one statement: few round trips for a million, a few milliseconds of encoding, and far from 1 GB with the
longest ids."""

SEPARATOR = "\x1f"
"""Stands between the ids of a page where no id contains it, else a random text does."""


def pages_of(ids: Sequence[str], size: int = IDS_PER_PAGE) -> Iterator[Sequence[str]]:
    """The ids in their order, `size` at a time."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def joined(ids: Sequence[str]) -> tuple[str, str]:
    """The ids (at least one) as one text, and what stands between them: the arguments of `string_to_array`."""
    text = SEPARATOR.join(ids)
    if text.count(SEPARATOR) < len(ids):
        return text, SEPARATOR
    separator = uuid4().hex
    return separator.join(ids), separator


def split_texts(data: bytes | None) -> list[str]:
    """The texts that Postgres has joined as bytes of UTF-8 with a zero byte between them; none where it found none.

    No text of Postgres contains a zero byte.
    """
    return [] if data is None else data.decode().split("\0")


def int_array(data: bytes | None) -> NDArray[np.int64]:
    """The integers that Postgres has joined by `int4send`; none where it found none."""
    return np.frombuffer(data or b"", ">i4").astype(np.int64)


def array_text(rows: NDArray[np.int64]) -> str:
    """Integers as the text of an array, which Postgres reads ten times faster than asyncpg makes an array."""
    return f"{{{','.join(map(str, rows.tolist()))}}}"
