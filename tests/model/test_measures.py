import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import accuracy, auroc, f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from model import measures

RANKS = np.array([1, 3, 0, 12])


def test_ranks_of_lists():
    listed = [["a", "b"], ["a", "b"], [], ["a"]]
    assert measures.ranks_of(listed, ["b", "c", "a", None]).tolist() == [2, 0, 0, 0]


def test_ranked_measures_by_hand():
    assert measures.hit_rate(RANKS, 1) == 1 / 4
    assert measures.hit_rate(RANKS, 10) == 2 / 4
    assert measures.ndcg(RANKS, 10) == pytest.approx(1 / 4 * (1 / math.log2(2) + 1 / math.log2(4)))
    assert measures.ndcg(RANKS, 20) == pytest.approx(1 / 4 * (1 + 1 / 2 + 1 / math.log2(13)))
    assert measures.reciprocal_rank(RANKS) == pytest.approx(1 / 4 * (1 / 1 + 1 / 3 + 1 / 12))


def test_classes_by_hand():
    predicted, actual = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    assert measures.accuracy(predicted, actual) == 2 / 4
    f1 = [2 * 1 / (2 + 1), 2 * 1 / (2 + 2), 0]
    assert measures.macro_f1(predicted, actual) == pytest.approx(sum(f1) / 3)
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert measures.log_loss(probabilities, np.array([1, 0])) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    assert measures.binary_log_loss(np.array([0.25, 0.25]), np.array([True, False])) == pytest.approx(
        -(math.log(0.25) + math.log(0.75)) / 2
    )


def test_auc_counts_ties_half():
    score, actual = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert measures.auc(score, actual) == (2 * 1 + 1 * 1 + 0.5) / (2 * 2)
    assert math.isnan(measures.auc(score, np.zeros(4, bool)))


def test_calibration_error_by_hand():
    confidence, correct = np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True])
    low, high = abs(1 / 2 - 0.1), abs(1 - 0.95)
    assert measures.calibration_error(confidence, correct, bins=2) == pytest.approx(2 / 4 * low + 2 / 4 * high)


def test_pinball_by_hand():
    quantiles, actual = np.array([[1.0, 2.0]]), np.array([4.0])
    assert measures.pinball(quantiles, actual, (0.1, 0.5)) == pytest.approx((0.1 * 3 + 0.5 * 2) / 2)
    assert measures.pinball(quantiles, np.array([0.0]), (0.1, 0.5)) == pytest.approx((0.9 * 1 + 0.5 * 2) / 2)


def test_the_same_as_torchmetrics():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(3), 500)
    actual = random.integers(0, 3, 500)
    predicted = probabilities.argmax(1)
    given, truth = torch.tensor(probabilities), torch.tensor(actual)
    kind = {"task": "multiclass", "num_classes": 3}
    assert measures.accuracy(predicted, actual) == pytest.approx(float(accuracy(given, truth, average="micro", **kind)))
    assert measures.macro_f1(predicted, actual) == pytest.approx(float(f1_score(given, truth, average="macro", **kind)))
    score, yes = probabilities[:, 0].round(1), actual == 0
    expected = float(auroc(torch.tensor(score), torch.tensor(yes.astype(int)), task="binary"))
    assert measures.auc(score, yes) == pytest.approx(expected)
    ours = measures.calibration_error(probabilities.max(1), predicted == actual, bins=15)
    assert ours == pytest.approx(float(multiclass_calibration_error(given, truth, 3, n_bins=15, norm="l1")), abs=1e-6)


def test_nothing_to_measure_is_not_a_number():
    nothing = np.zeros(0, np.int64)
    assert math.isnan(measures.ndcg(nothing, 10))
    assert math.isnan(measures.macro_f1(nothing, nothing))
    assert math.isnan(measures.calibration_error(np.zeros(0), np.zeros(0, bool)))
