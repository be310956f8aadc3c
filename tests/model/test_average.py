import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.average import Average
from tests.model.test_learner import make_learner


def moved(weight, average, values):
    """`weight` takes these values, one after each step."""
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)


def test_an_average_by_hand():
    weight = nn.Parameter(torch.full((2,), 100.0))
    average = Average([weight], 0.2)
    moved(weight, average, [1.0, 2.0, 4.0])
    first = 100 * 1 / 10 + 1 * 9 / 10
    second = first * 2 / 11 + 2 * 9 / 11
    third = second * 0.2 + 4 * 0.8  # 3 / 12 is more than the decay that was asked for
    torch.testing.assert_close(average.means, [torch.full((2,), third)])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.floats(0.01, 0.999))
def test_an_average_of_what_stands_still_is_that_and_no_other_leaves_the_range(values, decay):
    weight = nn.Parameter(torch.tensor([values[0]]))
    average = Average([weight], decay)
    moved(weight, average, values)
    mean = average.means[0].item()
    assert min(values) - 1e-5 <= mean <= max(values) + 1e-5
    moved(weight, average, [3.0] * 20_000 if decay > 0.99 else [3.0] * 2_000)
    assert average.means[0].item() == pytest.approx(3, abs=1e-3)


def test_the_average_is_shown_for_a_while_and_the_weights_are_back_even_after_a_failure():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average([weight], 0.5)
    moved(weight, average, [5.0])
    mean = 1 * 1 / 10 + 5 * 9 / 10
    with average.shown():
        assert weight.item() == pytest.approx(mean)
    assert weight.item() == 5.0
    with pytest.raises(RuntimeError, match="full disk"), average.shown():
        raise RuntimeError("full disk")
    assert (weight.item(), average.means[0].item()) == (5.0, pytest.approx(mean))


def test_without_a_decay_the_weights_stand_for_themselves():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average([weight], 0.0)
    moved(weight, average, [2.0])
    assert average.means == []
    with average.shown():
        assert weight.item() == 2.0


def test_what_is_kept_is_the_average_and_learning_goes_on_from_the_weights():
    learners = {decay: make_learner(epochs=2, positions=128, average=decay) for decay in (0.0, 0.9)}
    plain, averaged = learners[0.0], learners[0.9]
    for learner in learners.values():
        torch.manual_seed(1)  # the same names are dropped
        learner.run(stop_after=2)
    assert [training for training, _ in averaged.curve] == [training for training, _ in plain.curve]
    for name, weight in averaged.model.named_parameters():
        assert torch.equal(weight, averaged.best[name])
    last = dict(plain.model.named_parameters())
    means = dict(zip((name for name, _ in averaged.model.named_parameters()), averaged.average.means, strict=True))
    assert all(torch.equal(weight, means[name]) for name, weight in averaged.model.named_parameters())
    assert not all(torch.equal(weight, last[name]) for name, weight in averaged.model.named_parameters())


def test_what_is_validated_is_the_average(monkeypatch):
    learner = make_learner(epochs=1, positions=128, average=0.9)
    seen = []
    validate = learner.validate

    def watched(last):
        seen.append({name: weight.clone() for name, weight in learner.model.state_dict().items()})
        return validate(last)

    monkeypatch.setattr(learner, "validate", watched)
    learner.run()
    assert all(torch.equal(weight, learner.best[name]) for name, weight in seen[0].items())
