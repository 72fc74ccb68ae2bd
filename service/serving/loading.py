"""Loads a snapshot from its files and makes sure that it is right, before any request is answered with it.

A base is mapped, read through and compared with its checksum once a process; versions with deltas on the same base
share its pages. So to load a version costs what its deltas and their overlay cost.
"""

import logging
import mmap
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from service.files import check_of, open_trusted
from service.serving.overlay import merge, overlay_name, prepare_merging
from service.serving.sealed import Fill, Sealed, seal, seal_made
from service.serving.snapshot import Pages, Snapshot, WrongScores
from service.serving.tensor_file import TensorFile, map_file, read_through

__all__ = ["SnapshotDamaged", "load_snapshot"]


logger = logging.getLogger(__name__)


class SnapshotDamaged(ValueError):
    """The bytes of a file have changed since it was written."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path.name}: expected a file with this XXH3-128; received {found}")
        self.path = path
        """The file."""


def load_snapshot(
    paths: Path | Sequence[Path],
    version: int,
    period: int,
    *,
    loaded: Collection[Snapshot] = (),
    pause_seconds: float = 0.0,
) -> Snapshot:
    """The snapshot in some files, ready to serve.

    They are copied to where nothing can change them, mapped, read through and compared with their checksums; the
    forward pass is compiled and has to give the scores of the check questions.

    Args:
        paths: of the base and of its deltas, oldest first.
        version, period: of the model.
        loaded: snapshots whose pages may be shared.
        pause_seconds: pause between two pieces of a file, in which requests get the processor.

    Raises:
        ValueError: a file is no snapshot, or they do not belong together; `SnapshotDamaged`: one has changed since it
            was written.
        WrongScores: it gives other scores than where it was written.
        OSError: a file cannot be read.
    """
    sources = (paths,) if isinstance(paths, Path) else tuple(paths)
    pages = {each.name: each for snapshot in loaded for each in snapshot.pages if each.check is not None}
    base = pages.get(sources[0].stem) or _map_base(sources[0], pause_seconds)
    overlay = None
    if len(sources) > 1:
        name = overlay_name([path.stem for path in sources])
        overlay = pages.get(name) or _make_overlay(name, base, sources, loaded, pause_seconds)
    else:
        prepare_merging()
    snapshot = Snapshot.open(base, version, period, overlay)
    return _with_right_scores(replace(snapshot, sources=sources))


def _map_base(path: Path, pause_seconds: float) -> Pages:
    sealed, check = seal(path, pause_seconds=pause_seconds), check_of(path)
    try:
        if check is not None and not sealed.size:  # an empty file cannot be mapped
            raise SnapshotDamaged(path, "an empty one")
        mapping = map_file(sealed.path)
        found = read_through(mapping, pause_seconds=pause_seconds)
        if check is not None and found != check:
            raise SnapshotDamaged(path, f"one with {found}")
        file = TensorFile(mapping)
    except BaseException:
        sealed.close()
        raise
    sealed.close_after(mapping)
    return Pages(file, path.stem, check)


def _make_overlay(
    name: str, base: Pages, sources: Sequence[Path], loaded: Collection[Snapshot], pause_seconds: float
) -> Pages:
    """The overlay of a version, merged by this process if no other one of the host has it.

    It begins with that of a loaded version whose list of files this one goes on with, if there is any.
    """

    def make() -> tuple[str, Fill]:
        known = [each for each in loaded if each.overlay is not None and each.sources == sources[: len(each.sources)]]
        start = max(known, key=lambda snapshot: len(snapshot.sources), default=None)
        deltas = sources[1:] if start is None else sources[len(start.sources) :]
        parts = [] if start is None or start.overlay is None else [start.overlay.file]
        merged = merge(base.file, [*parts, *map(_read_delta, deltas)])

        def fill(descriptor: int) -> None:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                merged.write(file)

        return merged.check, fill

    sealed: Sealed = seal_made(sources[0].parent, name, make)
    try:
        mapping, check = map_file(sealed.path), sealed.name.rpartition(".")[2]
        if (found := read_through(mapping, pause_seconds=pause_seconds)) != check:
            raise ValueError(f"overlay {name}: expected one with XXH3-128 {check}; received one with {found}")
        file = TensorFile(mapping)
    except BaseException:
        sealed.close()
        raise
    sealed.close_after(mapping)
    return Pages(file, name, check)


def _read_delta(path: Path) -> TensorFile:
    """A delta in memory of this process: it is small, is read once, and could change while it is read from a map."""
    with os.fdopen(open_trusted(path), "rb") as file:
        content = file.read()
    check, found = check_of(path), xxhash.xxh3_128(content).hexdigest()
    if check is not None and found != check:
        raise SnapshotDamaged(path, f"one with {found}" if content else "an empty one")
    memory = mmap.mmap(-1, max(len(content), 1))
    memory.write(content)
    return TensorFile(memory)


def _with_right_scores(snapshot: Snapshot) -> Snapshot:
    """The snapshot, with the reference forward pass where the compiled one gives wrong scores."""
    try:
        snapshot.check()
    except WrongScores as error:
        # Imported here because it needs torch, which an api process does without otherwise.
        from service.serving.forward.reference import reference_forward

        snapshot = replace(snapshot, forward=reference_forward(snapshot.meta, snapshot.files))
        snapshot.check()
        logger.error(
            "%s by the compiled forward pass; the reference in torch serves, an order of magnitude slower", error
        )
    return snapshot
