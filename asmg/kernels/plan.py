"""Planning an epoch: the table rows that each step reads, numbered before the first step."""

from typing import Any, NamedTuple

import numpy as np

from asmg.kernels.common import ONE, Floats, Indices, Rows, compiled

__all__ = ["TABLES", "Plan", "plan_epoch", "renumber"]

TABLES = 4
"""Number of embedding tables: user, item, category and field (`asmg.batch.TABLES`)."""


@compiled
def renumber(ids: Rows, size: int, numbers: Rows, rows: Rows, count: int) -> int:
    """Number distinct ids in the order of their appearance.

    Args:
        ids: int32 [n]; ids at or past `size` count as 0.
        size: number of known ids.
        numbers: int32 [size], 1 + the number of an id, 0 for a new one; changed in place.
        rows: the ids by number; changed in place.
        count: how many ids are numbered already.

    Returns:
        how many ids are numbered now.
    """
    for k in range(len(ids)):
        i = ids[k] if ids[k] < size else 0
        if numbers[i] == 0:
            rows[count] = i
            count += 1
            numbers[i] = count
    return count


class Plan(NamedTuple):
    """What each of the S steps of an epoch over k periods reads.

    A step takes one batch of each period, the newest first, and numbers the rows that all of them touch by first
    appearance: these numbers are "slots". Slot 0 is always the cold row. The slots that the batches 0 … q need are the
    first counts[:, step, q]. Items are numbered as "entities", the distinct items of the step: by id dropout an entity
    may have slot 0, but it keeps its categories.
    """

    order: np.ndarray
    """int64 [N], the interactions in the order in which steps and batches read them."""
    bounds: np.ndarray
    """int64 [S·k + 1]: batch q of step s is order[bounds[s·k + q] : bounds[s·k + q + 1]]."""
    user: np.ndarray
    """int32 [N], slots of the users."""
    item: np.ndarray
    """int32 [N], entities of the candidates."""
    history: np.ndarray
    """int32 [M], entities of the histories."""
    offsets: np.ndarray
    """int64 [N + 1], the bounds of the histories within `history`."""
    fields: np.ndarray
    """int32 [N, C], slots of the field table; -1 for none."""
    entity_slot: np.ndarray
    """int32 [ΣE], the slot of each entity in the item table."""
    entity_categories: np.ndarray
    """int32 [ΣE, C], the slots of their categories; -1 for none."""
    entity_bounds: np.ndarray
    """int64 [S + 1], the bounds of each step's entities."""
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    """int32 [ΣR] each, the table row of each slot, for the tables user, item, category and field."""
    row_bounds: np.ndarray
    """int64 [4, S + 1], the bounds of each step's slots."""
    counts: np.ndarray
    """int64 [5, S, k], number of slots of each table, and of entities, that the batches 0 … q use."""


@compiled
def plan_epoch(
    order: Indices,
    bounds: Indices,
    batches: int,
    user: Rows,
    item: Rows,
    history: Rows,
    offsets: Indices,
    categories: Rows,
    fields: Rows,
    weights: Floats,
    sizes: Indices,
    cold_rate: float,
    coins: Floats,
) -> tuple[Any, ...]:
    """The fields of a `Plan` from `user` on.

    Args:
        order, bounds: see Plan.
        batches: k.
        user, item, history, offsets: the interactions of all periods, concatenated.
        categories: [items, C], padded with -1.
        fields, weights: [N, F], rows and weights of the field table.
        sizes: rows of the four tables.
        cold_rate: probability of id dropout. Rows of the field table with another weight than 1 (numbers) are exempt.
        coins: [2N + M + N·F], uniform numbers in [0, 1), one per distinct id of a step in the order of appearance.
    """
    n, steps, width = len(order), (len(bounds) - 1) // batches, categories.shape[1]
    total = 0
    for k in range(n):
        total += offsets[order[k] + 1] - offsets[order[k]]
    out_user, out_item = np.empty(n, np.int32), np.empty(n, np.int32)
    out_history, out_offsets = np.empty(total, np.int32), np.zeros(n + 1, np.int64)
    user_rows, item_rows = np.empty(n + steps, np.int32), np.empty(n + total + steps, np.int32)
    category_rows = np.empty(steps + min((n + total) * width, steps * sizes[2]), np.int32)
    entity_slot, entity_categories = np.empty(n + total, np.int32), np.empty((n + total, width), np.int32)
    columns = fields.shape[1]
    out_fields = np.empty((n, columns), np.int32)
    field_rows = np.empty(steps + min(n * columns, steps * sizes[3]), np.int32)
    entity_bounds, row_bounds = np.zeros(steps + 1, np.int64), np.zeros((4, steps + 1), np.int64)
    counts = np.zeros((5, steps, batches), np.int64)
    user_step, user_slot = np.full(sizes[0], -1, np.int32), np.empty(sizes[0], np.int32)
    item_step, item_entity = np.full(sizes[1], -1, np.int32), np.empty(sizes[1], np.int32)
    category_step, category_slot = np.full(sizes[2], -1, np.int32), np.empty(sizes[2], np.int32)
    field_step, field_slot = np.full(sizes[3], -1, np.int32), np.empty(sizes[3], np.int32)
    ids = np.empty(1 + (np.max(offsets[1:] - offsets[:-1]) if n else 0), np.int32)
    users = items = cats = values = entities = at = coin = 0
    for s in range(steps):
        first_user, first_item, first_cat, first_entity = users, items, cats, entities
        first_value = values
        user_rows[users] = item_rows[items] = category_rows[cats] = field_rows[values] = 0
        users, items, cats, values = users + 1, items + 1, cats + 1, values + 1
        user_step[0], user_slot[0], category_step[0], category_slot[0] = s, 0, s, 0
        field_step[0], field_slot[0] = s, 0
        for q in range(batches):
            for k in range(bounds[s * batches + q], bounds[s * batches + q + 1]):
                b = order[k]
                u = user[b]
                if user_step[u] != s:
                    user_step[u] = s
                    if cold_rate > 0 and coins[coin] < cold_rate:
                        user_slot[u] = 0
                    else:
                        user_slot[u] = users - first_user
                        user_rows[users] = u
                        users += 1
                    coin += 1
                out_user[k] = user_slot[u]
                length = offsets[b + 1] - offsets[b]
                ids[0] = item[b]
                for m in range(length):
                    ids[1 + m] = history[offsets[b] + m]
                for m in range(1 + length):
                    i = ids[m]
                    if item_step[i] != s:
                        item_step[i] = s
                        item_entity[i] = entities - first_entity
                        if i == 0 or (cold_rate > 0 and coins[coin] < cold_rate):
                            entity_slot[entities] = 0
                        else:
                            entity_slot[entities] = items - first_item
                            item_rows[items] = i
                            items += 1
                        coin += 1
                        for c in range(width):
                            category = categories[i, c]
                            if category >= 0 and category_step[category] != s:
                                category_step[category] = s
                                category_slot[category] = cats - first_cat
                                category_rows[cats] = category
                                cats += 1
                            entity_categories[entities, c] = category_slot[category] if category >= 0 else -1
                        entities += 1
                    if m == 0:
                        out_item[k] = item_entity[i]
                    else:
                        out_history[at] = item_entity[i]
                        at += 1
                out_offsets[k + 1] = at
                for c in range(columns):
                    row = fields[b, c]
                    if row >= 0 and field_step[row] != s:
                        field_step[row] = s
                        if cold_rate > 0 and weights[b, c] == ONE and coins[coin] < cold_rate:
                            field_slot[row] = 0
                        else:
                            field_slot[row] = values - first_value
                            field_rows[values] = row
                            values += 1
                        coin += 1
                    out_fields[k, c] = field_slot[row] if row >= 0 else -1
            counts[0, s, q], counts[1, s, q] = users - first_user, items - first_item
            counts[2, s, q], counts[3, s, q] = cats - first_cat, values - first_value
            counts[4, s, q] = entities - first_entity
        entity_bounds[s + 1] = entities
        row_bounds[0, s + 1], row_bounds[1, s + 1], row_bounds[2, s + 1] = users, items, cats
        row_bounds[3, s + 1] = values
    return (
        out_user, out_item, out_history, out_offsets, out_fields,
        entity_slot[:entities], entity_categories[:entities], entity_bounds,
        (user_rows[:users], item_rows[:items], category_rows[:cats], field_rows[:values]), row_bounds, counts,
    )  # fmt: skip
