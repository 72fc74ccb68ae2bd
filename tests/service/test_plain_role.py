"""A role without any privilege but its own database, as managed Postgres gives one, is all that the service needs."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text

from service.storage.postgres.migrate import migrate
from service.use_cases.backup import back_up
from service.use_cases.verify import verify
from tests.conftest import Servers, create_database, database_dsn, drop_database, in_thread
from tests.service.update_support import bench, periods


@pytest.fixture
def dsn(servers: Servers) -> Iterator[str]:
    """DSN of an empty database whose owner may do nothing else."""
    name = f"asmg_test_{uuid4().hex[:12]}"
    servers.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'plain' NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION")
    create_database(servers, name, "template0")
    servers.execute(f"ALTER DATABASE {name} OWNER TO {name}")
    url = make_url(database_dsn(servers, name)).set(username=name, password="plain")
    yield url.render_as_string(hide_password=False)
    drop_database(servers, name)
    servers.execute(f"DROP ROLE {name}")


async def test_a_plain_role_migrates_and_runs_a_cycle(dsn: str, redis_url: str, tmp_path: Path) -> None:
    in_thread(migrate, dsn)
    async with bench(dsn, redis_url, tmp_path) as b:
        async with b.database.read() as session:
            groups = text("SELECT count(*) FROM pg_auth_members WHERE member = current_user::regrole")
            assert await session.connection.scalar(groups) == 0  # such as pg_monitor, which could do more
        [first] = periods(1)
        await b.log(first)
        assert await b.update(1) == 1
        await back_up(b.database, tmp_path / "backup")
        assert (await verify(b.database, tmp_path)).findings == []
