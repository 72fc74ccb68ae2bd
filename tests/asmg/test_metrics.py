"""AUC, LogLoss and calibration against scikit-learn, against slow loops, and by hand."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from asmg.metrics import Scores, auc, calibration, logloss, scores

# Few distinct scores, so that ties are the rule.
tied_logs = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=60)
real_logs = st.lists(
    st.tuples(st.floats(-30, 30, width=32), st.integers(0, 1)), min_size=1, max_size=60
)  # fmt: skip


def tensors(log: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([float(s) for s, _ in log]), torch.tensor([float(y) for _, y in log])


def pairs_auc(log: list[tuple[float, int]]) -> float | None:
    """Over all pairs of a positive and a negative; a tie is half a win."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p, y in log if y == 1 for n, z in log if z == 0
    ]  # fmt: skip
    return sum(wins) / len(wins) if wins else None


@settings(deadline=None, max_examples=200)
@given(st.one_of(tied_logs, real_logs))
def test_auc_is_the_share_of_pairs_in_the_right_order(log: list[tuple[float, int]]) -> None:
    expected = pairs_auc(log)
    got = auc(*tensors(log))
    assert got == (None if expected is None else pytest.approx(expected, abs=1e-12))


@settings(deadline=None, max_examples=200)
@given(st.one_of(tied_logs, real_logs).filter(lambda log: len({y for _, y in log}) == 2))
def test_auc_is_scikit_learns(log: list[tuple[float, int]]) -> None:
    score, label = tensors(log)
    assert auc(score, label) == pytest.approx(roc_auc_score(label.numpy(), score.numpy()), abs=1e-12)


def test_auc_by_hand() -> None:
    score, label = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert auc(score, label) == 3.5 / 4  # (0.4 > 0.1) + (0.4 = 0.4)/2 + (0.8 > 0.1) + (0.8 > 0.4)
    assert auc(-score, label) == 0.5 / 4
    assert auc(torch.zeros(4), label) == 0.5


def test_auc_of_a_large_log_with_ties_is_exact() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(200_000) < 0.02).astype(np.float32)
    score = np.round(rng.normal(size=200_000) + label, 2).astype(np.float32)
    assert auc(torch.tensor(score), torch.tensor(label)) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@settings(deadline=None)
@given(tied_logs, st.randoms(use_true_random=False))
def test_auc_does_not_depend_on_the_order_of_the_log_nor_on_a_monotone_map(log: list, random: object) -> None:
    score, label = tensors(log)
    random.shuffle(log)  # type: ignore[attr-defined]
    shuffled_score, shuffled_label = tensors(log)
    assert auc(shuffled_score, shuffled_label) == auc(score, label)
    assert auc(torch.sigmoid(score), label) == auc(score, label)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_no_auc(label: float) -> None:
    assert auc(torch.tensor([1.0, 2.0]), torch.full((2,), label)) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-15, 15, width=32), st.integers(0, 1)), min_size=1, max_size=60))
def test_logloss_is_scikit_learns(log: list[tuple[float, int]]) -> None:
    logit, label = tensors(log)
    probability = 1 / (1 + np.exp(-logit.double().numpy()))
    expected = log_loss(label.numpy(), np.stack([1 - probability, probability], 1), labels=[0, 1])
    assert logloss(logit, label) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_logloss_of_extreme_logits_is_exact() -> None:
    """log(1 + exp(x)) is x for a large x and exp(-x) for a small one: no clipping, no overflow."""
    one = torch.ones(1)
    assert logloss(torch.tensor([-1e4]), one) == 1e4
    assert logloss(torch.tensor([1e4]), one) == 0.0
    assert logloss(torch.tensor([1e4]), 0 * one) == 1e4
    assert logloss(torch.tensor([40.0]), one) == pytest.approx(math.exp(-40), rel=1e-9)
    assert logloss(torch.tensor([3e38, 0.0]), torch.tensor([1.0, 0.0])) == pytest.approx(math.log(2) / 2)


def test_calibration_by_hand() -> None:
    # Promised: 1/2 + 1/2 + 3/4 = 1.75 clicks.
    logit = torch.tensor([0.0, 0.0, math.log(3)])
    assert calibration(logit, torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1.75)
    assert calibration(logit, torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(1.75 / 3)
    assert calibration(logit, torch.zeros(3)) is None


def test_scores_put_all_metrics_together() -> None:
    logit, label = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    got = scores(logit, label)
    loss = (math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 3
    promised = 0.5 + 1 / (1 + math.exp(-2)) + 1 / (1 + math.e)
    assert got == Scores(
        events=3, clicks=2, auc=0.5, logloss=pytest.approx(loss), calibration=pytest.approx(promised / 2)
    )
    assert json.loads(json.dumps(got.to_json())) == got.to_json()
    assert got.to_json()["clicks"] == 2


def test_scores_without_clicks_leave_out_what_has_no_value() -> None:
    got = scores(torch.zeros(2), torch.zeros(2))
    assert (got.events, got.clicks, got.auc, got.calibration) == (2, 0, None, None)
    assert got.logloss == pytest.approx(math.log(2))
