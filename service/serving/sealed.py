"""Copies of snapshot files that nothing can change. A process maps and serves such a copy, never the file itself.

`service.serving.loading` calls `seal` for each base, and `seal_made` for what it merges of deltas.

Whoever writes to a mapped file changes what the process reads, and whoever shortens it ends the process: reading behind
the end raises SIGBUS. A private folder and the mode 0400 keep out other users, but not root, a backup tool that writes
in place, or a failing disk.

On Linux the copy is a sealed memory file (memfd_create(2)). The kernel refuses to write to it, to shorten it and to
remove the seals, for everybody, root included. It needs no disk once it is made.

All processes of a host share one copy. The first one makes it (0.5 s a gigabyte) and leaves a note in the folder of the
file: an empty file whose name says which process holds the copy under which descriptor. The next process opens that
descriptor through /proc and maps the same pages. A note is not trusted: the file that it leads to has to be a memory
file of the right name with all seals, and its content is compared with the checksum like that of any other file.

The price: the pages stay in memory (or swap) for as long as a process holds them, where those of a file could be
dropped and read again. A process that answers within milliseconds needs them in memory anyway.

Where there are no memory files (macOS), each process maps a copy of its own, in a file without a name.
"""

import fcntl
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.files import check_of, host_name, open_trusted

__all__ = ["NOTE_PREFIX", "Sealed", "seal", "seal_made"]

if sys.platform == "linux":
    SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes that are copied at a time."""

NOTE_PREFIX = ".held-"
"""Begins the name of a note. The process id, the descriptor, the stem of the file's name and the name of the host
follow. Containers that share the folder number their processes alike, so the host has to be known."""

FOREIGN_NOTE_SECONDS = 86_400.0
"""Age at which a note of another host is removed. Its container is gone; if not, that host makes one copy more."""

MAX_NAME_LENGTH = 200
"""Characters of a memory file's name; the kernel allows 249."""

LOCK_SECONDS = 30.0
"""How long a process waits while another one copies. If that one was stopped meanwhile, the process makes a copy of its
own, which costs memory and nothing else."""
LOCK_POLL_SECONDS = 0.02


class Sealed:
    """A copy that nobody can change, held open by this process."""

    def __init__(self, descriptor: int, name: str, note: Path | None = None) -> None:
        """Hold the copy.

        Args:
            descriptor: of the copy.
            name: of what was copied, without its suffix; the checksum stands in it behind a dot.
            note: leads other processes to it; None for no note.
        """
        self._descriptor = descriptor
        self._note = note
        self.name = name
        self.path = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd", str(descriptor))
        """Where this process can open it for reading."""
        self.size = os.fstat(descriptor).st_size
        """In bytes."""

    def close(self) -> None:
        """Close it. The last process that does so frees its pages, which takes 0.15 s a gigabyte."""
        if self._note is not None:
            self._note.unlink(missing_ok=True)
        os.close(self._descriptor)

    def close_after(self, mapping: object) -> None:
        """Close it, in a thread, when `mapping` is garbage.

        The event loop may drop the last reference to a mapping. Unmapping frees no page while the descriptor is open,
        so the thread does the work.
        """
        end = weakref.finalize(mapping, lambda: threading.Thread(target=self.close, name="free a snapshot").start())
        end.atexit = False  # the end of the process closes it anyway; its note is stale then


Fill = Callable[[int], None]
"""Writes the content to a descriptor."""


def seal(path: Path, *, pause_seconds: float = 0.0) -> Sealed:
    """The copy of a file that a process of this host holds, else a new one. Its content is not checked.

    Args:
        path: of a file that is only ever replaced by renaming. Copies are shared where its name has a checksum.
        pause_seconds: pause between two pieces, in which requests get the processor.

    Raises:
        OSError: the file cannot be read, or others can write to it.
    """
    shared = check_of(path) is not None
    with _lock(path.parent):
        found = _open_shared(path.parent, path.stem) if shared else None
        return found or _seal(path.parent, path.stem, lambda target: _copy(path, target, pause_seconds), shared=shared)


def seal_made(folder: Path, name: str, make: Callable[[], tuple[str, Fill]]) -> Sealed:
    """The copy of something that is made of files and that a process of this host holds, else a new one.

    Args:
        folder: of the files.
        name: of what is made, without its checksum.
        make: makes it where no process has it: its XXH3-128 in hex, and what writes it.
    """
    with _lock(folder):
        if (found := _open_shared(folder, name)) is not None:
            return found
        check, fill = make()
        return _seal(folder, f"{name}.{check}", fill, shared=True)


def _seal(folder: Path, name: str, fill: Fill, *, shared: bool) -> Sealed:
    descriptor = _fill_memory(name, fill)
    if descriptor is None:
        return Sealed(_fill_without_name(folder, fill), name)
    if not shared:
        return Sealed(descriptor, name)
    return _noted(folder, descriptor, name)


def _noted(folder: Path, descriptor: int, name: str) -> Sealed:
    note = folder / f"{NOTE_PREFIX}{os.getpid()}-{descriptor}-{name}-{host_name()}"
    note.touch(0o600)
    return Sealed(descriptor, name, note)


def _open_shared(folder: Path, name: str) -> Sealed | None:
    """The copy of that name, with or without its checksum, that a process of this host holds; None where there is none.

    Removes stale notes.
    """
    if sys.platform != "linux":
        return None
    found = None
    for note in folder.glob(f"{NOTE_PREFIX}*"):  # all of them, because any may be stale
        process, descriptor, stem, host = (*note.name.removeprefix(NOTE_PREFIX).split("-", 3), "", "", "")[:4]
        if host != host_name():
            _remove_old(note)
            continue
        held = f"/proc/{process}/fd/{descriptor}"
        try:
            # The name is checked before the file is opened: another process may have the id by now.
            if os.readlink(held) != f"/memfd:{_memory_name(stem)} (deleted)":
                raise FileNotFoundError
            if found is None and name in (stem, stem.partition(".")[0]) and (own := _open_sealed(held)) is not None:
                found = own, stem
        except (FileNotFoundError, ProcessLookupError):
            note.unlink(missing_ok=True)
        except OSError:  # this process may not look into that one
            continue
    return None if found is None else _noted(folder, *found)


def _remove_old(note: Path) -> None:
    with suppress(FileNotFoundError):  # its owner has removed it
        if note.stat().st_mtime < time.time() - FOREIGN_NOTE_SECONDS:
            note.unlink()


def _open_sealed(held: str) -> int | None:
    """A descriptor of the file; None where it is not a memory file with all seals."""
    descriptor = os.open(held, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(OSError):  # no memory file
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS:
            return descriptor
    os.close(descriptor)
    return None


def _fill_memory(name: str, fill: Fill) -> int | None:
    """A descriptor of a new sealed memory file; None where the host has none."""
    if sys.platform != "linux":
        return None
    try:
        memory = os.memfd_create(_memory_name(name), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:  # an old kernel, or a sandbox that does not allow it
        return None
    try:
        fill(memory)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        # Older kernels refuse to map a sealed file through a descriptor that is open for writing.
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)


def _fill_without_name(folder: Path, fill: Fill) -> int:
    """A descriptor of a new file that has no name any more."""
    file, name = tempfile.mkstemp(dir=folder, prefix=NOTE_PREFIX)
    try:
        fill(file)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.unlink(name)
        os.close(file)


def _copy(path: Path, target: int, pause_seconds: float) -> None:
    source = open_trusted(path)
    try:
        while piece := os.read(source, PIECE_BYTES):
            with memoryview(piece) as rest:
                done = 0
                while done < len(rest):
                    done += os.write(target, rest[done:])
            time.sleep(pause_seconds)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)  # one copy in memory is enough
    finally:
        os.close(source)


def _memory_name(stem: str) -> str:
    return f"asmg:{stem}"[:MAX_NAME_LENGTH]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process of the host copy at a time, so that the others find what it made."""
    with (folder / ".seal.lock").open("wb") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_POLL_SECONDS)
        yield
