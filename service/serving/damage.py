"""Compares snapshots that are being served with their checksums again: memory and disks can fail.

`service.serving.swap` does this once a minute, in the background. It checks the pages that a snapshot is served from,
and the files that they were made from, which the next process to start would load.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from service.files import check_of, open_trusted
from service.serving.snapshot import Pages

__all__ = ["is_damaged_file", "is_damaged_memory", "low_priority_thread"]

PIECE_BYTES = 1024 * 1024
PAUSE_SECONDS = 0.005
"""Pause between two pieces: a gigabyte then takes five seconds and a fiftieth of a processor."""

LOWEST_PRIORITY = 19


def low_priority_thread() -> ThreadPoolExecutor:
    """One thread of the lowest priority, which gets the processor when nobody else wants it."""
    return ThreadPoolExecutor(1, thread_name_prefix="check snapshots", initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def is_damaged_memory(pages: Pages, stop: threading.Event) -> bool:
    """Whether the pages differ from their checksum; False where there is none, and as soon as `stop` is set."""
    if pages.check is None:
        return False
    found, mapping = xxhash.xxh3_128(), pages.file.mapping
    with memoryview(mapping) as view:
        for start in range(0, len(view), PIECE_BYTES):
            if mapping.size() < len(view):  # reading past the end of the file would end the process
                return True
            found.update(view[start : start + PIECE_BYTES])
            if stop.wait(PAUSE_SECONDS):
                return False
    return found.hexdigest() != pages.check


def is_damaged_file(path: Path, stop: threading.Event) -> bool:
    """Whether a file differs from the checksum in its name, or others can write to it.

    False where there is no file, and as soon as `stop` is set.
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
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # leave the memory to others
    return expected is not None and found.hexdigest() != expected
