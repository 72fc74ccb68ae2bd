"""`python -m service.storage.fetch DIGEST FOLDER`: an artifact as a file, fetched by a process of its own.

Taking in hundreds of megabytes is work that a process which answers requests has no time for; this one has the lowest
priority. It finds its servers in `ASMG_POSTGRES_DSN` and `ASMG_REDIS_URL`.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from service.errors import ArtifactError, ServiceError
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect

__all__ = ["fetch_apart"]

LOWEST_PRIORITY = 19
TAIL_BYTES = 1000


async def fetch_apart(digest: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run the program of this module, and end it where this call is cancelled.

    Raises:
        ArtifactError: it failed; the message holds what it said.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        digest,
        str(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode:
        raise ArtifactError(digest, f"artifact {digest} was not fetched: {said[-TAIL_BYTES:].decode(errors='replace')}")


async def _fetch(digest: str, folder: Path) -> None:
    settings = Settings()
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=1), connect(settings.redis_url)
    try:
        await ArtifactStore(database, redis).download(digest, folder)
    finally:
        await redis.aclose()
        await database.close()


def main() -> None:
    """Fetch, or say in one line why not."""
    os.nice(LOWEST_PRIORITY)
    try:
        asyncio.run(_fetch(sys.argv[1], Path(sys.argv[2])))
    except ServiceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
