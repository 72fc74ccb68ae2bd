"""The models that the demo compares with those of the service."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asmg.datasets.field_columns import By, FieldColumn
from asmg.datasets.prepared import PreparedLog
from asmg.experiments.periods import cut_periods
from asmg.features import Schema
from asmg.metrics import scores
from asmg.models import default_config
from asmg.progressive import progressive_validation
from asmg.statistics import NAMES, StatisticsConfig
from asmg.updaters import build_updater
from asmg.yardsticks import build_yardstick
from service.demo.comparison import WITHOUT_FIELDS, ComparisonModels
from service.demo.streams import PlayedPeriod, synthetic_stream
from tests.service.test_demo_traffic import SMALL


class TestComparisonModels:
    """The yardstick, and the incremental model without fields."""

    @pytest.mark.parametrize("name", ["lightgbm", "logistic"])
    @pytest.mark.parametrize("fields", [True, False])
    def test_it_is_the_yardstick_of_the_experiments(
        self, name: str, fields: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On the same events both have the numbers that `asmg experiment run` would give them."""
        if name == "lightgbm":
            pytest.importorskip("lightgbm")
        else:
            monkeypatch.setattr("asmg.yardsticks.lightgbm_version", lambda: None)
        stream = synthetic_stream(replace(SMALL, fields=fields), 3, seed=2)
        log = prepared(periods := list(stream.periods), stream.schema)
        cut = cut_periods(log, 3, known="so_far", categories=True, fields=True)
        yardstick, comparison = build_yardstick(name, fields=cut.fields), ComparisonModels(stream.schema, seed=5)
        updater = build_updater(
            "iu", default_config(categories=True, numeric=len(NAMES)), statistics=StatisticsConfig()
        )
        bare = [replace(data, fields=None) for data in cut.data]
        reports = [report.scores for report, _ in progressive_validation(updater, bare, seed=5)]
        assert comparison.name == name
        for number, (period, data) in enumerate(zip(periods, cut.data, strict=True)):
            found = comparison.score_and_learn(period)
            if number == 0:
                assert found == {}
            else:
                assert found[name] == scores(yardstick.logits(data), data.label)
                assert found[name].events == SMALL.events
                assert found.get(WITHOUT_FIELDS) == (reports[number]["incremental"] if fields else None)
            yardstick.learn([data])


def prepared(periods: Sequence[PlayedPeriod], schema: Schema) -> PreparedLog:
    """The log of a stream, as an experiment reads it."""
    users, items = (
        list(dict.fromkeys(id_ for period in periods for id_ in getattr(period, ids)))
        for ids in ("user_ids", "item_ids")
    )
    user_of, item_of = ({id_: n for n, id_ in enumerate(ids)} for ids in (users, items))
    names: dict[str, int] = {}
    categories = {item: names_of for period in periods for item, names_of in period.new_items.items()}
    matrix = np.full((len(items), 2), -1, np.int32)
    for row, item in enumerate(items):
        numbers = [names.setdefault(name, len(names)) for name in categories[item]]
        matrix[row, : len(numbers)] = numbers
    features: dict[str, Any] = {}
    for period in periods:
        features |= {**period.new_users, **period.item_features}
    columns = {}
    for field in schema.fields:
        if field.of == "context":
            given = [context for period in periods for context in period.contexts]
        else:
            given = [features[id_] for id_ in (users if field.of == "user" else items)]
        by: By = "row" if field.of == "context" else field.of
        columns[field.name] = FieldColumn.of(field, [values[field.name] for values in given], by)
    return PreparedLog(
        card=SimpleNamespace(negatives_per_positive=0),  # type: ignore[arg-type] # all that is asked of it
        user=np.array([user_of[id_] for period in periods for id_ in period.user_ids], np.uint32),
        item=np.array([item_of[id_] for period in periods for id_ in period.item_ids], np.uint32),
        label=np.concatenate([p.labels for p in periods]),
        timestamps_ms=np.concatenate([p.timestamps_ms for p in periods]),
        categories=tuple(names),
        item_categories=matrix,
        schema=schema,
        fields=columns,
    )
