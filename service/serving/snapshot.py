"""One model version, ready to predict.

`service.serving.loading` opens a snapshot from its file; `service.use_cases.predict` calls `Snapshot.score` for each
prediction.
"""

import mmap
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.header import CheckpointError
from asmg.layout import HISTORY_LENGTH
from service.serving.fields import NO_VALUES, FieldReader, FieldValues
from service.serving.forward.compiled import compiled_forward
from service.serving.forward.interface import Forward
from service.serving.id_hashes import Hashes, hash_ids
from service.serving.id_index import IdIndex
from service.serving.snapshot_file import QUESTIONS, SnapshotFiles, read_header
from service.serving.tensor_file import PAUSE_SECONDS, PIECE_BYTES, TensorFile

__all__ = ["NOTHING_RECENT", "Pages", "Prediction", "Snapshot", "WrongScores"]

CHECK_TOLERANCE = 1e-5
"""The largest difference of a score of a check question: that of float32 sums in another order."""

NOTHING_RECENT = np.zeros(3, np.int32)
"""The recent past of a user of whom nothing is known; never written to. It is not read-only, because then it would have
another type than the others, and the machine code would be compiled once more for it."""


class WrongScores(ValueError):
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
class Pages:
    """The pages of a base or of an overlay, as a process maps them. Snapshots may share them."""

    file: TensorFile
    name: str = ""
    """That of the base's file without its suffix, or that of the overlay (`service.serving.overlay`)."""
    check: str | None = None
    """XXH3-128 of the bytes, in hex; None where it is not known."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One model version, ready to predict. Nothing in it ever changes."""

    version: int
    """The model version."""
    period: int
    """The last period it learned from; 0 for the prior."""
    meta: Mapping[str, Any]
    """The header of the newest file (`service.serving.snapshot_file`)."""
    base: Pages = field(repr=False)
    overlay: Pages | None = field(repr=False)
    """What deltas have changed; None for a version that has none."""
    forward: Forward = field(repr=False)
    fields: FieldReader | None = field(repr=False)
    """Reads the fields of a request; None for a model without fields."""
    sources: tuple[Path, ...] = ()
    """The files of the version, the base first."""

    @classmethod
    def open(cls, base: Path | Pages, version: int, period: int, overlay: Pages | None = None) -> "Snapshot":
        """Open a snapshot; reads the headers only.

        Args:
            base: its base.
            version, period: of the model.
            overlay: its deltas.

        Raises:
            CheckpointError: a file is something else, or they do not belong together.
        """
        if isinstance(base, Path):
            base = Pages(TensorFile(base))
        meta = first = read_header(base.file, "base")
        if overlay is not None:
            meta = read_header(overlay.file, "overlay")
            if meta["model"] != first["model"]:
                raise CheckpointError(f"snapshot: expected deltas of {first['model']}; received {meta['model']}")
        files = SnapshotFiles(base.file, None if overlay is None else overlay.file)
        reader = FieldReader.from_json(meta["fields"]) if meta["model"].get("fields") else None
        return cls(version, period, meta, base, overlay, compiled_forward(meta, files), reader)

    @property
    def files(self) -> SnapshotFiles:
        """The files that its forward pass reads."""
        return SnapshotFiles(self.base.file, None if self.overlay is None else self.overlay.file)

    @property
    def pages(self) -> tuple[Pages, ...]:
        """All that it maps."""
        return (self.base,) if self.overlay is None else (self.base, self.overlay)

    def knows(self, kind: Literal["user", "item"], id_: str) -> bool:
        """Whether it has a row for an id."""
        for file in (self.files.overlay, self.files.base):  # what the overlay says counts
            if file is not None:
                index = IdIndex(file.tensors[f"{kind}s.hashes"], file.tensors[f"{kind}s.starts"])
                if row := int(index.lookup(hash_ids([id_]))[0]):
                    gone = file.tensors.get(f"{kind}s.gone", np.empty(0))
                    return not (len(gone) and gone[row])
        return False

    def release_pages(self, kept: Collection[Pages] = ()) -> None:
        """Give the memory of its pages back in pieces, except those that others use.

        It can still be used: its pages are then mapped again. Whoever drops the last reference frees it quickly
        afterwards. To unmap gigabytes at once would block the event loop, if that dropped it.
        """
        for mapping in [each.file.mapping for each in self.pages if each not in kept]:
            if hasattr(mmap, "MADV_DONTNEED"):
                for start in range(0, len(mapping), PIECE_BYTES):
                    mapping.madvise(mmap.MADV_DONTNEED, start, min(PIECE_BYTES, len(mapping) - start))
                    time.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """Compute the scores of the check questions and compare them with those in the file.

        Raises:
            WrongScores: one is different.
        """
        for question in self.meta[QUESTIONS]:
            scores = self.score(*_check_request(question)).scores
            worst = float(np.abs(scores - np.array(question["scores"], dtype=np.float32)).max())
            if not worst <= CHECK_TOLERANCE:
                raise WrongScores(
                    f"model version {self.version}: expected the scores of the check questions to {CHECK_TOLERANCE}; "
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


def _check_request(question: Mapping[str, Any]) -> tuple[Hashes, Hashes, NDArray[np.int32], FieldValues]:
    """A check question as the arguments of `Snapshot.score`."""
    recent = np.array(question.get("recent", NOTHING_RECENT), np.int32)
    values = NO_VALUES
    if "values" in question:
        kinds = (np.uint64, np.float32, np.int32)
        values = FieldValues(*(np.array(column, kind) for column, kind in zip(question["values"], kinds, strict=True)))
    return np.array(question["asked"], np.uint64), np.array(question["history"], np.uint64), recent, values
