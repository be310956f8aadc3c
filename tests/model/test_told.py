import torch
from hypothesis import given
from hypothesis import strategies as st

from model.told import Told, fetched, packed, unpacked

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


def test_what_is_on_the_host_stays_as_it_is():
    one = Told(*[torch.zeros(1, 1)] * len(Told._fields))
    assert fetched(one) is one
