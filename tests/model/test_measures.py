import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import accuracy, auroc, f1_score, precision, recall
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from model import measures

RANKS = np.array([1, 3, 0, 12])


def figure(measure, events):
    return measures.value(measure, events)


def test_ranks_of_lists():
    listed = [["a", "b"], ["a", "b"], [], ["a"]]
    assert measures.ranks_of(listed, ["b", "c", "a", None]).tolist() == [2, 0, 0, 0]


def test_ranked_measures_by_hand():
    assert figure(measures.hit_rate(RANKS, 1), 4) == 1 / 4
    assert figure(measures.hit_rate(RANKS, 10), 4) == 2 / 4
    assert figure(measures.ndcg(RANKS, 10), 4) == pytest.approx(1 / 4 * (1 / math.log2(2) + 1 / math.log2(4)))
    assert figure(measures.ndcg(RANKS, 20), 4) == pytest.approx(1 / 4 * (1 + 1 / 2 + 1 / math.log2(13)))
    assert figure(measures.reciprocal_rank(RANKS), 4) == pytest.approx(1 / 4 * (1 / 1 + 1 / 3 + 1 / 12))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ranked_measures_are_those_of_torchmetrics(k):
    random = np.random.default_rng(k)
    ranks = random.integers(0, 21, 50)
    scores = 1 / torch.arange(1, 21)  # a list of twenty, best first
    relevant = [torch.arange(1, 21) == rank for rank in ranks.tolist()]

    def mean(measure):
        return float(np.mean([float(measure(scores, one, top_k=k)) for one in relevant]))

    assert figure(measures.hit_rate(ranks, k), 50) == pytest.approx(mean(retrieval_hit_rate))
    assert figure(measures.hit_rate(ranks, k), 50) == pytest.approx(mean(retrieval_recall))
    assert figure(measures.ndcg(ranks, k), 50) == pytest.approx(mean(retrieval_normalized_dcg))
    if k == 20:
        assert figure(measures.reciprocal_rank(ranks), 50) == pytest.approx(mean(retrieval_reciprocal_rank))


def test_classes_by_hand():
    predicted, actual = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    assert figure(measures.accuracy(predicted, actual), 4) == 2 / 4
    for of, expected in ((measures.precision, [1 / 2, 1 / 2, 0]), (measures.recall, [1, 1 / 2, 0])):
        assert [figure(of(predicted, actual, one), 4) for one in range(3)] == expected
    f1 = [2 * 1 / (2 + 1), 2 * 1 / (2 + 2), 0]
    assert [figure(measures.f1(predicted, actual, one), 4) for one in range(3)] == pytest.approx(f1)
    assert math.isnan(figure(measures.f1(predicted, actual, 3), 4))
    macro = measures.Mean([measures.f1(predicted, actual, one) for one in range(4)])
    assert figure(macro, 4) == pytest.approx(sum(f1) / 3)
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert figure(measures.log_loss(probabilities, np.array([1, 0])), 2) == pytest.approx(
        -(math.log(0.5) + math.log(0.75)) / 2
    )
    assert figure(measures.binary_log_loss(np.array([0.25, 0.25]), np.array([True, False])), 2) == pytest.approx(
        -(math.log(0.25) + math.log(0.75)) / 2
    )


def test_auc_counts_ties_half():
    score, actual = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert figure(measures.Auc(score, actual), 4) == (2 * 1 + 1 * 1 + 0.5) / (2 * 2)
    assert math.isnan(figure(measures.Auc(score, np.zeros(4, bool)), 4))
    assert figure(measures.Auc(np.full(4, 0.5), actual), 4) == 0.5


def test_calibration_error_by_hand():
    confidence, correct = np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True])
    low, high = abs(1 / 2 - 0.1), abs(1 - 0.95)
    assert figure(measures.calibration_error(confidence, correct, bins=2), 4) == pytest.approx(
        2 / 4 * low + 2 / 4 * high
    )


def test_errors_by_hand():
    quantiles, actual = np.array([[1.0, 2.0]]), np.array([4.0])
    assert figure(measures.pinball(quantiles, actual, (0.1, 0.5)), 1) == pytest.approx((0.1 * 3 + 0.5 * 2) / 2)
    assert figure(measures.pinball(quantiles, np.array([0.0]), (0.1, 0.5)), 1) == pytest.approx((0.9 * 1 + 0.5 * 2) / 2)
    assert figure(measures.root_mean_square(np.array([3.0, -4.0])), 2) == math.sqrt((9 + 16) / 2)


def test_the_same_as_torchmetrics():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(3), 500)
    actual = random.integers(0, 3, 500)
    predicted = probabilities.argmax(1)
    given, truth = torch.tensor(probabilities), torch.tensor(actual)
    kind = {"task": "multiclass", "num_classes": 3}
    assert figure(measures.accuracy(predicted, actual), 500) == pytest.approx(
        float(accuracy(given, truth, average="micro", **kind))
    )
    for ours, theirs in ((measures.precision, precision), (measures.recall, recall), (measures.f1, f1_score)):
        found = [figure(ours(predicted, actual, one), 500) for one in range(3)]
        assert found == pytest.approx(theirs(given, truth, average="none", **kind).tolist())
    areas = [figure(measures.Auc(probabilities[:, one], actual == one), 500) for one in range(3)]
    assert areas == pytest.approx(auroc(given, truth, average="none", **kind).tolist(), abs=1e-6)
    found = figure(measures.calibration_error(probabilities.max(1), predicted == actual), 500)
    assert found == pytest.approx(float(multiclass_calibration_error(given, truth, 3, n_bins=15, norm="l1")), abs=1e-6)
    loss = float(torch.nn.functional.nll_loss(given.log(), truth))
    assert figure(measures.log_loss(probabilities, actual), 500) == pytest.approx(loss)


def test_questions_are_measured_as_by_torchmetrics():
    random = np.random.default_rng(1)
    score = random.random(500).round(1)
    yes = random.random(500) < score
    given, truth = torch.tensor(score), torch.tensor(yes.astype(int))
    assert figure(measures.Auc(score, yes), 500) == pytest.approx(float(auroc(given, truth, task="binary")))
    said = random.random(500)
    theirs = float(binary_calibration_error(torch.tensor(said), truth, n_bins=15, norm="l1"))
    assert figure(measures.calibration_error(said, yes), 500) == pytest.approx(theirs, abs=1e-6)
    seconds, actual = torch.tensor(random.random(500)), torch.tensor(random.random(500))
    error = (seconds - actual).numpy()
    expected = float(mean_absolute_error(seconds, actual)), float(mean_squared_error(seconds, actual, squared=False))
    assert figure(measures.mean(np.abs(error)), 500) == pytest.approx(expected[0])
    assert figure(measures.root_mean_square(error), 500) == pytest.approx(expected[1])


def weighted(random):
    """A few measures over 60 events of 5 users."""
    actual, score = random.random(60) < 0.4, random.random(60).round(1)
    return [
        lambda at: measures.mean(score[at]),
        lambda at: measures.Auc(score[at], actual[at]),
        lambda at: measures.f1(score[at] > 0.5, actual[at], 1),
        lambda at: measures.calibration_error(score[at], actual[at]),
        lambda at: measures.Mean([measures.Auc(score[at], actual[at]), measures.mean(actual[at])]),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_user_with_weight_two_is_there_twice(number):
    random = np.random.default_rng(2)
    users = random.integers(0, 5, 60)
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 0]], np.uint8)
    make = weighted(random)[number]
    found = make(slice(None)).over(weights, users)
    repeated = np.repeat(np.arange(60), weights[1][users])
    assert found[0] == pytest.approx(figure(make(slice(None)), 60))
    assert found[1] == pytest.approx(figure(make(repeated), len(repeated)))


def test_nothing_to_measure_is_not_a_number():
    nothing, none = np.zeros(0, np.int64), np.zeros(0)
    assert math.isnan(figure(measures.ndcg(nothing, 10), 0))
    assert math.isnan(figure(measures.f1(nothing, nothing, 0), 0))
    assert math.isnan(figure(measures.calibration_error(none, none.astype(bool)), 0))
    assert math.isnan(figure(measures.Auc(none, none.astype(bool)), 0))
