"""Yardsticks: what they predict, by hand and by slow versions; and that nothing in it comes from the future."""

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from asmg.batch import PeriodData
from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.log_fields import LogFields
from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.experiments.periods import cut_periods, with_statistics
from asmg.features import NUMBER, Field, Schema
from asmg.layout import NO_VALUE
from asmg.metrics import auc, logloss
from asmg.statistics import NAMES, Statistics, StatisticsConfig
from asmg.yardsticks import YARDSTICKS, build_yardstick, installed_yardsticks
from asmg.yardsticks.boosting import lightgbm_version
from asmg.yardsticks.logistic import BITS, CROSSED, RATE
from tests.asmg.logs import prepare_small


def period(shown: Iterable[tuple[int, int]], items: int = 9) -> PeriodData:
    """Impressions (item, label), each of a user of its own who has no past."""
    item, label = zip(*shown, strict=True)
    n = len(item)
    return PeriodData(
        user=torch.arange(1, n + 1, dtype=torch.int32),
        item=torch.tensor(item, dtype=torch.int32),
        history=torch.empty(0, dtype=torch.int32),
        offsets=torch.zeros(n + 1, dtype=torch.int64),
        label=torch.tensor(label, dtype=torch.float32),
        users=n + 1,
        items=items,
        recent=torch.zeros(n, 3, dtype=torch.int32),
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PreparedLog:
    return read_prepared(prepare_small(tmp_path_factory.mktemp("log") / "log", rows=1_400))


def cut(log: PreparedLog, count: int = 7) -> list[PeriodData]:
    return cut_periods(log, count, known="so_far", categories=False).data


NEXT = period([(1, 0), (2, 1), (3, 0), (4, 1)])


class TestCounts:
    """The two that know nothing but a count."""

    def test_popularity_is_the_order_of_clicks_of_late(self) -> None:
        yardstick = build_yardstick("popularity")
        # Clicks, halved after a period: of item 1 4 / 2 = 2, of item 2 1 / 2 + 2 = 2.5, of item 3 1; item 4 is new.
        yardstick.learn([period([(1, 1)] * 4 + [(2, 1), (3, 0)])])
        yardstick.learn([period([(2, 1), (2, 1), (3, 1), (1, 0), (3, 0)])])
        logits = yardstick.logits(NEXT).tolist()
        assert logits[1] > logits[0] > logits[2] > logits[3]
        steps = [(logits[1] - logits[3]) / math.log(3.5), (logits[0] - logits[3]) / math.log(3)]
        assert steps[0] == pytest.approx(steps[1], rel=1e-3)  # linear in log(1 + clicks)

    def test_its_two_numbers_fit_the_last_closed_period(self) -> None:
        rng = np.random.default_rng(0)
        before = period([(i, 1) for i in range(1, 9) for _ in range(i)])
        items = rng.integers(1, 9, 200)
        last = period(zip(items.tolist(), (rng.random(200) < items / 12).astype(int).tolist(), strict=True))
        yardstick = build_yardstick("popularity")
        yardstick.learn([before, last])
        # What it says of an item without and of one with clicks gives back its line.
        closed = Statistics.initial(StatisticsConfig()).learned(before).learned(last)
        x = closed.raw(NEXT)[:, NAMES.index("item_clicks_late")].double()
        slope, start = np.polyfit(x.numpy(), yardstick.logits(NEXT).double().numpy(), 1)
        then = torch.log1p(last.item.double())

        def loss(a: float, b: float) -> float:
            return logloss(a + b * then, last.label)

        best = loss(start, slope)
        assert slope > 0
        assert all(
            loss(start + da, slope + db) > best - 1e-7
            for da in (-0.05, 0, 0.05)
            for db in (-0.05, 0, 0.05)
        )  # fmt: skip

    def test_popular_items_that_nobody_wants_any_more_stay_in_front(self) -> None:
        yardstick = build_yardstick("popularity")
        yardstick.learn([period([(1, 1)] * 9 + [(2, 1)]), period([(1, 0)] * 6 + [(2, 1)] * 2)])
        logits = yardstick.logits(NEXT)
        assert logits[0] > logits[1] > logits[2]
        assert float(torch.sigmoid(logits[:2]).mean()) == pytest.approx(2 / 8, abs=0.01)

    def test_item_rate_by_hand(self) -> None:
        yardstick = build_yardstick("item-ctr")
        yardstick.learn([period([(1, 1), (1, 1), (1, 0), (2, 1), (2, 0), (3, 0), (3, 0), (3, 0)])])
        average = 3 / 8
        rates = [(clicks + 2 * average) / (shown + 2) for clicks, shown in ((2, 3), (1, 2), (0, 3), (0, 0))]
        assert yardstick.logits(NEXT).tolist() == pytest.approx([math.log(p / (1 - p)) for p in rates], rel=1e-5)
        # A period later these counts are half of what they were, and the average is a mean of fading periods.
        yardstick.learn([period([(1, 0), (4, 1)])])
        average = (0.9 * 3 + 1) / (0.9 * 8 + 2)
        rates = [(c + 2 * average) / (n + 2) for c, n in ((1, 2.5), (0.5, 1), (0, 1.5), (1, 1))]
        assert yardstick.logits(NEXT).tolist() == pytest.approx([math.log(p / (1 - p)) for p in rates], rel=1e-5)

    @pytest.mark.parametrize("name", ["popularity", "item-ctr", "logistic", "lightgbm"])
    @pytest.mark.parametrize("label", [0, 1])
    def test_one_class_is_predicted_with_finite_numbers(self, name: str, label: int) -> None:
        if name == "lightgbm":
            pytest.importorskip("lightgbm")
        yardstick = build_yardstick(name)
        yardstick.learn([period([(1, label), (2, label), (2, label)])])
        assert torch.isfinite(yardstick.logits(NEXT)).all()


def place(kind: int, first: int, second: int = 0) -> int:
    """The place of a hashed feature, in whole numbers of any size."""
    mixed = ((first << 32 | second) * 0x9E3779B97F4A7C15 + kind) % 2**64
    mixed = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15 % 2**64
    return (mixed ^ mixed >> 32) % 2**BITS


def with_fields(log: PreparedLog) -> PreparedLog:
    """Fields that say something: which device likes what, and of an item its price; a place for training only."""
    rng, n = np.random.default_rng(5), len(log.label)
    device = rng.integers(0, 3, n)
    likes = (device + log.item % 3) % 3 == 0
    label = np.where(rng.random(n) < 0.8, likes, log.label).astype(np.uint8)
    columns = [
        FieldColumn.of(Field("device", "context", "categorical"), [f"d{d}" if d else None for d in device.tolist()]),
        FieldColumn.of(
            Field("place", "context", "categorical", training_only=True),
            (rng.integers(0, 2, n) + 3 * label.astype(int)).tolist(),
        ),
        FieldColumn.of(
            Field("age", "user", "numeric", enter="buckets", buckets=(30, 50)),
            [int(v) or None for v in rng.integers(0, 80, log.card.users)], "user",
        ),
        FieldColumn.of(
            Field("kinds", "item", "multi", 2),
            ([f"k{v % 3}", "all"] if v % 2 else [f"k{v % 3}"] for v in range(log.card.items)), "item",
        ),
        FieldColumn.of(
            Field("price", "item", "numeric", enter="log"), [v % 5 or None for v in range(log.card.items)], "item"
        ),
    ]  # fmt: skip
    fields = {column.field.name: column for column in columns}
    schema = Schema(tuple(column.field for column in columns), time=("hour",))
    return replace(log, label=label, schema=schema, fields=fields)


class SlowLogistic:
    """Weights by place, and by the names of what has a place of its own."""

    def __init__(self) -> None:
        self.weights: defaultdict[int | str, float] = defaultdict(float)
        self.squares: defaultdict[int | str, float] = defaultdict(float)

    def features(self, data: PeriodData, inputs: torch.Tensor, n: int) -> list[tuple[int | str, float]]:
        user, item = int(data.user[n]), int(data.item[n])
        past = data.history[data.offsets[n] : data.offsets[n + 1]].tolist()[:CROSSED]
        hashed = [place(1, user), place(2, item), place(3, user, item), *(place(4, h, item) for h in past)]
        return [*((at, 1.0) for at in hashed), ("one", 1.0), *zip(NAMES, inputs[n].tolist(), strict=True)]

    def of_fields(
        self, data: PeriodData, columns: LogFields, n: int, moments: tuple[float, float]
    ) -> list[tuple[int | str, float]]:
        """The features of an interaction's fields; moments: mean and deviation of the prices."""
        found: list[tuple[int | str, float]] = []
        for c, row in enumerate(columns.rows[n].tolist()):
            if row == NO_VALUE:
                continue
            if columns.values[row - 1][1] == NUMBER:
                scaled = (columns.numbers[n, c] - moments[0]) / (moments[1] + 1e-3)
                found.append((place(5, row), min(max(scaled, -5), 5)))
                continue
            found.append((place(5, row), 1.0))
            user, item = int(data.user[n]), int(data.item[n])
            found.append((place(6, row, item) if c < columns.request_columns else place(7, user, row), 1.0))
        return found

    def logit(self, features: list[tuple[int | str, float]]) -> float:
        return sum(self.weights[name] * value for name, value in features)

    def learn(self, data: PeriodData, inputs: torch.Tensor) -> None:
        for n in range(len(data)):
            self.step(self.features(data, inputs, n), float(data.label[n]))

    def step(self, features: list[tuple[int | str, float]], label: float) -> None:
        error = 1 / (1 + math.exp(-self.logit(features))) - label
        for name, value in features:
            gradient = error * value
            self.squares[name] += gradient**2
            self.weights[name] -= float(RATE) * gradient / math.sqrt(1 + self.squares[name])


def test_logistic_regression_is_that_of_a_slow_version(log: PreparedLog) -> None:
    periods, yardstick, slow = cut(log)[:5], build_yardstick("logistic"), SlowLogistic()
    known = Statistics.initial(StatisticsConfig())
    for data in periods:
        inputs = known.inputs(data)
        expected = [slow.logit(slow.features(data, inputs, n)) for n in range(len(data))]
        assert yardstick.logits(data).tolist() == pytest.approx(expected, abs=1e-4)
        yardstick.learn([data])
        slow.learn(data, inputs)
        known = known.learned(data)
    assert max(map(abs, expected)) > 0.5 and len(slow.weights) > 1_000


def test_logistic_regression_with_fields_is_that_of_a_slow_version(log: PreparedLog) -> None:
    rich = with_fields(log)
    periods = cut_periods(rich, 7, known="so_far", categories=False, fields=True)
    assert periods.fields is not None
    yardstick, slow = build_yardstick("logistic", fields=periods.fields), SlowLogistic()
    known, prices = Statistics.initial(StatisticsConfig()), np.zeros(0)
    for step, data in enumerate(periods.data[:4]):
        inputs, columns = known.inputs(data), periods.fields.part(step * 200, step * 200 + 200)
        own = columns.numbers[~np.isnan(columns.numbers)]
        when = prices if step else own
        moments = float(when.mean()), float(when.std())

        def features(n: int, columns: LogFields) -> list[tuple[int | str, float]]:
            return slow.features(data, inputs, n) + slow.of_fields(data, columns, n, moments)  # noqa: B023 # used at once

        if step:
            neutral = columns.neutralised(slice(None))
            expected = [slow.logit(features(n, neutral)) for n in range(len(data))]
            assert yardstick.logits(data).tolist() == pytest.approx(expected, abs=2e-4)
        yardstick.learn([data])
        learned = columns.neutralised(slice(0, None, 10))
        for n in range(len(data)):
            slow.step(features(n, learned), float(data.label[n]))
        prices = np.concatenate([prices, own])
        known = known.learned(data)
    assert len({name for name in slow.weights if isinstance(name, int)}) > 1_000


def test_lightgbm_reads_fields_as_numbers(log: PreparedLog) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    rich = with_fields(log)
    periods = cut_periods(rich, 7, known="so_far", categories=False, fields=True)
    assert periods.fields is not None
    yardstick, known, rows = (
        build_yardstick("lightgbm", fields=periods.fields),
        Statistics.initial(StatisticsConfig()),
        [],
    )
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)  # of the values of a field, by first appearance
    numbers["place"][""] = 0

    def matrix(step: int, neutral: slice) -> np.ndarray:
        found = np.full((200, 7), np.nan)
        hidden = range(200)[neutral]
        for n in range(200):
            row = step * 200 + n
            hour = str(int(rich.timestamps_ms[row]) // 3_600_000 % 24)
            shown = {"hour": (hour,)} | {
                name: column.distinct[column.values[row]]
                for name in ("device", "place", "kinds") for column in [rich.by_row(name)]
            }  # fmt: skip
            for at, name in ((0, "hour"), (1, "device"), (2, "place"), (4, "kinds")):
                for k, value in enumerate(shown[name]):
                    found[n, at + k] = numbers[name].setdefault(value, len(numbers[name]))
            if n in hidden:
                found[n, 2] = 0
            age, price = rich.by_row("age").values[row], rich.by_row("price").values[row]
            found[n, 3] = math.nan if math.isnan(age) else int(age >= 30) + int(age >= 50)
            found[n, 6] = math.log1p(price)
        return np.concatenate([known.raw(periods.data[step]).double().numpy(), found], axis=1)

    for step, data in enumerate(periods.data[:6]):
        rows.append(matrix(step, slice(0, None, 10)))
        known = known.learned(data)
    yardstick.learn(periods.data[:6])
    model = lightgbm.LGBMClassifier(
        n_estimators=200, learning_rate=0.05, num_leaves=31, min_child_samples=50, verbose=-1, n_jobs=1
    )
    model.fit(np.concatenate(rows[1:]), np.concatenate([data.label.numpy() for data in periods.data[1:6]]))
    expected = model.predict(matrix(6, slice(None)), raw_score=True)
    assert yardstick.logits(periods.data[6]).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["logistic", "lightgbm"])
def test_fields_are_worth_something(log: PreparedLog, name: str) -> None:
    """They say which device likes what; and the place, which says the label, is not known when predicting."""
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    rich, found = with_fields(log), []
    for fields in (False, True):
        periods = cut_periods(rich, 7, known="so_far", categories=False, fields=fields)
        yardstick = build_yardstick(name, fields=periods.fields)
        assert yardstick.config["fields"] == (["hour", "device", "place", "age", "kinds", "price"] if fields else [])
        yardstick.learn(periods.data[:6])
        last = periods.data[6]
        found.append(auc(yardstick.logits(last), last.label))
        if periods.fields is not None:
            moved = periods.fields.rows.copy()
            moved[1_200:, 2] = 1  # whatever stands in the place of the place
            other = build_yardstick(name, fields=periods.fields._replace(rows=moved))
            other.learn(periods.data[:6])
            assert other.logits(last).tolist() == yardstick.logits(last).tolist()
    assert found[0] is not None and found[1] is not None and found[1] > found[0] + 0.05
    assert found[1] < 0.95  # it has not seen the label


def test_lightgbm_is_that_of_an_afternoon(log: PreparedLog) -> None:
    """As its users write it down, on the last five periods."""
    lightgbm = pytest.importorskip("lightgbm")
    periods = cut(log)
    yardstick, known, rows = build_yardstick("lightgbm"), Statistics.initial(StatisticsConfig()), []
    for data in periods[:6]:
        rows.append(known.raw(data).numpy())
        known = known.learned(data)
    yardstick.learn(periods[:2])
    yardstick.learn(periods[2:6])
    model = lightgbm.LGBMClassifier(
        n_estimators=200, learning_rate=0.05, num_leaves=31, min_child_samples=50, verbose=-1, n_jobs=1
    )
    model.fit(np.concatenate(rows[1:]), np.concatenate([data.label.numpy() for data in periods[1:6]]))
    expected = model.predict(known.raw(periods[6]).numpy(), raw_score=True)
    assert yardstick.logits(periods[6]).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", YARDSTICKS)
class TestLaws:
    """Of every yardstick."""

    @pytest.fixture(autouse=True)
    def installed(self, name: str) -> None:
        if name == "lightgbm":
            pytest.importorskip("lightgbm")

    def test_the_future_changes_nothing(self, log: PreparedLog, name: str) -> None:
        """Whatever happens after a moment in period 6, what was predicted until then stays to the bit."""
        periods = cut(log)
        later = int(np.searchsorted(log.timestamps_ms, log.timestamps_ms[1_100], side="right"))
        order = np.concatenate([np.arange(later), later + np.random.default_rng(1).permutation(len(log.label) - later)])
        other = replace(
            log, label=np.where(np.arange(len(order)) < later, log.label, 1 - log.label[order]), item=log.item[order]
        )
        changed = cut(other)
        assert 1_000 < later < 1_200 and not torch.equal(changed[5].label, periods[5].label)
        found = []
        for logs in (periods, changed):
            yardstick = build_yardstick(name)
            yardstick.learn(logs[:5])
            found.append(yardstick.logits(logs[5]))
        until = later - 1_000
        assert torch.equal(found[0][:until], found[1][:until])
        assert name in ("popularity", "item-ctr") or not torch.equal(*found)

    def test_labels_of_the_period_to_predict_are_not_read(self, log: PreparedLog, name: str) -> None:
        periods, yardstick = cut(log), build_yardstick(name)
        yardstick.learn(periods[:5])
        predicted = yardstick.logits(periods[5])
        assert torch.equal(predicted, yardstick.logits(replace(periods[5], label=1 - periods[5].label)))
        assert predicted.dtype == torch.float32 and predicted.shape == (200,)

    def test_it_learns_and_is_deterministic(self, log: PreparedLog, name: str) -> None:
        periods, found = cut(log), []
        for _ in range(2):
            yardstick = build_yardstick(name)
            yardstick.learn(periods[:6])
            found.append(yardstick.logits(periods[6]))
        assert torch.equal(*found)
        score = auc(found[0], periods[6].label)
        assert score is not None and (score > 0.55 or name in ("popularity", "item-ctr"))  # of people with tastes


class TestDropped:
    """Zeros in the place of a statistic."""

    def test_periods(self, log: PreparedLog) -> None:
        periods = cut_periods(log, 7, known="so_far", categories=False)
        whole, less = with_statistics(periods), with_statistics(periods, [2, 16])
        known = Statistics.initial(StatisticsConfig())
        for data, all_of_them, others in zip(periods.data, whole.data, less.data, strict=True):
            expected = known.inputs(data)
            assert torch.equal(all_of_them.numeric, expected)
            expected[:, [2, 16]] = 0
            assert torch.equal(others.numeric, expected)
            known = known.learned(data)

    def test_yardsticks(self, log: PreparedLog) -> None:
        pytest.importorskip("lightgbm")
        periods = cut(log)
        for name in ("lightgbm", "logistic"):
            blind = build_yardstick(name, dropped=range(len(NAMES)))
            blind.learn(periods[:6])
            assert blind.config["dropped"] == list(NAMES)
            predicted = blind.logits(periods[6])
            assert (len(predicted.unique()) == 1) == (name == "lightgbm")  # logistic regression has its crosses left


class TestNames:
    """What there is."""

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match=r"yardstick: expected one of popularity, item-ctr, .*; received 'gbm'"):
            build_yardstick("gbm")

    @pytest.fixture
    def no_lightgbm(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setitem(sys.modules, "lightgbm", None)  # as if it were not installed
        lightgbm_version.cache_clear()
        yield
        monkeypatch.undo()
        lightgbm_version.cache_clear()

    @pytest.mark.usefixtures("no_lightgbm")
    def test_without_lightgbm(self) -> None:
        assert installed_yardsticks() == ("popularity", "item-ctr", "logistic")
        with pytest.raises(ValueError, match=r"lightgbm needs .*: pip install 'asmg-service\[peers\]'"):
            build_yardstick("lightgbm")

    def test_with_lightgbm(self) -> None:
        pytest.importorskip("lightgbm")
        assert installed_yardsticks() == tuple(YARDSTICKS) and lightgbm_version()
