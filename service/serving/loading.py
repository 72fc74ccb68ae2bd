"""Loads a snapshot from its file and makes sure that it is right, before any request is answered with it."""

import logging
from dataclasses import replace
from pathlib import Path

from service.files import check_of
from service.serving.sealed import seal
from service.serving.snapshot import CanaryFailed, Snapshot
from service.serving.tensor_file import map_file, read_through

__all__ = ["SnapshotDamaged", "load_snapshot"]


logger = logging.getLogger(__name__)


class SnapshotDamaged(ValueError):
    """The bytes of a file have changed since it was written."""


def load_snapshot(path: Path, version: int, period: int, *, pause_seconds: float = 0.0) -> Snapshot:
    """The snapshot in a file, ready to serve.

    It is copied to where nothing can change it, mapped, read through and compared with its checksum; its forward pass
    is compiled and has to give the scores of the canary.

    Args:
        path: of the file.
        version, period: of the model.
        pause_seconds: pause between two pieces of the file, in which requests get the processor.

    Raises:
        ValueError: the file is no snapshot; `SnapshotDamaged`: it has changed since it was written.
        CanaryFailed: it gives other scores than where it was written.
        OSError: the file cannot be read.
    """
    sealed = seal(path, pause_seconds=pause_seconds)
    try:
        expected = check_of(path)
        if expected is not None and not sealed.size:  # an empty file cannot be mapped
            raise SnapshotDamaged(f"{path.name}: expected a file with this XXH3-128; received an empty one")
        mapping = map_file(sealed.path)
        found = read_through(mapping, pause_seconds=pause_seconds)
        if expected is not None and found != expected:
            raise SnapshotDamaged(f"{path.name}: expected a file with this XXH3-128; received one with {found}")
        snapshot = replace(Snapshot.open(mapping, version=version, period=period), source=path)
    except BaseException:
        sealed.close()
        raise
    sealed.close_after(mapping)
    return _with_right_scores(snapshot)


def _with_right_scores(snapshot: Snapshot) -> Snapshot:
    """The snapshot, with the reference forward pass where the compiled one gives wrong scores."""
    try:
        snapshot.check()
    except CanaryFailed as error:
        # Imported here because it needs torch, which an api process does without otherwise.
        from service.serving.forward.reference import reference_forward

        snapshot = replace(snapshot, forward=reference_forward(snapshot.meta["model"], snapshot.tensors))
        snapshot.check()
        logger.error(
            "%s by the compiled forward pass; the reference in torch serves, an order of magnitude slower", error
        )
    return snapshot
