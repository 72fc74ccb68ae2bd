"""The canary of a snapshot: requests about ids from all over its tables, with the scores of the library's own model."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, HISTORY_LENGTH, NO_VALUE, InteractionBatch, PeriodData
from asmg.field_columns import BatchFields
from asmg.statistics import Statistics
from service.serving.encode.inputs import Known, KnownFields, TrainedModel
from service.serving.fields import OF_CONTEXT, OF_ITEM, OF_USER, FieldValues
from service.serving.forward.interface import EPSILON
from service.serving.id_hashes import hash_ids

__all__ = ["STRANGER", "canary_requests"]

ITEMS_PER_REQUEST = 8
PAIRED_ITEMS = 4
"""Items about whose neighbours the canary asks."""

STRANGER = "\x7fnobody"
"""An id that no client is likely to have; stands for all unknown ones."""


def canary_requests(trained: TrainedModel, users: Known, items: Known) -> Iterator[dict[str, Any]]:
    """The requests, as `service.serving.snapshot_file.write_snapshot` takes them.

    With statistics each asks about neighbours of a clicked item and about that item again; with fields each has some
    values, one of which is unknown.
    """
    model, params, statistics = trained.model, trained.params, trained.statistics
    user_of, item_of = ({STRANGER: COLD_ROW, **_evenly_spread(known)} for known in (users, items))
    names = list(item_of)
    # In double precision: a float32 sum depends on where in memory it lies, and equal models shall have equal files.
    shared = {name: tensor.double() for name, tensor in params.items() if name not in ("user", "item")}
    groups = [] if statistics is None else _neighbour_groups(items, statistics)
    item_of |= {name: row for group in groups for name, row in group.items()}
    for n, (user_id, user) in enumerate(user_of.items()):
        asked = [names[(n + k) % len(names)] for k in range(min(ITEMS_PER_REQUEST, len(names)))]
        past = [names[(2 * n + k) % len(names)] for k in range(n % (HISTORY_LENGTH + 1))]
        if groups:
            clicked, *near = groups[n % len(groups)]
            asked, past = [*near, *asked, clicked], [*past[: n // 2], clicked, *past[n // 2 :]]
        done = (7 * n + 3) % (HISTORY_LENGTH + 1)
        recent = [done, min(done, 10) // 2, done // 2]
        rows = torch.tensor([item_of[name] for name in (*asked, *past)])
        values, fields = (
            (None, None) if trained.fields is None else _field_values(trained.fields, n, rows[: len(asked)])
        )
        batch = InteractionBatch(
            user=torch.zeros(len(asked), dtype=torch.int64),
            item=torch.arange(len(asked)),
            history=torch.arange(len(asked), len(rows)).repeat(len(asked)),
            offsets=torch.arange(len(asked) + 1) * len(past),
            label=torch.zeros(len(asked)),
            numeric=None if statistics is None else _numeric(statistics, rows, len(asked), recent).double(),
            fields=fields,
        )
        excerpt = {**shared, "user": params["user"][user : user + 1].double(), "item": params["item"][rows].double()}
        features = trained.features(rows, torch.arange(len(rows)))
        with torch.inference_mode():
            scores = (
                torch.sigmoid(model.logits(excerpt, batch, features)).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).float()
            )
        request: dict[str, Any] = {
            "asked": hash_ids([user_id, *asked]).tolist(),
            "history": hash_ids(past).tolist(),
        }
        request |= {} if statistics is None else {"recent": recent}
        request |= {} if values is None else {"values": [column.tolist() for column in values]}
        yield request | {"scores": scores.tolist()}


def _field_values(fields: KnownFields, n: int, items: Tensor) -> tuple[FieldValues, BatchFields]:
    """The values of the n-th request about these items [N]: as a snapshot reads them, and as the library does."""
    known = list(_evenly_spread(fields.values).items())
    picked = [known[(3 * n + k) % len(known)] for k in range(4)] if known else []
    asked = [*picked, (STRANGER, COLD_ROW)]
    owners = [OF_CONTEXT, OF_USER, OF_ITEM + n % len(items), OF_CONTEXT, OF_USER][-len(asked) :]
    weights = [1.0, 1.0, 1.0, -0.5, 1.0][-len(asked) :]
    values = FieldValues(
        hash_ids([name for name, _ in asked]), np.array(weights, np.float32), np.array(owners, np.int32)
    )
    own, rows = fields.of_items.batch(items), torch.tensor([row for _, row in asked]).expand(len(items), -1).clone()
    for column, owner in enumerate(owners):
        if owner >= OF_ITEM:
            rows[torch.arange(len(items)) != owner - OF_ITEM, column] = NO_VALUE
    sums = torch.tensor([OF_USER if owner == OF_USER else OF_CONTEXT for owner in owners])
    given = torch.tensor(weights).expand(len(items), -1)
    return values, BatchFields(
        torch.cat([rows, own.rows], 1), torch.cat([given, own.weights], 1).double(), torch.cat([sums, own.sums])
    )


def _numeric(statistics: Statistics, rows: Tensor, n: int, recent: Sequence[int]) -> Tensor:
    """The numeric inputs [n, S] of the first n of these items, for a user who clicked the others, newest first."""
    # `STRANGER` is the only unknown item; it gets a row that the statistics do not have.
    items = rows.where(rows != COLD_ROW, max(int(rows.max()) + 1, len(statistics.counts))).int()
    past = items[n:]
    data = PeriodData(
        user=torch.zeros(n, dtype=torch.int32),
        item=items[:n],
        history=past.repeat(n),
        offsets=torch.arange(n + 1) * len(past),
        label=torch.zeros(n),
        recent=torch.tensor([recent] * n, dtype=torch.int32),
        users=1,
        items=int(items.max()) + 1,
    )
    return statistics.inputs(data)


def _neighbour_groups(items: Known, statistics: Statistics) -> list[dict[str, int]]:
    """Ids and rows of the items with the most clicks beside them, each followed by up to two of its neighbours."""
    place_of = torch.full((1 + max(items.rows, default=0),), -1, dtype=torch.int64)
    rows = torch.as_tensor(items.rows, dtype=torch.int64)
    place_of[rows] = torch.arange(len(rows))
    known = rows[rows < len(statistics.counts)]
    busiest = known[statistics.degrees[known].topk(min(PAIRED_ITEMS, len(known))).indices].tolist()
    groups = []
    for row in busiest:
        beside = statistics.neighbours[statistics.starts[row] : statistics.starts[row + 1]].tolist()
        near = [i for i in beside if i < len(place_of) and place_of[i] >= 0][:2]
        groups.append({items.ids[int(place_of[i])]: i for i in (row, *near)})
    return groups


def _evenly_spread(known: Known) -> dict[str, int]:
    """Ids and rows, evenly spread from the first to the last."""
    count = min(2 * ITEMS_PER_REQUEST, len(known.ids))
    places = np.unique(np.linspace(0, len(known.ids) - 1, count).astype(np.int64))
    return {known.ids[place]: int(known.rows[place]) for place in places}
