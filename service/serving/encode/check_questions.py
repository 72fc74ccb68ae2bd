"""The check questions of a file: requests about ids from all over its tables, with the library's own scores.

They are computed from the rows of the file alone: by a small model with the rows that a request asks about.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW, HISTORY_LENGTH, NO_CATEGORY, NO_VALUE, InteractionBatch, ItemFeatures, PeriodData
from asmg.field_columns import BatchFields
from asmg.models import BaseModel, Params
from asmg.numbers import NumberMoments
from asmg.statistics import Statistics
from service.serving.encode.inputs import ItemCounts, Known, TrainedModel
from service.serving.encode.lists import counted_ones
from service.serving.fields import OF_CONTEXT, OF_ITEM, OF_USER, FieldValues
from service.serving.forward.interface import EPSILON
from service.serving.id_hashes import hash_id

__all__ = ["STRANGER", "check_questions"]

ITEMS_PER_REQUEST = 8
PAIRED_ITEMS = 4
"""Items about whose neighbours the questions ask."""

STRANGER = "\x7fnobody"
"""An id that no client is likely to have; stands for all unknown ones."""

Rows = dict[int, int]
"""Hash → row in a table of `TrainedModel`."""


def check_questions(trained: TrainedModel) -> Iterator[dict[str, Any]]:
    """The requests, as `service.serving.snapshot_file.write_snapshot` takes them.

    With statistics each asks about neighbours of a clicked item and about that item again; with fields each has some
    values, one of which is unknown. Items whose categories or values have no rows here are not asked about.
    """
    stranger, known = hash_id(STRANGER), _whole_items(trained)
    user_of: Rows = {stranger: COLD_ROW, **_evenly_spread(trained.users)}
    item_of: Rows = {stranger: COLD_ROW, **_evenly_spread(known)}
    value_of: Rows = {} if trained.fields is None else dict(_evenly_spread(trained.fields.values))
    names = list(item_of)
    groups = [] if trained.statistics is None else _neighbour_groups(known, trained.statistics)
    item_of |= {name: row for group in groups for name, row in group.items()}
    excerpt = _excerpt(trained, list(user_of.values()), list(item_of.values()), value_of)
    place_of = {name: place for place, name in enumerate(item_of)}
    for n, user in enumerate(user_of):
        asked = [names[(n + k) % len(names)] for k in range(min(ITEMS_PER_REQUEST, len(names)))]
        past = [names[(2 * n + k) % len(names)] for k in range(n % (HISTORY_LENGTH + 1))]
        if groups:
            clicked, *near = groups[n % len(groups)]
            asked, past = [*near, *asked, clicked], [*past[: n // 2], clicked, *past[n // 2 :]]
        done = (7 * n + 3) % (HISTORY_LENGTH + 1)
        recent = [done, min(done, 10) // 2, done // 2]
        values = None if trained.fields is None else _field_values(list(value_of), n, len(asked))
        items = torch.tensor([place_of[name] for name in (*asked, *past)])
        scores = _scores(excerpt, n, items, len(asked), recent, values)
        request: dict[str, Any] = {"asked": [user, *asked], "history": past}
        request |= {} if trained.statistics is None else {"recent": recent}
        request |= {} if values is None else {"values": [column.tolist() for column in values]}
        yield request | {"scores": scores.tolist()}


@dataclass(frozen=True)
class _Excerpt:
    """What all questions read of a model. It is read at once: a stack of layers takes as long for one row."""

    model: BaseModel
    params: Params
    """In double precision; the tables have the rows of the users, the items, and their categories and values."""
    categories: Tensor | None
    """int64 [I, C], the rows of each item's categories."""
    of_items: BatchFields | None
    """The item's columns of the fields."""
    value_of: Rows
    """Hash of a value of a request → its row."""
    statistics: Statistics | None
    numbers: Tensor
    """int32 [I], the number that each item has in the statistics."""


def _excerpt(trained: TrainedModel, users: Sequence[int], items: Sequence[int], value_of: Rows) -> _Excerpt:
    """The rows of these users, items and values."""
    asked, categories, of_items = torch.tensor(items), None, None
    params = {name: trained.dense(name) for name in trained.model.dense_shapes}
    params |= {"user": _rows_of(trained, "user", torch.tensor(users)), "item": _rows_of(trained, "item", asked)}
    if trained.categories is not None:
        params["category"], categories = _read(trained, "category", trained.categories[asked].long(), NO_CATEGORY)
    if trained.fields is not None:
        own = trained.fields.of_items.at(asked).standardised()
        given = trained.identities("field", np.array([COLD_ROW, *value_of.values()])).astype(np.int64)
        identities = torch.cat([torch.from_numpy(given), own.rows.long().flatten()])
        params["field"], rows = _read(trained, "field", identities, NO_VALUE)
        cold, *others = rows[: len(given)].tolist()
        value_of = {hash_id(STRANGER): cold, **dict(zip(value_of, others, strict=True))}
        of_items = BatchFields(rows[len(given) :].view_as(own.rows), own.weights, own.sums.long())
    statistics, numbers = None, asked
    if trained.statistics is not None:
        statistics, numbers = _small_statistics(trained.statistics, asked)
    params = {name: tensor.double() for name, tensor in params.items()}
    return _Excerpt(trained.model, params, categories, of_items, value_of, statistics, numbers)


@torch.inference_mode()
def _scores(
    excerpt: _Excerpt, user: int, items: Tensor, n: int, recent: Sequence[int], values: FieldValues | None
) -> Tensor:
    """The scores of the library for a user and the first n of these items; the others are its clicks, newest first.

    In double precision: a float32 sum depends on where in memory it lies, and equal models shall have equal files.
    """
    params = excerpt.params | {"user": excerpt.params["user"][[user]], "item": excerpt.params["item"][items]}
    features = fields = None
    if excerpt.categories is not None:
        features = ItemFeatures(torch.arange(len(items)), excerpt.categories[items])
    if excerpt.of_items is not None and values is not None:
        own = excerpt.of_items
        rows, weights, sums = _given(excerpt.value_of, values, n)
        rows, weights = torch.cat([rows, own.rows[items[:n]]], 1), torch.cat([weights, own.weights[items[:n]]], 1)
        fields = BatchFields(rows, weights.double(), torch.cat([sums, own.sums]))
    numeric = None
    if excerpt.statistics is not None:
        numeric = _numeric(excerpt.statistics, excerpt.numbers[items], n, recent).double()
    batch = InteractionBatch(
        user=torch.zeros(n, dtype=torch.int64),
        item=torch.arange(n),
        history=torch.arange(n, len(items)).repeat(n),
        offsets=torch.arange(n + 1) * (len(items) - n),
        label=torch.zeros(n),
        numeric=numeric,
        fields=fields,
    )
    logits = excerpt.model.logits(params, batch, features)
    return torch.sigmoid(logits).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).float()


def _rows_of(trained: TrainedModel, table: str, rows: Tensor) -> Tensor:
    """Rows of a table, any of them more than once."""
    distinct, place = torch.unique(rows, return_inverse=True)
    return trained.params[table][distinct][place]


def _read(trained: TrainedModel, table: str, identities: Tensor, nothing: int) -> tuple[Tensor, Tensor]:
    """The rows of a table with these global numbers, and the numbers in this small table; `nothing` stays itself."""
    distinct = torch.unique(identities[identities != nothing])
    local = torch.from_numpy(trained.local_rows(table, distinct.numpy()))
    small = trained.params[table][local] if len(local) else trained.params[table][torch.zeros(1, dtype=torch.int64)]
    return small, torch.searchsorted(distinct, identities).where(identities != nothing, nothing)


def _field_values(known: Sequence[int], n: int, items: int) -> FieldValues:
    """The values of the n-th request about so many items."""
    asked = [*(known[(3 * n + k) % len(known)] for k in range(4 if known else 0)), hash_id(STRANGER)]
    owners = [OF_CONTEXT, OF_USER, OF_ITEM + n % items, OF_CONTEXT, OF_USER][-len(asked) :]
    weights = [1.0, 1.0, 1.0, -0.5, 1.0][-len(asked) :]
    return FieldValues(np.array(asked, np.uint64), np.array(weights, np.float32), np.array(owners, np.int32))


def _given(value_of: Rows, values: FieldValues, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A request's values as the library reads them: rows and weights [n, K], and the sum of each column."""
    rows = torch.tensor([value_of[value] for value in values.hashes.tolist()]).repeat(n, 1)
    for column, owner in enumerate(values.owners.tolist()):
        if owner >= OF_ITEM:
            rows[torch.arange(n) != owner - OF_ITEM, column] = NO_VALUE
    sums = torch.tensor([OF_USER if owner == OF_USER else OF_CONTEXT for owner in values.owners.tolist()])
    return rows, torch.from_numpy(values.weights).expand(n, -1), sums


def _numeric(statistics: Statistics, items: Tensor, n: int, recent: Sequence[int]) -> Tensor:
    """The numeric inputs [n, S] of the first n of these items, for a user who clicked the others, newest first."""
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


def _small_statistics(statistics: ItemCounts, rows: Tensor) -> tuple[Statistics, Tensor]:
    """The statistics of these items alone, and the number, int32 [n], that each has there.

    Those that were never counted come last, behind the end of the tables; so does `STRANGER`, which is one of them.
    """
    distinct = torch.unique(rows)
    counted = distinct[counted_ones(statistics, distinct)]
    others = distinct[~counted_ones(statistics, distinct)]
    numbered = torch.cat([counted, others])
    item = (1 + (rows.unsqueeze(1) == numbered).int().argmax(1)).int()
    found = statistics.neighbours_of(counted)
    owners = torch.repeat_interleave(torch.arange(1, len(counted) + 1), found.lengths)
    order = torch.from_numpy(np.lexsort((found.items.numpy(), owners.numpy())))
    kept = order[torch.isin(found.items.long(), counted)[order]]
    owners = owners[kept]
    starts = torch.zeros(len(counted) + 2, dtype=torch.int64)
    torch.cumsum(torch.bincount(owners, minlength=len(counted) + 1), 0, out=starts[1:])

    def with_cold(table: Tensor) -> Tensor:
        return torch.cat([table.new_zeros(1, *table.shape[1:]), table])

    small = Statistics(
        config=statistics.config,
        periods=statistics.periods,
        counts=with_cold(statistics.counts[counted]),
        counted=with_cold(statistics.counted[counted]),
        starts=starts,
        neighbours=(1 + torch.searchsorted(counted, found.items.long()[kept])).int(),
        together=found.together[kept],
        passed=found.passed[kept],
        degrees=with_cold(statistics.degrees[counted]),
        paired=with_cold(statistics.paired[counted]),
        moments=statistics.moments,
        numbers=NumberMoments.initial(),
    )
    return small, item


def _neighbour_groups(items: Known, statistics: ItemCounts) -> list[Rows]:
    """The items with the most clicks beside them, each followed by up to two of its neighbours."""
    rows = torch.from_numpy(items.rows)
    counted = rows[counted_ones(statistics, rows)]
    busiest = counted[statistics.degrees[counted].topk(min(PAIRED_ITEMS, len(counted))).indices]
    found = statistics.neighbours_of(busiest)
    (places,) = np.nonzero(np.isin(items.rows, torch.cat([busiest, found.items.long()]).numpy()))
    hash_of = {int(items.rows[place]): int(items.hashes[place]) for place in places}
    groups = []
    for row, beside in zip(busiest.tolist(), found.items.split(found.lengths.tolist()), strict=True):
        near = [i for i in beside.tolist() if i in hash_of][:2]
        groups.append({hash_of[i]: i for i in (row, *near)})
    return groups


def _whole_items(trained: TrainedModel) -> Known:
    """The known items whose categories and values all have rows here.

    Raises:
        ValueError: those of row 0, which stands for unknown items, do not.
    """
    known = trained.items
    if trained.global_rows:
        rows = torch.from_numpy(np.concatenate([[COLD_ROW], known.rows]))
        kept = np.ones(len(rows), dtype=bool)
        if trained.categories is not None:
            kept &= _have_rows(trained, "category", trained.categories[rows].numpy(), NO_CATEGORY)
        if trained.fields is not None:
            kept &= _have_rows(trained, "field", trained.fields.of_items.at(rows).rows.numpy(), NO_VALUE)
        if not kept[0]:
            raise ValueError("item: expected rows for the categories and values of row 0; received a table without one")
        known = Known(known.hashes[kept[1:]], known.rows[kept[1:]])
    return known


def _have_rows(trained: TrainedModel, table: str, identities: NDArray[Any], nothing: int) -> NDArray[np.bool_]:
    found = (identities == nothing) | (trained.local_rows(table, np.maximum(identities, 0)) >= 0)
    whole: NDArray[np.bool_] = found.all(1)
    return whole


def _evenly_spread(known: Known) -> Mapping[int, int]:
    """Hashes and rows, evenly spread from the first to the last."""
    count = min(2 * ITEMS_PER_REQUEST, len(known.hashes))
    places = np.unique(np.linspace(0, len(known.hashes) - 1, count).astype(np.int64))
    return {int(known.hashes[place]): int(known.rows[place]) for place in places}
