"""The lists that answers choose, against the whole distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.hiding import banned
from model.mixing import choose, distribution, ranking, table
from model.network import Copied, Mixture
from model.pointer import FAR
from model.scorer import Scorer
from model.vocabulary import Catalogue

WIDTH, LENGTH = 4, 6


def mixtures(seed, batch, copy, ids):
    """Random ones; the window's candidates are the last occurrences of its things."""
    torch.manual_seed(seed)
    query = torch.randn(batch, 1, WIDTH)
    if not copy:
        return Mixture(query, None)
    last = torch.stack([(ids[:, step + 1 :] != ids[:, step : step + 1]).all(1) for step in range(LENGTH)], dim=1)
    candidate = last & (ids >= 0)
    logits = torch.randn(batch, LENGTH).masked_fill(~candidate, FAR)
    pointer = torch.log_softmax(logits, -1).masked_fill(~candidate, FAR)
    gate = torch.randn(batch, 1).masked_fill(~candidate.any(1, keepdim=True), -FAR)
    log = torch.nn.functional.logsigmoid
    return Mixture(query, Copied(log(gate), log(-gate), pointer[:, None]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12), st.booleans(), st.booleans())
def test_the_best_of_catalogue_and_window_are_listed(seed, count, k, copy, cold):
    torch.manual_seed(seed)
    catalogue = Catalogue(tuple(f"n{n}" for n in range(count)), buckets=4)
    first, rows = catalogue.first, catalogue.rows
    ids = torch.randint(first, rows + 3, (3, LENGTH))  # three that the catalogue does not know
    ids[torch.rand(ids.shape) < 0.2] = -1
    if cold:  # a window without a known name
        ids[0] = torch.where(ids[0] >= 0, rows + ids[0] % 3, -1)
    scoring = torch.randn(count + 1, WIDTH), torch.randn(count + 1)
    counts = list(range(count, 0, -1))
    mixture = mixtures(seed, 3, copy, ids)
    unknown = torch.tensor([cold, False, False])
    chosen = choose(mixture, ids, ranking(Scorer(*scoring), catalogue, counts), unknown, k)

    whole = distribution(mixture, ids, table(scoring, catalogue, counts), unknown)[:, 1:]  # [3, N]
    wanted = [dict(zip(range(first, rows), row.tolist(), strict=True)) for row in whole]
    if copy:
        chances = (mixture.copied.log_copy + mixture.copied.pointer[:, 0]).exp()
        for row in range(3):
            wanted[row] |= {
                int(i): float(p) for i, p in zip(ids[row], chances[row], strict=True) if i >= rows and p > 0
            }
    for row in range(3):
        best = sorted(wanted[row].values(), reverse=True)[:k]
        listed = [(int(i), float(p)) for i, p in zip(chosen.ids[row], chosen.probability[row], strict=True) if p > 0]
        assert [p for _, p in listed] == pytest.approx([p for p in best if p > 0][: len(listed)], abs=1e-6)
        assert len(listed) >= sum(p > 1e-6 for p in best)
        assert len({i for i, _ in listed}) == len(listed)
        for identity, probability in listed:
            assert probability == pytest.approx(wanted[row][identity], abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 30, 5000]),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_is_hidden_is_not_listed_and_all_else_is_as_it_was(seed, count, k, copy, cold, seen):
    torch.manual_seed(seed)
    catalogue = Catalogue(tuple(f"n{n}" for n in range(count)), buckets=4)
    first, rows = catalogue.first, catalogue.rows
    ids = torch.randint(first, min(rows, first + 9), (3, LENGTH))
    ids[torch.rand(ids.shape) < 0.2] = rows + 1  # a stranger
    ids[torch.rand(ids.shape) < 0.2] = -1
    if cold:
        ids[0] = torch.where(ids[0] >= 0, rows + ids[0] % 3, -1)
    scoring = torch.randn(count + 1, WIDTH), torch.randn(count + 1)
    counts = list(range(count, 0, -1))
    mixture = mixtures(seed, 3, copy, ids)
    unknown = torch.tensor([cold, False, False])
    barred = {f"n{n}" for n in torch.randint(0, min(count, 12), (5,)).tolist()}
    against = ranking(Scorer(*scoring), catalogue, counts)
    if barred:
        found = banned({*barred, "of another shop"}, catalogue, torch.device("cpu"))
        against.scorer.ban(found.classes)
        against = against._replace(banned=found)
    hidden = torch.ones_like(ids, dtype=torch.bool) if seen else ids == rows + 1
    chosen = choose(mixture, ids, against, unknown, k, hidden)

    whole = distribution(mixture, ids, table(scoring, catalogue, counts), unknown)[:, 1:]  # [3, N]
    for row in range(3):
        wanted = dict(zip(range(first, rows), whole[row].tolist(), strict=True))
        if copy:
            chances = (mixture.copied.log_copy + mixture.copied.pointer[:, 0]).exp()
            wanted |= {int(i): float(p) for i, p in zip(ids[row], chances[row], strict=True) if i >= rows and p > 0}
        out = {catalogue.index[name] for name in barred} | set(ids[row][hidden[row]].tolist())
        best = sorted((p for i, p in wanted.items() if i not in out), reverse=True)[:k]
        listed = {int(i): float(p) for i, p in zip(chosen.ids[row], chosen.probability[row], strict=True) if p > 0}
        assert not out & set(listed)
        assert sorted(listed.values(), reverse=True) == pytest.approx([p for p in best if p > 0], abs=1e-6)
        for identity, probability in listed.items():
            assert probability == pytest.approx(wanted[identity], abs=1e-6)
