"""A backup: one folder with a file for each table, and a manifest that says what is whole.

    manifest.json         written last: a folder without it is no backup
    periods.copy          the rows, as `COPY … (FORMAT binary)` gives them
    interactions_p7.copy  a partition is a table

Binary, because a number comes back to the last bit, bytes are not doubled in size by hex, and neither side spends time
on text; for the types used here it is the same in all releases of Postgres. Nothing is compressed: weights do not get
smaller.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec
from asyncpg import Connection, InterfaceError, PostgresError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service import __version__, files
from service.errors import BackupError, NotReady
from service.storage.postgres.database import ReadSession
from service.storage.postgres.migrate import head_revision
from service.storage.postgres.outages import outage
from service.storage.postgres.repositories import AliasName
from service.storage.postgres.structure import (
    Counter,
    Partition,
    StoredTable,
    counters,
    lock_all,
    restart,
    stored_tables,
    table_names,
)

__all__ = [
    "MANIFEST",
    "Manifest",
    "Serving",
    "TableFile",
    "dump",
    "load",
    "new_backup",
    "read_backup",
    "require_empty",
    "write_manifest",
]

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the manifest and the files; a backup of another is refused."""

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""Marks a folder that a backup is being written to."""
SUFFIX = ".copy"

PIECE_BYTES = 1024 * 1024
"""What is written or read at a time. A row is in memory as a whole: a chunk of an artifact has 8 MiB."""

SEEDS = {"periods": "number = 1 AND status = 'open'"}
"""Rows that the migrations make, so that they are in an empty database too."""

ABOUT = text("""
    SELECT clock_timestamp() AS made_at, current_setting('server_version') AS postgres,
           (SELECT version_num FROM alembic_version) AS revision
""")

INDEX = re.compile(r"CREATE (UNIQUE )?INDEX ")


class TableFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rows of one table."""

    table: StoredTable
    rows: int
    size: int
    """Bytes of the file."""
    sha256: str

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.table.name}{SUFFIX}"


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The version that was served."""

    version: int
    digest: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup holds."""

    format: int = FORMAT
    made_at: datetime
    """The moment that the backup shows."""
    release: str
    """Of the program that made it."""
    revision: str
    """Of the schema."""
    postgres: str
    """Version of the server."""
    serving: Serving | None
    tables: tuple[TableFile, ...]
    """In the order in which they can be loaded."""
    counters: tuple[Counter, ...]
    journal: str | None = None
    """The file on that host to which deletions are added from then on."""
    sha256: str = ""
    """Of the manifest itself, with this field empty and without spaces."""

    @property
    def stored(self) -> list[StoredTable]:
        """The tables."""
        return [file.table for file in self.tables]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.tables)

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(file.rows for file in self.tables)

    def digest(self) -> str:
        """What `sha256` should be."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, sha256=""))).hexdigest()


class _Header(msgspec.Struct):
    """What the manifests of all formats have."""

    format: int


@contextmanager
def new_backup(folder: Path) -> Iterator[None]:
    """Claim a folder; where the block fails, what was written is removed again.

    Raises:
        BackupError: the folder is neither new nor empty.
    """
    made = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = folder / UNFINISHED
    if found := sorted(file.name for file in folder.iterdir()):
        what = "an unfinished backup" if mark.exists() else found[0]
        raise BackupError(f"{folder}: expected a folder that is new or empty; received one with {what}")
    mark.touch(exist_ok=False)
    try:
        yield
        mark.unlink()
    except BaseException:
        for file in (*folder.glob(f"*{SUFFIX}"), *folder.glob(f"{files.UNFINISHED}*"), folder / MANIFEST, mark):
            file.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


async def dump(
    session: ReadSession, tables: Sequence[StoredTable], folder: Path, journal: Path | None = None
) -> Manifest:
    """Write a file for each of the tables, all as the session sees them; return what is to be the manifest.

    Raises:
        BackupError: the folder cannot be written to, or something not be read.
        NotReady: Postgres does not answer any more.
    """
    with _refusals("Postgres does not give what it holds"):
        about = (await session.connection.execute(ABOUT)).one()
        champion = await session.models.alias(AliasName.CHAMPION)
        version = None if champion is None else await session.models.get(champion.version)
        return Manifest(
            made_at=about.made_at,
            release=__version__,
            revision=about.revision,
            postgres=about.postgres,
            serving=None if version is None else Serving(version=version.version, digest=version.serving_digest),
            journal=None if journal is None else str(journal),
            counters=tuple(await counters(session.connection)),
            tables=tuple([await _write_table(session.connection, table, folder) for table in tables]),
        )


async def _write_table(connection: AsyncConnection, table: StoredTable, folder: Path) -> TableFile:
    try:
        async with files.create_slowly(folder, SUFFIX, stem=table.name) as file:
            pieces = _Pieces(file)
            async with _copying(connection, table.name) as driver:
                copied = await driver.copy_from_table(
                    table.name, columns=table.columns, output=pieces.take, format="binary"
                )
            await pieces.end()
    except OSError as error:  # no space, say, of which nothing tells in which file
        raise BackupError(f"{folder / table.name}{SUFFIX}: {error.strerror}") from error
    written = TableFile(table=table, rows=_rows(copied), size=file.size, sha256=file.digest)
    logger.debug("%s: %d rows, %d bytes", written.name, written.rows, written.size)
    return written


class _Pieces:
    """Collects rows, which are small, to pieces that are worth a thread's while."""

    def __init__(self, file: files.DigestedFile) -> None:
        self._file, self._piece = file, bytearray()

    async def take(self, data: bytes) -> None:
        self._piece += data
        if len(self._piece) >= PIECE_BYTES:
            await self.end()

    async def end(self) -> None:
        piece, self._piece = self._piece, bytearray()
        await asyncio.to_thread(self._file.write, memoryview(piece))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Make the folder a backup; return the manifest with its digest."""
    manifest = msgspec.structs.replace(manifest, sha256=manifest.digest())
    stem, _, suffix = MANIFEST.partition(".")
    with files.create(folder, f".{suffix}", stem=stem) as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def read_backup(folder: Path) -> Manifest:
    """The manifest of a backup, after every file was read and compared with it.

    Raises:
        BackupError: the folder holds no backup, or one that is not whole, or one of another format or schema.
    """
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.revision != (head := head_revision()):
        raise BackupError(
            f"{folder}: expected a backup of schema {head}; received one of schema {manifest.revision}, made by "
            f"release {manifest.release}: restore it with that release, then run `asmg migrate` of this one"
        )
    for file in manifest.tables:
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
    except msgspec.DecodeError as error:  # a ValidationError too
        raise BackupError(f"{path}: expected a whole manifest; received a damaged one: {error}") from None
    if (digest := manifest.digest()) != manifest.sha256:
        raise BackupError(f"{path}: expected content with SHA-256 {manifest.sha256}; received {digest}")
    return manifest


async def require_empty(connection: AsyncConnection) -> None:
    """Return where a backup can be restored: the service's tables are not there, or as the migrations make them.

    Raises:
        BackupError: there are rows, or the tables are another program's.
    """
    query = (
        "SELECT relname::text FROM pg_class WHERE relname = ANY(CAST(:names AS text[])) AND pg_table_is_visible(oid)"
    )
    wanted = [*table_names(), "alembic_version"]
    there = set((await connection.execute(text(query), {"names": wanted})).scalars())
    if there and "alembic_version" not in there:
        raise BackupError(f"expected an empty database; received one with tables of another program: {min(there)}")
    found = []
    for name in sorted(there - {"alembic_version"}):
        rows = (await connection.execute(text(f"SELECT count(*) FROM {name} {_not_seeded(name)}"))).scalar_one()
        if rows:
            found.append(f"{name} ({rows:,})")
    if found:
        raise BackupError(f"expected an empty database; received one with rows in {', '.join(found)}")


def _not_seeded(table: str) -> str:
    return f"WHERE NOT ({SEEDS[table]})" if table in SEEDS else ""


async def load(connection: AsyncConnection, folder: Path, manifest: Manifest) -> None:
    """Load all rows, in the transaction of the caller, during which nobody else sees or changes a table.

    Foreign keys, checks and triggers hold as they do for the service. A partition is filled first and takes its place
    then, which builds its indexes in one go.

    Args:
        connection: of a database with the schema of the backup, and no rows.
        folder, manifest: of the backup.

    Raises:
        BackupError: the database is not empty, or does not take the rows.
        NotReady: others use the database, or it cannot work.
    """
    with _refusals("Postgres does not take the backup"):
        await lock_all(connection, "ACCESS EXCLUSIVE")
        await require_empty(connection)
        for table in await stored_tables(connection):
            if table.partition is not None:
                await connection.exec_driver_sql(f"DROP TABLE {table.name}")
        for name in SEEDS:
            await connection.exec_driver_sql(f"DELETE FROM {name}")
        for file in manifest.tables:
            await _load_table(connection, folder, file)
        for counter in manifest.counters:
            await restart(connection, counter)
        expected, found = ({table.name for table in t} for t in (manifest.stored, await stored_tables(connection)))
        if found != expected:
            raise BackupError(f"expected the tables {', '.join(sorted(expected))}; received {', '.join(sorted(found))}")
        await connection.exec_driver_sql(f"ANALYZE {', '.join(table_names())}")


async def _load_table(connection: AsyncConnection, folder: Path, file: TableFile) -> None:
    table, part = file.table, file.table.partition
    if part is not None:
        await connection.exec_driver_sql(f"CREATE TABLE {table.name} (LIKE {part.of} INCLUDING ALL EXCLUDING INDEXES)")
    async with _copying(connection, file.name) as driver:
        copied = await driver.copy_to_table(
            table.name, source=folder / file.name, columns=table.columns, format="binary"
        )
    if _rows(copied) != file.rows:
        raise BackupError(f"{file.name}: expected {file.rows} rows; received {_rows(copied)}")
    if part is not None:
        await _attach(connection, table.name, part)


async def _attach(connection: AsyncConnection, name: str, partition: Partition) -> None:
    await connection.exec_driver_sql(
        f"ALTER TABLE {partition.of} ATTACH PARTITION {name} FOR VALUES IN ({partition.period})"
    )
    # The driver sends one statement at a time, so that neither can hold more than it should.
    for constraint in partition.constraints:
        await connection.exec_driver_sql(f"ALTER TABLE {name} ADD CONSTRAINT {constraint}")
    for index in partition.indexes:
        if INDEX.match(index) is None:
            raise BackupError(f"{name}: expected the definition of an index; received {index}")
        await connection.exec_driver_sql(index)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Say what Postgres has against a statement; that it is away says the session."""
    try:
        yield
    except DBAPIError as error:
        if outage(error) is not None:
            raise
        raise BackupError(f"{what}: {error.orig}") from error


@asynccontextmanager
async def _copying(connection: AsyncConnection, name: str) -> AsyncIterator[Connection]:
    """What speaks COPY, in the transaction that SQLAlchemy has begun; `name` is for messages."""
    driver: Connection = (await connection.get_raw_connection()).driver_connection
    try:
        yield driver
    except PostgresError as error:
        if (trouble := outage(error)) is not None:
            raise NotReady(trouble) from error
        raise BackupError(f"{name}: {error}") from error
    except BaseException as error:
        # Cut off in the midst of a COPY, the connection takes nothing else, not even a ROLLBACK.
        driver.terminate()
        await connection.invalidate()
        if isinstance(error, (InterfaceError, ConnectionError)):
            raise NotReady("the connection to Postgres was lost") from error
        raise


def _rows(status: str) -> int:
    """Of `COPY 12`."""
    return int(status.removeprefix("COPY "))
