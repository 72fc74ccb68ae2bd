"""Check an installation: every digest, reference and alias, the served snapshot and the training state."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import files
from service.errors import ArtifactError, NotReady, ServiceError
from service.serving.loading import load_snapshot
from service.storage.artifacts.contents import digest_of_pieces, pieces_in
from service.storage.artifacts.objects import Objects
from service.storage.artifacts.store import FILE_SUFFIX
from service.storage.backup.verify import Finding, find_faults
from service.storage.postgres.database import Database, ReadSession, UnitOfWork
from service.storage.postgres.repositories import AliasName, digests_in
from service.storage.postgres.structure import StoredTable, frozen

__all__ = ["Finding", "Verification", "examine", "verify"]

Session = ReadSession | UnitOfWork


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of a check."""

    artifacts: int
    """Number of artifacts whose content was compared with its digest."""
    bytes: int
    """Total bytes of these artifacts."""
    findings: list[Finding]
    """What is wrong; empty where nothing is."""


async def verify(database: Database, folder: Path, objects: Objects | None = None) -> Verification:
    """Check the database at one moment, in a read-only transaction; the service may go on working.

    Args:
        database: with the schema of this release.
        folder: for a temporary copy of the serving snapshot.
        objects: the object store of the installation; None where it has none.

    Raises:
        NotReady: Postgres or the object store does not answer, or others keep a table locked.
    """
    async with frozen(database) as (session, stored):
        return await examine(session, stored, folder, objects)


async def examine(
    session: Session, stored: Sequence[StoredTable], folder: Path, objects: Objects | None = None
) -> Verification:
    """Check what one transaction sees; `stored` are its tables, and `objects` has the contents that are not in them."""
    findings = await find_faults(session.connection, stored)
    artifacts = await session.artifacts.all()
    for digest, place in artifacts.items():
        try:
            found = await digest_of_pieces(digest, pieces_in(session, objects, digest, place))
        except ArtifactError as error:
            if place.key is None:
                raise
            found = str(error)
        if found != digest:
            findings.append(Finding(f"artifact {digest}", "content with this SHA-256", found))
    for finding in (await _served(session, folder, objects), await _learned(session, folder, objects)):
        if finding is not None:
            findings.append(finding)
    total = sum(place.size for place in artifacts.values())
    return Verification(artifacts=len(artifacts), bytes=total, findings=findings)


async def _served(session: Session, folder: Path, objects: Objects | None) -> Finding | None:
    """A finding where the champion cannot be loaded, or scores differently than when it was written."""
    alias = await session.models.alias(AliasName.CHAMPION)
    model = None if alias is None else await session.models.get(alias.version)
    if model is None or model.serving_digest is None:  # the findings say so already, or there is no version yet
        return None
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".verify-") as place:
        try:
            paths = [await _fetch(session, objects, digest, Path(place)) for digest in model.snapshot_files]
            await asyncio.to_thread(load_snapshot, paths, model.version, model.period)
        except NotReady:
            raise
        except (ServiceError, ValueError) as error:
            return Finding(
                f"serving snapshot of version {model.version}", "one that loads and scores as written", str(error)
            )
    return None


async def _learned(session: Session, folder: Path, objects: Objects | None) -> Finding | None:
    """A finding where the next update cannot continue the training state of the head."""
    alias = await session.models.alias(AliasName.HEAD)
    model = None if alias is None else await session.models.get(alias.version)
    if model is None or "parts" not in model.state:
        return None
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".verify-") as place:
            digests = digests_in(model.state["parts"])
            paths = {digest: await _fetch(session, objects, digest, Path(place)) for digest in digests}
            await asyncio.to_thread(_load_state, model.state["parts"], paths)
    except NotReady:
        raise
    except (ServiceError, ValueError, LookupError) as error:
        return Finding(f"training state of version {model.version}", "one that an update can go on from", str(error))
    return None


async def _fetch(session: Session, objects: Objects | None, digest: str, folder: Path) -> Path:
    """An artifact as a file of the folder."""
    stored = await session.artifacts.find(digest)
    async with (
        files.create_slowly(folder, FILE_SUFFIX) as file,
        aclosing(pieces_in(session, objects, digest, stored)) as pieces,
    ):
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)
    assert file.path is not None
    return file.path


def _load_state(parts: Mapping[str, Any], paths: Mapping[str, Path]) -> Any:
    """Load the rows that the logs of a training state touch, as an update does."""
    from asmg.checkpoint import Checkpoint  # with torch, which takes seconds
    from asmg.layers import excerpt_state
    from asmg.updaters import updater_of_dump

    opened = {name: [Checkpoint.open(paths[digest]) for digest in digests_in(value)] for name, value in parts.items()}
    small = {name: part.checkpoint for name, part in excerpt_state(opened).parts.items()}
    return updater_of_dump(small).load(small)
