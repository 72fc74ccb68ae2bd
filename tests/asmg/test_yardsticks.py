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
from asmg.datasets.prepared import PreparedLog, read_prepared
from asmg.experiments.log import cut_periods, with_statistics
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

    def logit(self, features: list[tuple[int | str, float]]) -> float:
        return sum(self.weights[name] * value for name, value in features)

    def learn(self, data: PeriodData, inputs: torch.Tensor) -> None:
        for n in range(len(data)):
            features = self.features(data, inputs, n)
            error = 1 / (1 + math.exp(-self.logit(features))) - float(data.label[n])
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
