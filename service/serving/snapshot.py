"""One model version, ready to predict.

`service.serving.loading` opens a snapshot from its file; `service.use_cases.predict` calls `Snapshot.score` for each
prediction.
"""

import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.layout import HISTORY_LENGTH
from service.serving.fields import NO_VALUES, FieldReader, FieldValues
from service.serving.forward.compiled import compiled_forward
from service.serving.forward.interface import Forward
from service.serving.id_hashes import Hashes, hash_ids
from service.serving.snapshot_file import read_header
from service.serving.tensor_file import PAUSE_SECONDS, PIECE_BYTES, TensorFile

__all__ = ["NOTHING_RECENT", "CanaryFailed", "Prediction", "Snapshot"]

CANARY_TOLERANCE = 1e-5
"""The largest difference of a score of the canary: that of float32 sums in another order."""

NOTHING_RECENT = np.zeros(3, np.int32)
"""The recent past of a user of whom nothing is known; never written to. It is not read-only, because then it would have
another type than the others, and the machine code would be compiled once more for it."""


class CanaryFailed(ValueError):
    """A snapshot gives other scores here than where it was written."""


class Prediction(NamedTuple):
    """The scores of N items for one user."""

    scores: NDArray[np.float32]
    """Click probabilities in the order of the items, [N], each in (0, 1)."""
    cold_user: bool
    """Whether the user is unknown to the model."""
    cold_items: NDArray[np.int32]
    """Positions of the items that are unknown to the model, ascending."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One model version, ready to predict. Nothing in it ever changes."""

    version: int
    """The model version."""
    period: int
    """The last period it learned from; 0 for the prior."""
    meta: Mapping[str, Any]
    """The header: `model`, the configuration, `canary`, and `fields` for a model with fields."""
    tensors: Mapping[str, NDArray[Any]]
    """Read-only views of the file (`service.serving.snapshot_file`)."""
    mapping: mmap.mmap = field(repr=False)
    """The file's pages."""
    forward: Forward = field(repr=False)
    fields: FieldReader | None = field(repr=False)
    """Reads the fields of a request; None for a model without fields."""
    source: Path | None = None
    """The file that the pages were copied from (`service.serving.sealed`); None where they are the file's own."""

    @classmethod
    def open(cls, pages: Path | mmap.mmap, version: int, period: int) -> "Snapshot":
        """Open the snapshot in a file, or in the pages of one; reads the header only.

        Raises:
            CheckpointError: the file is no snapshot.
        """
        file = TensorFile(pages)
        meta = read_header(file)
        config = meta["model"]
        fields = FieldReader.from_json(meta["fields"]) if config.get("fields") else None
        return cls(version, period, meta, file.tensors, file.mapping, compiled_forward(config, file.tensors), fields)

    def release_pages(self) -> None:
        """Give the memory of its pages back in pieces.

        It can still be used: its pages are then mapped again. Whoever drops the last reference frees it quickly
        afterwards. To unmap gigabytes at once would block the event loop, if that dropped it.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for start in range(0, len(self.mapping), PIECE_BYTES):
                self.mapping.madvise(mmap.MADV_DONTNEED, start, min(PIECE_BYTES, len(self.mapping) - start))
                time.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """Compute the scores of the canary and compare them with those in the file.

        Raises:
            CanaryFailed: one is different.
        """
        for question in self.meta["canary"]:
            scores = self.score(*_canary_request(question)).scores
            worst = float(np.abs(scores - np.array(question["scores"], dtype=np.float32)).max())
            if not worst <= CANARY_TOLERANCE:
                raise CanaryFailed(
                    f"model version {self.version}: expected the scores of the canary to {CANARY_TOLERANCE}; "
                    f"received some that are {worst:.1g} off"
                )

    def predict(
        self,
        user_id: str,
        items: Sequence[str],
        history: Sequence[str],
        recent: NDArray[np.int32] = NOTHING_RECENT,
        values: FieldValues = NO_VALUES,
    ) -> Prediction:
        """Score candidates for one user.

        Args:
            user_id: may be unknown.
            items: ids of the candidates; may be unknown.
            history: ids of the items that the user clicked, newest first; the first 30 count.
            recent, values: as of `score`.
        """
        return self.score(hash_ids([user_id, *items]), hash_ids(history[:HISTORY_LENGTH]), recent, values)

    def score(
        self,
        hashes: Hashes,
        history: Hashes,
        recent: NDArray[np.int32] = NOTHING_RECENT,
        values: FieldValues = NO_VALUES,
    ) -> Prediction:
        """`predict` with hashes in place of ids (`service.serving.id_hashes`).

        Args:
            hashes: of the user and of the N candidates, [1 + N].
            history: of at most 30 items.
            recent: what the user did of late, int32 [3], as `PeriodData.recent` has it: interactions of either label,
                clicks among the newest ten, clicks among all of them. Only models with statistics read it.
            values: of the request's fields, read by `fields`. Only models with fields read them.
        """
        n = len(hashes) - 1
        scores, cold = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.int32)
        cold_count, cold_user = self.forward(hashes, history, recent, values, scores, cold)
        return Prediction(scores, cold_user, cold[:cold_count])


def _canary_request(question: Mapping[str, Any]) -> tuple[Hashes, Hashes, NDArray[np.int32], FieldValues]:
    """A request of the canary as the arguments of `Snapshot.score`."""
    recent = np.array(question.get("recent", NOTHING_RECENT), np.int32)
    values = NO_VALUES
    if "values" in question:
        kinds = (np.uint64, np.float32, np.int32)
        values = FieldValues(*(np.array(column, kind) for column, kind in zip(question["values"], kinds, strict=True)))
    if "user_id" in question:  # as older files have it
        return hash_ids([question["user_id"], *question["items"]]), hash_ids(question["history"]), recent, values
    return np.array(question["asked"], np.uint64), np.array(question["history"], np.uint64), recent, values
