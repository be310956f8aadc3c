import math

import pytest
import torch

from model.losses import WEIGHTS, LossWeights, mixture_loss, pinball
from model.network import Copied, Mixture
from model.pointer import FAR


def mixture(share, pointer):
    return Mixture(
        torch.zeros(1, 1, 2),
        Copied(
            log_catalogue=torch.tensor([[share]]).log(),
            log_copy=torch.tensor([[1 - share]]).log(),
            pointer=torch.tensor([[pointer]]),
        ),
    )


@pytest.mark.parametrize(
    ("target_id", "target_row", "expected"),
    [
        (5, 5, 0.25 * 1 / 4 + 0.75 * 0.6),  # known and in the window
        (4, 4, 0.25 * 1 / 4),  # known, not in the window
        (9, 2, 0.75 * 0.4),  # unknown, in the window: only a copy
        (10, 2, 0.25 * 1 / 4),  # unknown, not in the window: "none of these"
    ],
)
def test_the_mixture_by_hand(target_id, target_row, expected):
    """Rows 3, 4, 5 are known; an even softmax over 1 + 3 classes; the window holds 5, then 9."""
    given = mixture(0.25, [math.log(0.6), math.log(0.4), FAR])
    ids = torch.tensor([[5, 9, -1]])
    table = torch.zeros(4, 2), torch.zeros(4)
    loss, count = mixture_loss(given, ids, torch.tensor([[target_id]]), torch.tensor([[target_row]]), 3, *table)
    assert count == 1
    assert loss.item() == pytest.approx(-math.log(expected), rel=1e-4)


def test_nothing_to_learn_costs_nothing():
    none = torch.tensor([[-1]])
    loss, count = mixture_loss(
        mixture(0.5, [0.0]), torch.tensor([[3]]), none, none, 3, torch.zeros(2, 2), torch.zeros(2)
    )
    assert (loss.item(), count) == (0, 0)


def test_pinball_by_hand():
    predicted = torch.tensor([[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]])
    loss, count = pinball(predicted, torch.tensor([[2.5, -1.0]]))
    assert count == 1
    assert loss.item() == pytest.approx((0.1 * 1.5 + 0.5 * 0.5 + (1 - 0.9) * 0.5) / 3)


def test_without_a_copy_path_the_catalogue_is_all_there_is():
    given = Mixture(torch.zeros(1, 1, 2), None)
    ids, wanted = torch.tensor([[5, 9, -1]]), torch.tensor([[5]])
    loss, _ = mixture_loss(given, ids, wanted, wanted, 3, torch.zeros(4, 2), torch.zeros(4))
    assert loss.item() == pytest.approx(-math.log(1 / 4), rel=1e-4)


def parts_of(**losses):
    return {name: (torch.tensor(losses.get(name, 0.0)), int(name in losses)) for name in WEIGHTS}


def test_at_first_every_head_counts_as_its_weight_says():
    loss = LossWeights()(parts_of(item=6.0, goal=2.0))
    assert loss.item() == pytest.approx(WEIGHTS["item"] * 6.0 + WEIGHTS["goal"] * 2.0)


def test_the_learned_factor_of_a_head_becomes_one_over_its_loss():
    weights = LossWeights()
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        weights(parts_of(item=2.0, churn=0.5, goal=0.0)).backward()
        optimizer.step()
    learned = LossWeights.BOUND * torch.tanh(weights.log_variance / LossWeights.BOUND)
    scales = dict(zip(WEIGHTS, learned.tolist(), strict=True))
    assert scales["item"] == pytest.approx(math.log(2.0), abs=0.02)
    assert scales["churn"] == pytest.approx(math.log(0.5), abs=0.02)
    assert -LossWeights.BOUND <= scales["goal"] < -0.9  # nothing left to learn: bounded
    assert scales["time"] == 0  # nothing to learn: left alone


def test_a_head_that_knows_one_answer_only_counts_next_to_nothing():
    weights = LossWeights({"time"})
    loss = weights(parts_of(item=2.0, time=3.0))
    assert loss.item() == pytest.approx(WEIGHTS["item"] * 2.0 + LossWeights.CONSTANT * 3.0)


def test_what_two_processes_add_is_what_one_would_say():
    weights = LossWeights({"time"})
    torch.nn.init.uniform_(weights.log_variance)
    counts = [int(name in ("item", "time")) * 2 for name in WEIGHTS]
    mine, others = parts_of(item=6.0, time=1.0), parts_of(item=2.0)
    whole = {name: (mine[name][0] + others[name][0], count) for name, count in zip(WEIGHTS, counts, strict=True)}
    together = weights(mine, counts, 0.5) + weights(others, counts, 0.5)
    assert together.item() == pytest.approx(weights(whole).item())


def test_with_nothing_to_learn_at_all_there_is_still_a_loss():
    LossWeights()(parts_of()).backward()
