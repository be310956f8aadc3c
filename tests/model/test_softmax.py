import pytest
import torch
import torch.nn.functional as F

from model.softmax import log_probability


@pytest.mark.parametrize(
    ("products", "value", "gradient"),
    [
        (torch.float32, {"atol": 1e-5, "rtol": 1e-5}, {"atol": 1e-5, "rtol": 1e-5}),
        (torch.bfloat16, {"atol": 0.05, "rtol": 0.02}, {"atol": 0.05, "rtol": 0.05}),
    ],
)
def test_the_blockwise_softmax_has_the_value_and_gradient_of_the_plain_one(monkeypatch, products, value, gradient):
    monkeypatch.setattr("model.softmax.CELLS", 24)  # blocks of 2 rows
    random = torch.Generator().manual_seed(0)
    shapes = {"query": (5, 8), "vectors": (12, 8), "bias": (12,)}
    ours = {name: torch.randn(shape, generator=random).requires_grad_() for name, shape in shapes.items()}
    plain = {name: given.detach().clone().requires_grad_() for name, given in ours.items()}
    classes, weight = torch.tensor([0, 3, 11, 3, 7]), torch.tensor([1.0, -0.5, 2.0, 0.0, 1.0])
    got = log_probability(*ours.values(), classes, products=products)
    expected = -F.cross_entropy(plain["query"] @ plain["vectors"].t() + plain["bias"], classes, reduction="none")
    torch.testing.assert_close(got, expected, **value)
    exact = torch.equal(got, log_probability(*ours.values(), classes))
    assert exact == (products == torch.float32)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in shapes:
        torch.testing.assert_close(ours[name].grad, plain[name].grad, **gradient)


def test_the_sampled_normaliser_is_right_on_average_and_its_gradient_too():
    """Few names, drawn by a skewed frequency, against the full softmax."""
    torch.manual_seed(0)
    query, vectors, bias = torch.randn(6, 8).requires_grad_(), torch.randn(30, 8).requires_grad_(), torch.randn(30)
    classes = torch.tensor([0, 3, 29, 3, 7, 1])
    log_share = torch.log_softmax(torch.linspace(2, -1, 30), 0)
    full = log_probability(query, vectors, bias, classes)
    sampled = log_probability(query, vectors, bias, classes, log_share)
    torch.testing.assert_close(sampled, full, atol=0.1, rtol=0.1)
    wanted = torch.autograd.grad(full.sum(), (query, vectors))
    found = torch.autograd.grad(sampled.sum(), (query, vectors))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=0.25, rtol=0.1)


def test_a_name_drawn_beside_itself_does_not_count_twice():
    """One class besides the right one: whatever is drawn, the chance is that of two."""
    log_share = torch.tensor([0.999, 0.001]).log()
    query, vectors, bias = torch.zeros(1, 4), torch.zeros(2, 4), torch.zeros(2)
    found = log_probability(query, vectors, bias, torch.tensor([1]), log_share)
    torch.testing.assert_close(found.exp(), torch.tensor([0.5]), atol=0.02, rtol=0)
