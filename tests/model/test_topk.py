import torch
from hypothesis import given
from hypothesis import strategies as st

from model.topk import first_k


def test_k_above_the_row_gives_the_row():
    assert first_k(torch.tensor([[1.0, 3.0]]), 10)[1].tolist() == [[1, 0]]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_the_first_of_equal_values_come_first_at_the_end_too(columns, k, seed):
    some = torch.tensor([0.0, -0.0, 1.5, -1.5, -2.0, torch.inf, -torch.inf])
    scores = some[torch.randint(0, len(some), (3, columns), generator=torch.Generator().manual_seed(seed))]
    values, where = first_k(scores, k)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert values.tolist() == expected.values[:, :k].tolist()
    assert where.tolist() == expected.indices[:, :k].tolist()


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_ties_go_to_lower_labels_where_there_are_some(columns, k, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (1, columns), generator=random).float()
    labels = torch.randperm(columns, generator=random)[None] * 1000
    where = first_k(scores, k, labels)[1]
    expected = sorted(range(columns), key=lambda at: (-scores[0, at], labels[0, at]))
    assert where[0].tolist() == expected[:k]
