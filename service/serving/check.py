"""Looks again, in the background, at what was right when it was loaded: the pages that are served, and the file that
they were copied from, which the next process to start would load.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from service.files import check_of, open_trusted
from service.serving.snapshot import Snapshot

__all__ = ["checking_thread", "is_damaged_file", "is_damaged_memory"]

PIECE_BYTES = 1024 * 1024
PAUSE_SECONDS = 0.005
"""Between two pieces: a gigabyte takes five seconds, and a fiftieth of a processor meanwhile."""

LOWEST_PRIORITY = 19


def checking_thread() -> ThreadPoolExecutor:
    """A thread of the lowest priority, which gets the processor when nobody else wants it."""
    return ThreadPoolExecutor(1, thread_name_prefix="check snapshots", initializer=_be_nice)


def _be_nice() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def is_damaged_memory(snapshot: Snapshot, stop: threading.Event) -> bool:
    """Whether the pages of the snapshot are others than its file's name says; False as soon as `stop` is set."""
    expected = None if snapshot.source is None else check_of(snapshot.source)
    if expected is None:
        return False
    found, mapping = xxhash.xxh3_128(), snapshot.mapping
    with memoryview(mapping) as view:
        for start in range(0, len(view), PIECE_BYTES):
            if mapping.size() < len(view):  # to read what is no longer there would end the process
                return True
            found.update(view[start : start + PIECE_BYTES])
            if stop.wait(PAUSE_SECONDS):
                return False
    return found.hexdigest() != expected


def is_damaged_file(path: Path, stop: threading.Event) -> bool:
    """Whether the file holds something else than its name says, or can be written to by others; False where there is
    none, and as soon as `stop` is set.
    """
    expected = check_of(path)
    try:
        descriptor = open_trusted(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    found = xxhash.xxh3_128()
    with open(descriptor, "rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
            if stop.wait(PAUSE_SECONDS):
                return False
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the memory is needed for other things
    return expected is not None and found.hexdigest() != expected
