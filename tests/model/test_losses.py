import math

import pytest
import torch
import torch.nn.functional as F

from model.losses import catalogue_log_probability, mixture_loss, pinball
from model.network import FAR, Mixture


def test_the_blockwise_softmax_has_the_value_and_gradient_of_the_plain_one(monkeypatch):
    monkeypatch.setattr("model.losses.CELLS", 24)  # blocks of 2 rows
    random = torch.Generator().manual_seed(0)
    shapes = {"query": (5, 8), "vectors": (12, 8), "bias": (12,)}
    ours = {name: torch.randn(shape, generator=random).requires_grad_() for name, shape in shapes.items()}
    plain = {name: value.detach().clone().requires_grad_() for name, value in ours.items()}
    classes, weight = torch.tensor([0, 3, 11, 3, 7]), torch.tensor([1.0, -0.5, 2.0, 0.0, 1.0])
    got = catalogue_log_probability(*ours.values(), classes)
    expected = -F.cross_entropy(plain["query"] @ plain["vectors"].t() + plain["bias"], classes, reduction="none")
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.02)  # bfloat16 products
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in shapes:
        torch.testing.assert_close(ours[name].grad, plain[name].grad, atol=0.05, rtol=0.05)


def mixture(share, pointer):
    return Mixture(
        query=torch.zeros(1, 1, 2),
        log_catalogue=torch.tensor([[share]]).log(),
        log_copy=torch.tensor([[1 - share]]).log(),
        pointer=torch.tensor([[pointer]]),
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
