import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.topk import first_k, top_k


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 2**31))
def test_the_same_as_sorting(columns, k, seed):
    scores = torch.rand(3, columns, generator=torch.Generator().manual_seed(seed))
    values, where = top_k(scores, k, block=8)
    expected = scores.sort(dim=1, descending=True)
    assert values.tolist() == expected.values[:, :k].tolist()
    assert scores.gather(1, where).tolist() == values.tolist()


def test_the_best_ones_may_share_a_block_or_lie_in_the_tail():
    scores = torch.zeros(1, 1003)
    scores[0, [640, 641, 642, 1002]] = torch.tensor([5.0, 7.0, 6.0, 9.0])
    values, where = top_k(scores, 4)
    assert values.tolist() == [[9, 7, 6, 5]]
    assert where.tolist() == [[1002, 641, 642, 640]]


@pytest.mark.parametrize("columns", [5, 5000])
def test_ties_go_to_the_lower_column(columns):
    scores = torch.zeros(1, columns)
    scores[0, [4, 2, 3]] = 1.0
    assert top_k(scores, 3)[1].tolist() == [[2, 3, 4]]


def test_k_above_the_row_gives_the_row():
    assert top_k(torch.tensor([[1.0, 3.0]]), 10)[1].tolist() == [[1, 0]]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_the_first_of_equal_values_come_first_at_the_end_too(columns, k, seed):
    some = torch.tensor([0.0, -0.0, 1.5, -1.5, -2.0, torch.inf, -torch.inf])
    scores = some[torch.randint(0, len(some), (3, columns), generator=torch.Generator().manual_seed(seed))]
    values, where = first_k(scores, k)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert values.tolist() == expected.values[:, :k].tolist()
    assert where.tolist() == expected.indices[:, :k].tolist()
