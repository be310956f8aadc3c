import math

import numpy as np
import pytest
import torch

from model.features import pad
from model.mixing import distribution, table
from model.recipe import RANKED
from model.validation import JUDGED, means, sums_of
from tests.model.test_learner import make_learner


def test_the_ranking_of_a_validation_by_the_plainest_code():
    reports = []
    learner = make_learner(reports, best_by=RANKED, dropout=0.0)
    checked = learner.to_check
    found = learner.validate(checked)
    assert reports[-1].found == found
    data, material = learner.material.data, learner.material
    gains = []
    for last in checked.tolist():
        wanted = material.checked.next[last]
        if wanted < 0:
            continue
        start = int(data.window_starts(np.array([last]), material.rule)[0])
        batch = pad(material.columns, np.array([start]), np.array([last - start + 1]), last - start + 1)
        with torch.inference_mode():
            heads = learner.model(batch, last=True)
        against = table(learner.model.item_table(), material.vocabulary.items, material.vocabulary.item_counts)
        scores = distribution(heads.items, batch.item_ids, against, None)[0, 1:]
        row = material.item_rows[wanted] - material.vocabulary.items.first
        rank = int((scores >= scores[row]).sum()) if row >= 0 else 99
        gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    assert found[RANKED] == pytest.approx(sum(gains) / len(gains), abs=1e-4)


def test_means_are_over_the_positions_that_had_an_answer_and_the_loss_weighs_them():
    sums = sums_of({"item": (torch.tensor(6.0), 3), "time": (torch.tensor(1.0), 4), "goal": (torch.tensor(0.0), 0)})
    assert sums.shape == (len(JUDGED), 2)
    assert means(sums + sums) == {"loss": 1.0 * 6 / 3 + 0.5 * 1 / 4, "item": 6 / 3, "time": 1 / 4}
