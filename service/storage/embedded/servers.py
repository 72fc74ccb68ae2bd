"""A real Postgres and a real Redis under one data folder, for installations that bring no servers of their own.

    data_dir/
      servers.lock        held while servers are started or stopped, and while users.json changes
      users.json          the processes that use the servers now: [[pid, create_time], …]
      postgres/           the cluster; a Unix socket, no TCP port; `logs/` holds the log of a week
      redis/              configuration and log; a Unix socket, no TCP port, nothing saved

The servers are daemons: they outlive a killed program, and the next program attaches to them. The last program that
exits in good order stops both. `asmg serve`, the demo, the benchmarks and the tests use it.
"""

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from service.errors import EmbeddedServerError
from service.storage.embedded.postgres import EmbeddedPostgres
from service.storage.embedded.processes import this_process
from service.storage.embedded.redis import EmbeddedRedis
from service.storage.embedded.users import locked_users

__all__ = ["EmbeddedServers"]


class EmbeddedServers:
    """The servers of a data folder, for as long as the `with` block lasts; several processes may use one folder.

    Args:
        data_dir: created when missing. A second start on the same folder continues where the first ended.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.expanduser().resolve()
        self._postgres = EmbeddedPostgres(self._folder / "postgres")
        self._redis = EmbeddedRedis(self._folder / "redis")
        self._dsn: str | None = None

    @property
    def postgres_dsn(self) -> str:
        """`postgresql+asyncpg://…` of the running Postgres.

        Raises:
            EmbeddedServerError: outside of the `with` block.
        """
        if self._dsn is None:
            raise EmbeddedServerError("expected the embedded servers to be started; received a call before that")
        return self._dsn

    @property
    def redis_url(self) -> str:
        """`unix://…` of the running Redis."""
        return self._redis.url

    def __enter__(self) -> "EmbeddedServers":
        """Start the servers, or attach to running ones.

        Raises:
            EmbeddedServerError: a server did not start; its log is in the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked_users(self._folder) as users:
            # Before the start: if this process is killed during it, the servers still have a user on the list.
            users.append(this_process())
            try:
                self._dsn = self._postgres.start()
                self._redis.start()
            except BaseException:
                users.remove(this_process())
                if not users:
                    self._stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop using the servers. The last user stops both."""
        with locked_users(self._folder) as users:
            with suppress(ValueError):
                users.remove(this_process())
            if not users:
                self._stop()
        self._dsn = None

    def _stop(self) -> None:
        try:
            self._redis.stop()
        finally:
            self._postgres.stop()
