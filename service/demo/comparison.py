"""Models that the demo compares with those of the service: LightGBM, and the incremental model without fields.

`service.demo.scenario` gives them each period that it plays.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from asmg.batch import COLD_ROW, NO_CATEGORY, PeriodData, build_histories, build_recent
from asmg.datasets.events import Ids
from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.log_fields import LogFields, read_columns
from asmg.features import DEFAULT, Schema
from asmg.metrics import Scores, scores
from asmg.models import default_config
from asmg.progressive import progressive_validation
from asmg.statistics import NAMES, StatisticsConfig
from asmg.updaters import build_updater
from asmg.yardsticks import build_yardstick, installed_yardsticks
from service.demo.streams import PlayedPeriod

__all__ = ["WITHOUT_FIELDS", "ComparisonModels"]

WITHOUT_FIELDS = "without_fields"
"""Key of the scores of the incremental model without fields."""


class ComparisonModels:
    """A yardstick on statistics and fields of the events so far: LightGBM, or logistic regression without the package.

    If the stream has fields, the service's incremental model without them is trained too.

    Args:
        schema: of the fields.
        seed: of the model without fields.
    """

    def __init__(self, schema: Schema = DEFAULT, seed: int = 0) -> None:
        self.name = "lightgbm" if "lightgbm" in installed_yardsticks() else "logistic"
        """The yardstick: a key of `asmg.yardsticks.YARDSTICKS`."""
        self._yardstick = build_yardstick(self.name)
        self._events, self._learned, self._has_fields = _EventLog(schema), 0, bool(schema.fields)
        self._queue: deque[PeriodData] = deque()
        shape = default_config(categories=True, numeric=len(NAMES))
        updater = build_updater("iu", shape, statistics=StatisticsConfig())
        self._without_fields = progressive_validation(updater, iter(self._queue.popleft, None), seed=seed)

    def score_and_learn(self, period: PlayedPeriod) -> Mapping[str, Scores]:
        """Predict the next period's events, then learn them.

        Returns:
            the scores of the predictions, by `name` and `WITHOUT_FIELDS`; empty for the first period, before which
            nothing was learned.
        """
        data = self._events.add(period)
        self._yardstick.fields = self._events.fields()
        found = {self.name: scores(self._yardstick.logits(data), data.label)} if self._learned else {}
        self._yardstick.learn([data])
        self._learned += 1
        if self._has_fields:
            self._queue.append(data)
            report, _ = next(self._without_fields)
            if "incremental" in report.scores:
                found[WITHOUT_FIELDS] = report.scores["incremental"]
        return found


class _EventLog:
    """All events so far, as table rows."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._users, self._items, self._categories = Ids(), Ids(), Ids()
        self._past: list[np.ndarray] = [np.empty(0, dtype) for dtype in (np.int32, np.int32, np.uint8, np.int64)]
        """Users, items, labels and times (milliseconds since 1970) of all events."""
        self._field_columns: dict[str, list[FieldColumn]] = {field.name: [] for field in schema.fields}
        self._features: dict[str, dict[str, Mapping[str, Any]]] = {"user": {}, "item": {}}
        self._item_categories: dict[str, tuple[str, ...]] = {}

    def fields(self) -> LogFields:
        """The fields of all events."""
        columns = {name: FieldColumn.joined(parts) for name, parts in self._field_columns.items()}
        return read_columns(self._schema, self._past[3], columns.__getitem__)

    def add(self, period: PlayedPeriod) -> PeriodData:
        """Append a period; return it without fields, each event with what its user had done before."""
        self._item_categories |= period.new_items
        self._add_fields(period)
        user, item = (
            known.encode(pl.Series(ids, dtype=pl.String)).astype(np.int32) + 1
            for known, ids in ((self._users, period.user_ids), (self._items, period.item_ids))
        )
        label, times = period.labels, period.timestamps_ms
        past_user, past_item, past_label, past_times = self._past
        clicked = past_label == 1
        history, offsets = build_histories(
            user, item, label, times, earlier=(past_user[clicked], past_item[clicked], past_times[clicked])
        )
        recent = build_recent(user, label, times, earlier=(past_user, past_label, past_times))
        new: list[np.ndarray] = [user, item, label, times]
        self._past = [np.concatenate(columns) for columns in zip(self._past, new, strict=True)]
        matrix = self._category_matrix()
        return PeriodData(
            user=torch.from_numpy(user),
            item=torch.from_numpy(item),
            history=torch.from_numpy(history),
            offsets=torch.from_numpy(offsets),
            label=torch.from_numpy(label.astype(np.float32)),
            users=len(self._users) + 1,
            items=len(self._items) + 1,
            categories=len(self._categories) + 1,
            item_categories=torch.from_numpy(matrix),
            recent=torch.from_numpy(recent),
        )

    def _add_fields(self, period: PlayedPeriod) -> None:
        owners = {"user": period.user_ids, "item": period.item_ids}
        for of, new in (("user", period.new_users), ("item", period.item_features)):
            self._features[of] |= new
        for field in self._schema.fields:
            if field.of == "context":
                given = period.contexts
            else:
                given = [self._features[field.of].get(id_, {}) for id_ in owners[field.of]]
            self._field_columns[field.name].append(FieldColumn.of(field, [values.get(field.name) for values in given]))

    def _category_matrix(self) -> np.ndarray:
        """int32 [items, C], as `PeriodData.item_categories`."""
        of_each = [self._item_categories.get(item, ()) for item in self._items.names()]
        numbers = self._categories.numbers
        matrix = np.full((len(of_each) + 1, max(1, *map(len, of_each))), NO_CATEGORY, np.int32)
        for row, names in enumerate(of_each, start=1):
            matrix[row, : len(names)] = [1 + COLD_ROW + numbers.setdefault(name, len(numbers)) for name in names]
        return matrix
