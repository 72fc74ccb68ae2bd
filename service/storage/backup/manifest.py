"""The format of a backup: one folder with a file for each table, and a manifest.

    manifest.json         written last: a folder without it is no backup
    periods.copy          the rows of a table, from `COPY … (FORMAT binary)`
    interactions_p7.copy  a partition is a table of its own
    <SHA-256>.object      the content of an artifact that was in an object store

The binary format gives numbers back to the last bit, does not double the size of bytes as hex would, and spends no time
on text. It is the same in all releases of Postgres for the column types used here. Nothing is compressed, since weights
do not get smaller. `dump` and `load` in the modules of that name write and read the rows.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from service import files
from service.errors import BackupError
from service.storage.postgres.migrate import head_revision
from service.storage.postgres.structure import Counter, StoredTable

__all__ = [
    "MANIFEST",
    "OBJECT_SUFFIX",
    "SUFFIX",
    "Manifest",
    "ObjectFile",
    "Serving",
    "TableFile",
    "read_backup",
    "write_manifest",
]

FORMAT = 3
"""Version of the format. A backup of another version is refused."""

MANIFEST = "manifest.json"
"""Name of the manifest's file."""

SUFFIX = ".copy"
"""Suffix of the tables' files."""

OBJECT_SUFFIX = ".object"
"""Suffix of the files of objects."""


class TableFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the backup, and its file."""

    table: StoredTable
    rows: int
    size: int
    """Bytes of the file."""
    sha256: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.table.name}{SUFFIX}"


class ObjectFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An artifact whose content was in an object store, and its file."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the content, which names the artifact."""
    size: int
    """Bytes of the content."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.sha256}{OBJECT_SUFFIX}"


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model version that was served, and the digest of its snapshot."""

    version: int
    digest: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup contains."""

    format: int = FORMAT
    made_at: datetime
    """Time of the snapshot that the backup shows."""
    release: str
    """Release of the program that wrote it."""
    revision: str
    """Revision of the schema."""
    postgres: str
    """Version of Postgres."""
    serving: Serving | None
    tables: tuple[TableFile, ...]
    """In an order in which they can be loaded: each table after those that it refers to."""
    counters: tuple[Counter, ...]
    objects: tuple[ObjectFile, ...] = ()
    journal: str | None = None
    """Path, on the host of the backup, of the journal that deletions are added to from then on."""
    sha256: str = ""
    """Digest of the manifest itself, as compact JSON with this field empty."""

    @property
    def stored(self) -> list[StoredTable]:
        """The tables, without their files."""
        return [file.table for file in self.tables]

    @property
    def files(self) -> list[TableFile | ObjectFile]:
        """All files but the manifest."""
        return [*self.tables, *self.objects]

    @property
    def size(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(file.rows for file in self.tables)

    def digest(self) -> str:
        """The value that `sha256` should have."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, sha256=""))).hexdigest()


class _Header(msgspec.Struct):
    """The field that manifests of all formats have."""

    format: int


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest, which makes the folder a backup; return it with its digest."""
    manifest = msgspec.structs.replace(manifest, sha256=manifest.digest())
    stem, _, suffix = MANIFEST.partition(".")
    with files.create(folder, f".{suffix}", stem=stem) as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def read_backup(folder: Path) -> Manifest:
    """Read a backup's manifest, and check every file against it.

    Raises:
        BackupError: the folder holds no backup, or one that is damaged or has another format or schema.
    """
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.revision != (head := head_revision()):
        raise BackupError(
            f"{folder}: expected a backup of schema {head}; received one of schema {manifest.revision}, made by "
            f"release {manifest.release}: restore it with that release, then run `asmg migrate` of this one"
        )
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            raise BackupError(f"{path}: expected a file of {file.size} bytes; received none")
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != file.sha256:
            size = path.stat().st_size
            received = f"{size} bytes" if size != file.size else digest
            raise BackupError(f"{path}: expected {file.size} bytes with SHA-256 {file.sha256}; received {received}")
    return manifest


def _read_manifest(path: Path) -> Manifest:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BackupError(f"{path.parent}: expected a backup; received a folder without {MANIFEST}") from None
    try:
        if (found := msgspec.json.decode(content, type=_Header).format) != FORMAT:
            raise BackupError(f"{path}: expected a backup of format {FORMAT}; received one of format {found}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:  # includes ValidationError
        raise BackupError(f"{path}: expected a whole manifest; received a damaged one: {error}") from None
    if (digest := manifest.digest()) != manifest.sha256:
        raise BackupError(f"{path}: expected content with SHA-256 {manifest.sha256}; received {digest}")
    return manifest
