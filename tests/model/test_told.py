import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.told import Told, difference, fetched, packed, unpacked

numbers = st.floats(width=64, allow_nan=False)
whole = st.integers(-(2**63), 2**63 - 1)


def told(data, windows, listed, behaviors, categories):
    def floats(*shape):
        count = int(torch.tensor(shape).prod())
        return torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count)), dtype=torch.float64).view(
            shape
        )

    def ints(*shape):
        count = int(torch.tensor(shape).prod())
        return torch.tensor(data.draw(st.lists(whole, min_size=count, max_size=count)), dtype=torch.int64).view(shape)

    one, many = (windows,), (windows, listed)
    few = (windows, categories)
    return Told(
        floats(*many), ints(*many), ints(*many), ints(*one), floats(*few), ints(*few), ints(*one), ints(*one) > 0,
        floats(windows, behaviors), floats(*one), floats(*one), floats(windows, 3), ints(*one) > 0,
    )  # fmt: skip


@given(st.data(), st.integers(0, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 3))
def test_what_was_packed_is_unpacked_to_the_bit(data, windows, listed, behaviors, categories):
    before = told(data, windows, listed, behaviors, categories)
    like = told(data, 1, listed, behaviors, categories)  # of another number of windows
    after = unpacked(packed(before), like)
    for one, other in zip(before, after, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(one, other)


def answer(probability=0.25, seconds=1.0, item=3, behavior=1, listed=1, churn=0.5):
    """To one window, without categories."""
    number, none = torch.tensor([[0.5]]).double(), torch.zeros(1, 0)
    return Told(
        probabilities=torch.tensor([[probability]]).double(),
        ids=torch.tensor([[item]]),
        behaviors=torch.tensor([[behavior]]),
        listed=torch.tensor([listed]),
        category_probabilities=none.double(),
        category_ids=none.long(),
        categories_listed=torch.tensor([0]),
        unknown=torch.tensor([False]),
        mixes=number,
        goals=number[:, 0],
        churns=torch.tensor([churn]).double(),
        seconds=torch.tensor([[seconds]]).double(),
        sound=torch.tensor([True]),
    )


def test_the_difference_of_answers_is_the_largest_of_a_probability_or_a_log_wait():
    assert difference(answer(), answer()) == 0
    assert difference(answer(probability=0.25), answer(probability=0.5)) == 0.5 - 0.25
    assert difference(answer(seconds=1.0), answer(seconds=3.0)) == pytest.approx(math.log((1 + 3) / (1 + 1)))


@pytest.mark.parametrize(
    "other", [{"item": 4}, {"behavior": 2}, {"listed": 0}, {"churn": math.nan}, {"probability": math.nan}]
)
def test_other_lists_and_what_is_no_number_are_infinitely_different(other):
    assert difference(answer(), answer(**other)) == math.inf
    assert difference(answer(**other), answer()) == math.inf


def test_what_is_on_the_host_stays_as_it_is():
    one = Told(*[torch.zeros(1, 1)] * len(Told._fields))
    assert fetched(one) is one
