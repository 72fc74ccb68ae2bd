"""Everything that clients have stored in an installation, for comparisons before and after."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import asyncpg
import redis as redis_sync

TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
  AND relname <> 'api_processes'  -- they report every other second
ORDER BY 1
"""
"""All tables but the one in which the api processes say again and again that they are there."""
CONTENT = "SELECT '{0}', count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {0} t"


class Stored(NamedTuple):
    """What there is at a moment."""

    tables: dict[str, tuple[int, int]]
    """Number of rows of each table, and a hash of all their content."""
    keys: frozenset[bytes]
    """The keys in Redis."""

    def holds(self, later: "Stored") -> bool:
        """Whether nothing was stored since; keys of Redis may have expired."""
        return later.tables == self.tables and later.keys <= self.keys


class Store:
    """Looks into one database and one Redis."""

    def __init__(self, dsn: str, redis_url: str, runner: asyncio.Runner, pool: ThreadPoolExecutor) -> None:
        # An event loop of its own in a thread of its own: that of the tests has, or will have, another.
        self._runner, self._pool = runner, pool
        self._connection: asyncpg.Connection = self._run(asyncpg.connect(dsn.replace("+asyncpg", "")))
        self._content = " UNION ALL ".join(CONTENT.format(row[0]) for row in self._run(self._connection.fetch(TABLES)))
        self._redis = redis_sync.Redis.from_url(redis_url)

    def look(self) -> Stored:
        """What there is now."""
        rows = self._run(self._connection.fetch(self._content))
        return Stored({name: (count, content) for name, count, content in rows}, frozenset(self._redis.keys()))

    def close(self) -> None:
        """Look no more."""
        self._run(self._connection.close())
        self._redis.close()

    def _run(self, call):
        return self._pool.submit(self._runner.run, call).result()


@contextmanager
def looking_into(dsn: str, redis_url: str) -> Iterator[Store]:
    """A look into a database and a Redis."""
    with ThreadPoolExecutor(1) as pool, asyncio.Runner() as runner:
        store = Store(dsn, redis_url, runner, pool)
        try:
            yield store
        finally:
            store.close()
