import math

import numpy as np
import pytest

from model import measures
from model.questions import Choice, Confusion, Ranking, Waiting, YesNo, higher_is_better

AT = np.arange(4)


def figures(question, who="model"):
    return {name: measures.value(one, len(question.at)) for by, name, one in question.measured() if by == who}


def test_a_ranking():
    ranks = {"model": np.array([1, 2, 0, 1]), "repeat": np.array([0, 1, 1, 0])}
    ranking = Ranking("item", AT, ranks, np.array([0.5, 0.5, 0.5, np.nan]), (1, 10))
    found = figures(ranking)
    assert found["item HR@1"] == 2 / 4
    assert found["item NDCG@10"] == pytest.approx((1 + 1 / math.log2(3) + 0 + 1) / 4)
    assert found["item MRR@10"] == (1 + 1 / 2 + 0 + 1) / 4
    assert found["item ECE"] == pytest.approx(3 / 4 * abs(1 / 3 - 0.5) + 1 / 4 * abs(1 - 0))
    assert figures(ranking, "repeat").keys() == found.keys() - {"item ECE"}


def test_a_choice():
    given = np.array([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.7, 0.3, 0.0], [0.1, 0.9, 0.0]])
    choice = Choice(AT, np.array([0, 0, 1, 1]), {"model": given}, ("view", "cart", "buy"))
    found = figures(choice)
    assert found["behavior accuracy"] == 2 / 4
    assert found["behavior macro-F1"] == pytest.approx((2 * 1 / (2 + 2) + 2 * 1 / (2 + 2)) / 2)  # "buy" does not occur
    assert found["behavior macro-AUC"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert found["behavior log-loss"] == pytest.approx(-math.log(0.8 * 0.4 * 0.3 * 0.9) / 4)
    assert choice.confusion() == Confusion(["view", "cart", "buy"], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert [name for behavior, name, _ in choice.by_class() if behavior == "buy"] == [
        "precision",
        "recall",
        "F1",
        "AUC",
    ]


def test_waiting():
    seconds = np.array([[1.0, 3600.0, 7200.0]] * 4)
    actual = np.array([3600.0, 0.0, 7200.0, 10_800.0])
    found = figures(Waiting(AT, actual, {"model": seconds}))
    assert found["time MAE (h)"] == pytest.approx((0 + 1 + 1 + 2) / 4)
    assert found["time RMSE (h)"] == pytest.approx(math.sqrt((0 + 1 + 1 + 4) / 4))
    assert found["time in 10–90 %"] == 2 / 4
    logs = [math.log1p(3600) - math.log1p(one) for one in actual]
    assert found["time RMSE (log s)"] == pytest.approx(math.sqrt(sum(one**2 for one in logs) / 4))


def test_a_yes_or_no():
    found = figures(YesNo("churn", AT, np.array([True, False, False, True]), {"model": np.array([0.9, 0.2, 0.6, 0.4])}))
    assert found["churn AUC"] == 3 / 4
    assert found["churn log-loss"] == pytest.approx(-math.log(0.9 * 0.8 * 0.4 * 0.4) / 4)


@pytest.mark.parametrize(
    ("measure", "higher"),
    [("item NDCG@10", True), ("behavior macro-F1", True), ("purchase AUC", True), ("behavior log-loss", False),
     ("churn ECE", False), ("time RMSE (h)", False), ("time in 10–90 %", None)],
)  # fmt: skip
def test_the_direction_of_a_measure(measure, higher):
    assert higher_is_better(measure) is higher
