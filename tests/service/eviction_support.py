"""A stream in which ids leave and return, and the table rows that they have: for the tests of eviction."""

from random import Random
from typing import Any

import numpy as np
from sqlalchemy import text

from asmg.datasets.synthetic import DriftPeriod
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind
from tests.service.update_support import HOUR_MS, Bench

NEVER_KNOWN = "nobody at all"
EVICT_AFTER = 7
"""The least there is; who was there in period 1 only is evicted in period 8."""
EVICTING: dict[str, Any] = {"evict_after_periods": EVICT_AFTER, "history_length": 3}
"""Short histories, or an item would be seen in them long after."""


def period(number: int, *, events: int = 60, back: int | None = None, rename: bool = False) -> DriftPeriod:
    """A period with regulars and with users and items that are there once.

    User `gone` and item `lost` are there in period 1 and again in period `back`, under other names where `rename`. They
    have no clicks, so that they leave nothing in anybody's history. So have four items that never come again.
    """
    rng = Random(number)
    users = [f"regular{n}" for n in range(4)] + [f"u{number}.{n}" for n in range(3)]
    items = [f"evergreen{n}" for n in range(4)] + [f"i{number}.{n}" for n in range(3)]
    rows = [(rng.choice(users), rng.choice(items)) for _ in range(events)]
    labels = [int(rng.random() < (0.7 if hash_of(item) % 2 else 0.2)) for _, item in rows]
    if number in (1, back):
        gone, lost = ("another", "other") if rename and number == back else ("gone", "lost")
        rows += [(gone, "evergreen1"), ("regular1", lost), (gone, lost)] * 3
        labels += [0] * 9
    if number == 1:
        rows += [("regular0", f"mayfly{n}") for n in range(4)]
        labels += [0] * 4
    order = Random(number + 1).sample(range(len(rows)), len(rows))
    fresh = [f"evergreen{n}" for n in range(4)] if number == 1 else []
    return DriftPeriod(
        number=number,
        user_ids=[rows[n][0] for n in order],
        item_ids=[rows[n][1] for n in order],
        labels=np.array([labels[n] for n in order], dtype=np.uint8),
        timestamps_ms=1_700_000_000_000 + number * HOUR_MS + 1000 * np.arange(len(rows)),
        probabilities=np.full(len(rows), 0.5),
        new_items={item: (f"c{n % 3}",) for n, item in enumerate([*fresh, f"i{number}.0"])},
    )


def hash_of(item: str) -> int:
    return sum(item.encode())


async def go_on(b: Bench, *periods: DriftPeriod, **parts: Any) -> None:
    for each in periods:
        await b.log(each)
        await b.update(each.number, **parts)


async def rows_of(database: Database, kind: EntityKind) -> dict[str, int]:
    async with database.read() as session:
        ids, rows = await session.entities.rows(kind)
    return dict(zip(ids, rows.tolist(), strict=True))


async def free_rows(database: Database, kind: EntityKind) -> list[int]:
    query = "SELECT row FROM entity_rows WHERE kind = :kind AND id IS NULL ORDER BY row"
    async with database.read() as session:
        return list((await session.connection.execute(text(query), {"kind": str(kind)})).scalars())
