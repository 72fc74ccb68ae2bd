"""A database in which one user and one item occur everywhere, and a search for what remains of them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from service.errors import NotReady
from service.storage.artifacts.contents import content, pieces
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import (
    Click,
    Deletion,
    EventBatch,
    Impression,
    Interaction,
)
from service.storage.postgres.structure import stored_tables
from service.use_cases.forget import carry_out, request_deletion
from service.use_cases.ingest import ingest, ingest_clicks, ingest_impressions
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune
from tests.service.update_support import HOUR_MS, Bench, moment

ANN = "ann/gone é%"
"""A user of all logs. Nothing else that is stored has `gone` in it."""
LAMP = "lamp gone?"
"""An item of all logs."""
NOBODY = "nobody at all"
MARK = "gone"
START_MS = 1_700_000_000_000
CHANGES: dict[str, Any] = {"keep_logs": 0, "swap_lead_seconds": 0.0, "attribution_window_seconds": 3600.0}


def log_of(number: int) -> list[Interaction]:
    """Interactions of a period: of Ann on every item, of others on the lamp too, and some that are about neither."""
    rows = [(f"user{n % 4}", f"item{n % 5}", n % 3 == 0) for n in range(30)]
    rows += [(ANN, f"item{n % 5}", n % 2 == 0) for n in range(6)] + [(ANN, LAMP, True)]
    rows += [(f"user{n}", LAMP, n == 1) for n in range(3)]
    return [
        Interaction(f"{number}-{n}-{user}-{item}", user, item, int(label), moment(START_MS + number * HOUR_MS + n))
        for n, (user, item, label) in enumerate(rows)
    ]


OF_ANN, OF_LAMP = 7, 4
"""Interactions of a period."""


async def show(b: Bench, number: int, at: datetime) -> None:
    """Impressions and clicks: of Ann, of another with the lamp among the items, and of the lamp alone."""
    names = [f"{who} {number}" for who in (f"shown-{MARK}", "shown-other", f"shown-lamp-{MARK}")]
    shown = [
        Impression(names[0], ANN, ["item1", "item2"], None, at),
        Impression(
            *(names[1], "user1", ["item1", LAMP, "item2"], [5, 6, 7] if number % 2 else None, at),
            model_version=1 if number % 2 else None,
            scores=[0.5, 0.75, 0.25] if number % 2 else None,
        ),
        Impression(names[2], "user2", [LAMP], None, at),
    ]
    clicks = [
        Click(f"click-{MARK} {number}", names[0], "item2", at),
        Click(f"click-lamp-{MARK} {number}", names[1], LAMP, at),
        Click(f"click-other {number}", names[1], "item2", at),
    ]
    window = b.settings.attribution_window
    await ingest_impressions(b.database, b.context.histories, shown, window)
    await ingest_clicks(b.database, b.context.histories, clicks, window)


async def live(b: Bench) -> None:
    """Three periods learned, the logs of two dropped, one sealed with what waits for clicks, one open."""
    catalogue = {f"item{n}": [f"c{n % 2}"] for n in range(5)} | {LAMP: ["c0", "c1"]}
    async with b.database.unit_of_work() as work:
        await work.items.upsert(catalogue)
        await work.commit()
    for number in range(1, 4):
        await ingest(b.database, b.context.histories, EventBatch.of(log_of(number)))
        await show(b, number, moment(START_MS + number * HOUR_MS))
        await b.close(number)
        await merge_event_ids(b.database)
        await b.update(number)
        await prune(b.database, number, b.settings)
        await drop_old_logs(b.database, b.settings)
    for number in (4, 5):
        await ingest(b.database, b.context.histories, EventBatch.of(log_of(number)))
        await show(b, number, datetime.now(UTC))  # its window is open
        if number == 4:
            await b.close(number)


async def delete(b: Bench, kind: Any = "user", id_: str = ANN) -> Deletion:
    """From beginning to end."""
    deletion = await request_deletion(b.database, kind, id_, actor="test")
    return await carry_out(b.database, b.context.histories, b.settings.journal, deletion)


async def marked(database: Database, mark: str) -> set[str]:
    """The tables in which any row has this text in any column."""
    found = set()
    async with database.read() as session:
        for table in await stored_tables(session.connection):
            query = text(f"SELECT count(*) FROM {table.name} AS entry WHERE strpos(entry::text, :mark) > 0")
            if await session.connection.scalar(query, {"mark": mark}):
                found.add(table.name)
    return found


async def named_in_files(b: Bench) -> list[str]:
    """The artifacts, and the files of serving, whose bytes have an id of the past in them."""
    async with b.database.read() as session:
        artifacts = await session.artifacts.all()
    contents = {digest: await content(digest, pieces(b.database, None, digest)) for digest in artifacts}
    assert contents
    contents |= {path.name: path.read_bytes() for path in b.settings.serving_dir.rglob("*") if path.is_file()}
    return [name for name, data in contents.items() if b"ann/gone" in data or b"lamp gone" in data]


LOGS = ("interactions", "impressions", "clicks")
EVERYWHERE = {f"{table}_p{n}" for table in LOGS for n in range(3, 6)} | {
    "event_ids",
    "unresolved_positives",
    "user_histories",
    "user_passes",
    "entity_rows",
}
"""Where the past has something about Ann, and something about the lamp."""


class Away:
    """Histories in a Redis that does not answer."""

    async def forget_user(self, user_id: str) -> None:
        raise NotReady("Redis does not answer")

    async def forget_all(self) -> None:
        raise NotReady("Redis does not answer")
