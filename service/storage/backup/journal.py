"""The journal of deletions: a file outside of the database, which tells a restored backup what was deleted since.

Each line is a JSON object for one deletion: its name, the kind of its id, a keyed digest of the id, and the key. A
database that has the id can recognise it by the digest. The id itself is not in the file, but whoever has the file can
test whether an id they know was deleted, so it has to be protected as backups are.

Lines are only ever appended. Each begins with a line feed and ends with `}`, so a line that was cut off by a power loss
damages no other line and is recognised. Its deletion had not been acknowledged yet.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from service.errors import BackupError, NotReady
from service.storage.postgres.repositories.deletions import Deletable, Deletion

__all__ = ["Entry", "entry_of", "read_journal", "read_journals", "write_journal"]

Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the journal."""

    deletion: Hex32
    """Id of the deletion."""
    kind: Deletable
    key: Hex64
    """Key of the digest."""
    digest: Hex64
    """`id_digest(key, kind, id)`."""
    requested_at: datetime


def entry_of(deletion: Deletion) -> Entry:
    """The line of a deletion."""
    return Entry(
        deletion=deletion.deletion,
        kind=deletion.kind,
        key=deletion.key,
        digest=deletion.digest,
        requested_at=deletion.requested_at,
    )


async def write_journal(path: Path, entries: Iterable[Entry]) -> None:
    """Append deletions to a journal, and sync it to the disk.

    Raises:
        NotReady: the file cannot be written.
    """
    lines = b"".join(b"\n" + msgspec.json.encode(entry) for entry in entries)
    try:
        await asyncio.to_thread(_append, path, lines)
    except OSError as error:
        raise NotReady(f"the journal of deletions cannot be written: {error.strerror}") from error


def _append(path: Path, lines: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        left = memoryview(lines)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_journal(path: Path) -> list[Entry]:
    """The deletions in a journal, each once.

    Raises:
        BackupError: it cannot be read, or a line is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BackupError(f"{path}: expected a journal of deletions; {error.strerror}") from None
    found: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (line.startswith(b"{") and not line.endswith(b"}")):
            continue  # cut off before the deletion was acknowledged; the retry has written it again
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except msgspec.DecodeError as error:
            raise BackupError(
                f"{path}: expected a deletion in line {number}; received a damaged one: {error}"
            ) from None
        found[entry.deletion] = entry
    return list(found.values())


def read_journals(named: Sequence[Path], likely: Sequence[Path]) -> dict[Path, list[Entry]]:
    """Read journals.

    Args:
        named: files that the user has named; they have to exist.
        likely: further files, which are read if they exist.

    Raises:
        BackupError: a file cannot be read, or a line is damaged.
    """
    there = (path for path in likely if path.is_file())
    return {path: read_journal(path) for path in dict.fromkeys([*(path.absolute() for path in named), *there])}
