"""Table of the api processes that run now."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, Text, func

from service.storage.postgres.tables.base import TIMESTAMP, metadata

__all__ = ["api_processes"]

api_processes = Table(
    "api_processes",
    metadata,
    # Every process renews its row every few seconds. Room in each page, so that Postgres changes the rows in place.
    Column("process", Text, primary_key=True, comment="a random id, made when the process starts"),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("seen_at", TIMESTAMP, nullable=False),
    Column("expires_at", TIMESTAMP, nullable=False, comment="from then on it counts as ended"),
    Column("refuses", Boolean, nullable=False, comment="whether it answers nothing when it may be behind"),
    Column("ready_move", BigInteger, nullable=False, comment="newest move of the champion that it has loaded"),
    Column("ready_version", Integer, nullable=False),
    Column("served_move", BigInteger, nullable=False, comment="the move that it serves"),
    Column("served_version", Integer, nullable=False),
    postgresql_with={"fillfactor": 50},
)
