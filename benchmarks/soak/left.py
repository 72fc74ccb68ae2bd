"""Reads what Postgres holds after a soak."""

from sqlalchemy import text

from benchmarks.soak.verdict import Left
from service.storage.postgres.database import Database

VERSIONS = """
    SELECT count(*) FROM model_versions
    WHERE period > 0 AND gate <> '{}' AND (scores <> '{}' OR period = 1)  -- before the first there was none to score
"""
WHOLE = """
    SELECT version FROM model_versions
    WHERE EXISTS (SELECT FROM artifact_chunks WHERE digest = serving_digest)
"""
LOGS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'interactions'::regclass"
FORGOTTEN = "SELECT count(*) FROM event_ids JOIN periods ON number = period WHERE log_dropped_at IS NOT NULL"
UNNAMED = """
    SELECT count(*) FROM artifacts
    WHERE NOT EXISTS (SELECT FROM model_versions WHERE serving_digest = digest OR strpos(state::text, digest) > 0)
      AND NOT EXISTS (SELECT FROM period_samples WHERE period_samples.digest = artifacts.digest)
      AND NOT EXISTS (SELECT FROM shadows WHERE strpos(state::text, digest) > 0)
      AND NOT EXISTS (SELECT FROM shadow_periods WHERE strpos(learned::text, digest) > 0)
"""


async def read_left(dsn: str) -> Left:
    """What Postgres holds now."""
    database = Database(dsn, pool_size=1)
    try:
        async with database.read() as session:
            versions, whole, logs, forgotten, unnamed = [
                (await session.connection.execute(text(query))).scalars().all()
                for query in (VERSIONS, WHOLE, LOGS, FORGOTTEN, UNNAMED)
            ]
    finally:
        await database.close()
    return Left(
        versions=versions[0],
        whole=frozenset(whole),
        logs=frozenset(int(name.rpartition("_p")[2]) for name in logs),
        forgotten_events=forgotten[0],
        unnamed_artifacts=unnamed[0],
    )
