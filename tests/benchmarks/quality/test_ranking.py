import math

import numpy as np
import pytest

from benchmarks.quality.ranking import UNRANKED, measures, rank


def test_ties_go_to_the_competitors_and_what_was_met_does_not_compete():
    scores = np.array([0.5, 0.4, 0.4, 0.9, 0.1])
    assert rank(scores, 1, np.array([], np.int64)) == 1 + 3
    assert rank(scores, 1, np.array([3])) == 1 + 2
    assert rank(scores, 1, np.array([0, 2, 3])) == 1
    assert rank(scores, 3, np.array([3])) == 1  # met before, and wanted all the same


def test_the_measures_by_hand():
    found = measures(np.array([1, 3, 11, UNRANKED]))
    assert found["hr@10"][0] == 2 / 4
    assert found["ndcg@10"][0] == pytest.approx((1 + 1 / math.log2(1 + 3)) / 4)
    half = 1.96 * np.std([1, 0.5, 0, 0], ddof=1) / 2
    assert found["ndcg@10"][1:] == pytest.approx([1.5 / 4 - half, 1.5 / 4 + half])
