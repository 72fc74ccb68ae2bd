"""`alembic check` on an embedded Postgres: fails if the migrations and tables.py disagree."""

import tempfile
from pathlib import Path

from alembic import command

from service.storage.embedded.servers import EmbeddedServers
from service.storage.postgres.migrate import alembic_config, migrate


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="asmg-check-") as folder, EmbeddedServers(Path(folder)) as servers:
        migrate(servers.postgres_dsn)
        command.check(alembic_config(servers.postgres_dsn))


if __name__ == "__main__":
    main()
