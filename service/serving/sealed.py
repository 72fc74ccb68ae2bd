"""Copies of files that nothing can change: a process maps and serves such a copy, never the file itself.

A mapped file is a hole in a running process. A byte that is written into the file changes the scores, and the first
read behind its end, once it was cut short, ends the process with SIGBUS. A private folder and a mode of 0400 keep out
other users, but not root, a backup tool that writes in place, or a failing disk.

On Linux the copy is a sealed memory file (memfd_create(2)): the kernel refuses to write to it, to shorten it and to
lift the seals, for everybody and through every path, root and /proc included. It needs no disk once it is made.

All processes of a host share one copy, as they would share the pages of a file. The first one copies (0.5 s a
gigabyte) and leaves a note in the file's folder, an empty file whose name says which process holds the copy under which
descriptor. The next one opens that descriptor through /proc and maps the same pages at once. A note proves nothing:
what it leads to has to be a memory file of the right name with all seals, and its content is compared with the digest
like that of any other file.

The price: pages of a memory file stay in memory (or swap) for as long as a process holds them, where those of a file
could be dropped and read again. A process that answers in milliseconds needs them in memory anyway.

Where there are no memory files (macOS), each process maps a copy of its own in a file without a name.
"""

import fcntl
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.files import check_of, host_name, open_trusted

__all__ = ["Sealed", "seal"]

if sys.platform == "linux":
    SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

PIECE_BYTES = 4 * 1024 * 1024
NOTE = ".held-"
"""What the names of notes begin with; then come the process, its descriptor, the digests in the file's name, and the
host: of another container, that shares the folder, the number of a process says nothing here."""

FOREIGN_SECONDS = 86_400.0
"""After which the note of another host is removed: of a container that is gone, or else at the price of a further
copy there."""

MOST_NAME = 200
"""Characters of a memory file's name; the kernel takes 249."""

LOCK_SECONDS = 30.0
"""How long one process waits while another copies. Behind a process that was stopped meanwhile it makes a copy of its
own, which costs memory and nothing else."""
LOCK_POLL_SECONDS = 0.02


class Sealed:
    """A copy that nobody can change, held open by this process."""

    def __init__(self, descriptor: int, note: Path | None = None) -> None:
        """`note` tells other processes of it, where there is one."""
        self._descriptor = descriptor
        self._note = note
        self.path = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd", str(descriptor))
        """Where this process can open it for reading."""
        self.size = os.fstat(descriptor).st_size
        """In bytes."""

    def close(self) -> None:
        """Let go of it. The last of all processes that hold it frees its pages: 0.15 s a gigabyte."""
        if self._note is not None:
            self._note.unlink(missing_ok=True)
        os.close(self._descriptor)

    def close_after(self, mapping: object) -> None:
        """Close it when `mapping` is gone: in a thread, for whoever drops the last reference to a mapping may be the
        event loop. While the descriptor is open, to unmap frees no page.
        """
        end = weakref.finalize(mapping, lambda: threading.Thread(target=self.close, name="free a snapshot").start())
        end.atexit = False  # a process that ends closes it anyway, and its note is stale then


def seal(path: Path, *, pause_seconds: float = 0.0) -> Sealed:
    """The copy of a file that a process of this host holds, else a new one. Its content is not looked at.

    Args:
        path: of a file that is replaced by renaming alone; copies are shared where its name says what it holds.
        pause_seconds: between any two pieces, for those who want the processor meanwhile.

    Raises:
        OSError: it cannot be read, or is not a file of this user's alone.
    """
    with _alone(path.parent):
        descriptor = _held_by_another(path)
        if descriptor is None:
            descriptor = _copy_to_memory(path, pause_seconds)
        if descriptor is None:
            return Sealed(_copy_without_name(path, pause_seconds))
        if check_of(path) is None:
            return Sealed(descriptor)
        note = path.parent / f"{NOTE}{os.getpid()}-{descriptor}-{path.stem}-{host_name()}"
        note.touch(0o600)
        return Sealed(descriptor, note)


def _held_by_another(path: Path) -> int | None:
    """A descriptor of the copy that a note of this host leads to; stale notes are removed."""
    if sys.platform != "linux" or check_of(path) is None:
        return None
    found = None
    for note in path.parent.glob(f"{NOTE}*"):  # all of them, in no order: stale ones go, wherever they stand
        process, descriptor, stem, host = (*note.name.removeprefix(NOTE).split("-", 3), "", "", "")[:4]
        if host != host_name():
            _remove_old(note)
            continue
        held = f"/proc/{process}/fd/{descriptor}"
        try:
            # Looked at before it is opened: a process that has the number now may have anything there.
            if os.readlink(held) != f"/memfd:{_memory_name(stem)} (deleted)":
                raise FileNotFoundError
            if found is None and stem == path.stem:
                found = _open_sealed(held)
        except (FileNotFoundError, ProcessLookupError):
            note.unlink(missing_ok=True)
        except OSError:  # of a process that this one may not look into
            continue
    return found


def _remove_old(note: Path) -> None:
    with suppress(FileNotFoundError):  # its owner lets go of it
        if note.stat().st_mtime < time.time() - FOREIGN_SECONDS:
            note.unlink()


def _open_sealed(held: str) -> int | None:
    descriptor = os.open(held, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(OSError):  # no memory file
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS:
            return descriptor
    os.close(descriptor)
    return None


def _copy_to_memory(path: Path, pause_seconds: float) -> int | None:
    """None where the host has no memory files."""
    if sys.platform != "linux":
        return None
    try:
        memory = os.memfd_create(_memory_name(path.stem), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:  # an old kernel, or a sandbox that does not allow it
        return None
    try:
        _copy(path, memory, pause_seconds)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        # Older kernels refuse to map what is open for writing, once it is sealed.
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)


def _copy_without_name(path: Path, pause_seconds: float) -> int:
    file, name = tempfile.mkstemp(dir=path.parent, prefix=NOTE)
    try:
        _copy(path, file, pause_seconds)
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
    return f"asmg:{stem}"[:MOST_NAME]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process of the host copies at a time, so that the others find what it made."""
    with (folder / ".seal.lock").open("wb") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_POLL_SECONDS)
        yield
