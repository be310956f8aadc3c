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


def test_the_difference_of_answers_is_the_largest_of_a_probability_or_a_log_wait():
    def one(probability, seconds, sound=True):
        number, none = torch.tensor([[0.5]]).double(), torch.zeros(1, 0)
        whole = torch.zeros(1, 1, dtype=torch.int64)
        return Told(
            torch.tensor([[probability]]).double(), whole, whole, whole[:, 0], none.double(), none.long(), whole[:, 0],
            torch.tensor([False]), number, number[:, 0], number[:, 0], torch.tensor([[seconds]]).double(), torch.tensor([sound]),
        )  # fmt: skip

    assert difference(one(0.25, 1.0), one(0.25, 1.0)) == 0
    assert difference(one(0.25, 1.0), one(0.5, 1.0)) == 0.5 - 0.25
    assert difference(one(0.25, 1.0), one(0.25, 3.0)) == pytest.approx(math.log((1 + 3) / (1 + 1)))
    assert difference(one(0.25, 1.0), one(0.25, 1.0, sound=False)) == math.inf


def test_what_is_on_the_host_stays_as_it_is():
    one = Told(*[torch.zeros(1, 1)] * len(Told._fields))
    assert fetched(one) is one
