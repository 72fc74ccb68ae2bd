"""From a trained model to its serving snapshot: the part of serving that the worker alone needs, and torch with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asmg.batch import COLD_ROW, HISTORY_LENGTH, NO_VALUE, InteractionBatch, ItemFeatures, PeriodData
from asmg.field_columns import SUMS, BatchFields, FieldColumns
from asmg.kernels.common import Floats, Indices, Rows, compiled
from asmg.models import BaseModel, field_sums
from asmg.statistics import NAMES, Statistics
from service.serving.fields import FieldReader
from service.serving.forward import EPSILON, OF_CONTEXT, OF_ITEM, OF_USER, FieldValues
from service.serving.id_index import IdIndex
from service.serving.snapshot import hashes_of, write_snapshot
from service.serving.tensor_file import Blocks, Writable

__all__ = ["Known", "KnownFields", "encode_model", "encode_snapshot"]

BLOCK_ROWS = 262_144
"""Rows that are put in order and written at a time."""

ALIGNED_TO = 8
"""Numbers of 32 bytes. A row of a table with statistics has a multiple of it: with vectors of 8 it is a cache line."""

CANARY_ITEMS = 8
CANARY_PAIRS = 4
"""Items whose neighbours it asks about."""
STRANGER = "\x7fnobody"
"""An id that no client is likely to have."""


@dataclass(frozen=True)
class Known:
    """The ids of a table that have a row of their own."""

    ids: Sequence[str]
    rows: NDArray[Any]
    """int [N], each ≥ 1 and within the table."""


@dataclass(frozen=True)
class KnownFields:
    """The fields that a model reads."""

    values: Known
    """The values that have a row, by `asmg.features.name_of_value`."""
    reader: FieldReader
    """By which a process reads the fields of a request."""
    of_items: FieldColumns
    """The item's columns, of every row of the item table, [I, C]; row 0 is an item of which nothing is known."""


def encode_model(
    file: Writable,
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
    statistics: Statistics | None = None,
    fields: KnownFields | None = None,
) -> None:
    """Write the snapshot of a model; equal models give equal bytes.

    Args:
        file: takes bytes.
        model, params: the model to serve.
        users, items: the ids it knows.
        item_categories: int [I, C] for a model with categories.
        statistics: what the model's numeric inputs are made of, with all periods that it has learned; others do not
            read it.
        fields: for a model that reads any.

    Raises:
        ValueError: a parameter is not finite, or there are no statistics or fields for a model that reads them.
    """
    user_index, user_rows = IdIndex.build(users.ids, users.rows)
    item_index, item_rows = IdIndex.build(items.ids, items.rows)
    user_order, item_order = _behind_cold(user_rows), _behind_cold(item_rows)
    if ("field" in model.tables) != (fields is not None):
        raise ValueError(f"fields: expected exactly for a model with fields; received {fields is not None}")
    read = _read(model, statistics)
    about = _About(model, params, item_categories, read, fields)
    one = about.table(item_order[:1])
    tables: dict[str, NDArray[Any] | Blocks] = {
        name: _finite(name, params[name]).float().numpy() for name in model.dense_shapes
    }
    tables["users.vectors"] = Blocks(
        np.float32,
        (len(user_order), params["user"].shape[1]),
        (_finite("user", params["user"][rows]).numpy() for rows in user_order.split(BLOCK_ROWS)),
    )
    tables["items.vectors"] = Blocks(
        np.float32,
        (len(item_order), one.shape[1]),
        (about.table(rows).numpy() for rows in item_order.split(BLOCK_ROWS)),
    )
    if read is not None:
        tables |= _Pairs(read, item_order).tables()
        tables["statistics.scale"] = torch.stack(read.scale).numpy()
        tables["statistics.average"] = np.array([read.average], np.float32)
    value_index = None
    if fields is not None:
        value_index, value_rows = IdIndex.build(fields.values.ids, fields.values.rows)
        tables["fields.vectors"] = _finite("field", params["field"][_behind_cold(value_rows)]).numpy()
    write_snapshot(
        file,
        model=model.config.to_json(),
        canary=list(_canary(about, users, items)),
        users=user_index,
        items=item_index,
        tables=tables,
        fields=value_index,
        reader=None if fields is None else fields.reader,
    )


def encode_snapshot(
    model: BaseModel,
    params: Mapping[str, Tensor],
    users: Known,
    items: Known,
    item_categories: Tensor | None = None,
    statistics: Statistics | None = None,
    fields: KnownFields | None = None,
) -> bytes:
    """What `encode_model` writes, in memory."""
    with BytesIO() as file:
        encode_model(file, model, params, users, items, item_categories, statistics, fields)
        return file.getvalue()


def _read(model: BaseModel, statistics: Statistics | None) -> Statistics | None:
    """The statistics, where the model reads them."""
    if not model.numeric:
        return None
    if model.numeric != len(NAMES) or statistics is None or not statistics.periods:
        received = "none" if statistics is None else f"those of {statistics.periods} periods, {len(NAMES)} of each"
        raise ValueError(
            f"statistics: expected those of at least one period for {model.numeric} numeric inputs; received {received}"
        )
    return statistics


class _Pairs:
    """What is beside the items of a snapshot, in the order of its rows; items without a row there are left out."""

    def __init__(self, statistics: Statistics, order: Tensor) -> None:
        """Count it.

        Args:
            statistics: of all items.
            order: int64 [I], the item of each row.
        """
        self._statistics, self._order = statistics, order
        self._row_of = np.zeros(1 + int(order.max()), np.uint32)
        self._row_of[order.numpy()] = np.arange(len(order))
        lengths = [self._pairs(items)[0] for items in order.split(BLOCK_ROWS)]
        self._firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
        if self._firsts[-1] >= 2**32:
            raise ValueError(f"pairs: expected fewer than 2**32 of items; received {self._firsts[-1]}")

    def tables(self) -> dict[str, Blocks]:
        """As `service.serving.snapshot` has them."""
        found = int(self._firsts[-1])
        return {
            "pairs.firsts": Blocks(np.uint32, self._firsts.shape, [self._firsts]),
            "pairs.items": Blocks(np.uint32, (found,), (rows for rows, _ in self._blocks())),
            "pairs.counts": Blocks(np.float32, (found, 2), (counts for _, counts in self._blocks())),
        }

    def _blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Rows of the neighbours, and how often each was clicked and passed, of some items at a time."""
        for start, items in enumerate(self._order.split(BLOCK_ROWS)):
            first = start * BLOCK_ROWS
            size = int(self._firsts[first + len(items)] - self._firsts[first])
            yield self._pairs(items, size)[1:]

    def _pairs(self, items: Tensor, size: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        state = self._statistics
        known = items.where(items < len(state.counts), COLD_ROW)
        lengths = np.empty(len(items), np.int64)
        rows, counts = np.empty(size, np.uint32), np.empty((size, 2), np.float32)
        _copy_pairs(
            known.numpy(), state.fading(known).numpy(), state.starts.numpy(), state.neighbours.numpy(),
            state.together.numpy(), state.passed.numpy(), self._row_of, lengths, rows, counts,
        )  # fmt: skip
        return lengths, rows, counts


@compiled
def _copy_pairs(
    items: Indices,
    fading: Floats,
    starts: Indices,
    neighbours: Rows,
    together: Floats,
    passed: Floats,
    row_of: NDArray[np.uint32],
    lengths: Indices,
    rows: NDArray[np.uint32],
    counts: Floats,
) -> None:
    """Of some items those pairs whose neighbours have a row, and how many of each; without room for them this alone."""
    top = 0
    for b in range(len(items)):
        first = top
        for m in range(starts[items[b]], starts[items[b] + 1]):
            near = neighbours[m]
            if near >= len(row_of) or row_of[near] == 0:
                continue
            if top < len(rows):
                rows[top] = row_of[near]
                counts[top, 0], counts[top, 1] = together[m] * fading[b], passed[m] * fading[b]
            top += 1
        lengths[b] = top - first


def _behind_cold(rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[COLD_ROW], rows]))


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers; received NaN or infinity")
    return tensor.detach()


@dataclass(frozen=True)
class _About:
    """A model and all that it reads of items."""

    model: BaseModel
    params: Mapping[str, Tensor]
    categories: Tensor | None
    statistics: Statistics | None
    fields: KnownFields | None

    def features(self, rows: Tensor, own: Tensor) -> ItemFeatures | None:
        """The categories of these items, whose own rows are `own` of the item table at hand."""
        return None if self.categories is None else ItemFeatures(own, self.categories[rows].long())

    def table(self, rows: Tensor) -> Tensor:
        """Rows of "items.vectors"."""
        own = self.params["item"][rows]
        features = self.features(rows, torch.arange(len(rows)))
        parts = [_finite("item", self.model.item_vectors({**self.params, "item": own}, features))]
        if self.fields is not None:
            sums = field_sums(self.params["field"], self.fields.of_items.batch(rows))
            parts.append(_finite("field", sums.chunk(len(SUMS), 1)[SUMS.index("item")]))
        if self.statistics is None:
            return torch.cat(parts, 1)
        known = rows.where(rows < len(self.statistics.counts), COLD_ROW)
        degrees = self.statistics.degrees[known] * self.statistics.fading(known)
        table = torch.cat([*parts, self.statistics.of_items(rows), degrees.unsqueeze(1)], 1)
        return functional.pad(table, (0, -table.shape[1] % ALIGNED_TO))


def _canary(about: _About, users: Known, items: Known) -> Iterator[dict[str, Any]]:
    """Questions about ids from everywhere in the tables, and their scores by the library's forward pass.

    With statistics each asks about neighbours of a clicked item and about that item again; with fields each has some
    values, one of which nobody knows.
    """
    model, params, statistics = about.model, about.params, about.statistics
    user_of, item_of = ({STRANGER: COLD_ROW, **_some(known)} for known in (users, items))
    names = list(item_of)
    # In double precision: a float32 sum depends on where in memory it lies, and equal models shall have equal files.
    shared = {name: tensor.double() for name, tensor in params.items() if name not in ("user", "item")}
    beside = [] if statistics is None else _neighbours(items, statistics)
    item_of |= {name: row for places in beside for name, row in places.items()}
    for n, (user_id, user) in enumerate(user_of.items()):
        asked = [names[(n + k) % len(names)] for k in range(min(CANARY_ITEMS, len(names)))]
        past = [names[(2 * n + k) % len(names)] for k in range(n % (HISTORY_LENGTH + 1))]
        if beside:
            clicked, *near = beside[n % len(beside)]
            asked, past = [*near, *asked, clicked], [*past[: n // 2], clicked, *past[n // 2 :]]
        done = (7 * n + 3) % (HISTORY_LENGTH + 1)
        recent = [done, min(done, 10) // 2, done // 2]
        rows = torch.tensor([item_of[name] for name in (*asked, *past)])
        values, read = (None, None) if about.fields is None else _values(about.fields, n, rows[: len(asked)])
        batch = InteractionBatch(
            user=torch.zeros(len(asked), dtype=torch.int64),
            item=torch.arange(len(asked)),
            history=torch.arange(len(asked), len(rows)).repeat(len(asked)),
            offsets=torch.arange(len(asked) + 1) * len(past),
            label=torch.zeros(len(asked)),
            numeric=None if statistics is None else _numeric(statistics, rows, len(asked), recent).double(),
            fields=read,
        )
        excerpt = {**shared, "user": params["user"][user : user + 1].double(), "item": params["item"][rows].double()}
        features = about.features(rows, torch.arange(len(rows)))
        with torch.inference_mode():
            scores = (
                torch.sigmoid(model.logits(excerpt, batch, features)).nan_to_num(0).clamp(EPSILON, 1 - EPSILON).float()
            )
        asked_hashes, past_hashes = hashes_of([user_id, *asked]).tolist(), hashes_of(past).tolist()
        question = {"asked": asked_hashes, "history": past_hashes}
        question |= {} if statistics is None else {"recent": recent}
        question |= {} if values is None else {"values": [column.tolist() for column in values]}
        yield question | {"scores": scores.tolist()}


def _values(fields: KnownFields, n: int, items: Tensor) -> tuple[FieldValues, BatchFields]:
    """Values of the n-th question about these items [N], as a process is asked and as the library reads them."""
    known = list(_some(fields.values).items())
    picked = [known[(3 * n + k) % len(known)] for k in range(4)] if known else []
    asked = [*picked, (STRANGER, COLD_ROW)]
    owners = [OF_CONTEXT, OF_USER, OF_ITEM + n % len(items), OF_CONTEXT, OF_USER][-len(asked) :]
    weights = [1.0, 1.0, 1.0, -0.5, 1.0][-len(asked) :]
    values = FieldValues(
        hashes_of([name for name, _ in asked]), np.array(weights, np.float32), np.array(owners, np.int32)
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
    """Inputs [n, S] of the first n of these items, of somebody who has clicked the others, newest first."""
    # Two unknown items are the same here, as `STRANGER` is the only one, and in no row of the statistics.
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


def _neighbours(items: Known, statistics: Statistics) -> list[dict[str, int]]:
    """Ids and rows of some items with the most clicks beside them, each before two of its neighbours."""
    place_of = torch.full((1 + max(items.rows, default=0),), -1, dtype=torch.int64)
    rows = torch.as_tensor(items.rows, dtype=torch.int64)
    place_of[rows] = torch.arange(len(rows))
    known = rows[rows < len(statistics.counts)]
    busiest = known[statistics.degrees[known].topk(min(CANARY_PAIRS, len(known))).indices].tolist()
    found = []
    for row in busiest:
        beside = statistics.neighbours[statistics.starts[row] : statistics.starts[row + 1]].tolist()
        near = [i for i in beside if i < len(place_of) and place_of[i] >= 0][:2]
        found.append({items.ids[int(place_of[i])]: i for i in (row, *near)})
    return found


def _some(known: Known) -> dict[str, int]:
    """Ids and rows, evenly from the first to the last."""
    count = min(2 * CANARY_ITEMS, len(known.ids))
    places = np.unique(np.linspace(0, len(known.ids) - 1, count).astype(np.int64))
    return {known.ids[place]: int(known.rows[place]) for place in places}
