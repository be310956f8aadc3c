"""The first stage's end: each group's maximum and sum, by whichever formulation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.stages import CUBIC, GROUP, HIDDEN, REACH, exp_above, reduce, reduce_by_rows, reduce_fused

GROUPS = 6


def test_exp_by_products_alone_is_near():
    x = torch.linspace(-4 * REACH, REACH, 1_000_001)
    found, wanted = exp_above(x).double(), (x.double() - REACH).exp()
    assert (found - wanted).abs().max() < 7e-6
    assert found[-1] == 1, "each group's maximum"
    assert exp_above(torch.tensor([-math.inf])).item() < 2e-7
    assert exp_above(torch.tensor([math.nan])).isnan().all()
    assert min(CUBIC) > 0


@pytest.mark.parametrize("form", [reduce_fused, reduce_by_rows])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int32, "sums as float32"])
@given(data=st.data())
def test_each_form_finds_the_same(form, kind, data):
    """Some scores hidden, some classes banned, some groups wholly so; one query and several."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    queries = data.draw(st.integers(1, 4))
    rows, whole = GROUPS * GROUP, kind in (torch.int32, "sums as float32")
    scores = torch.randint(-(2**15), 2**15, (rows, queries), generator=random).float()
    scales = torch.rand(rows, generator=random) * 1e-2 + 1e-4 if whole else None
    steps = torch.rand(queries, generator=random) * 1e-1 + 1e-3 if whole else None
    scores = scores if whole else scores * 1e-3
    hidden = torch.rand(rows, queries, generator=random) < data.draw(st.sampled_from([0, 0.1, 0.9]))
    hidden[: data.draw(st.sampled_from([0, GROUP]))] = True
    scores = scores.masked_fill(hidden, -1e33 if kind == "sums as float32" else HIDDEN if whole else -math.inf)
    offsets = torch.randn(rows, generator=random)
    offsets[torch.rand(rows, generator=random) < data.draw(st.sampled_from([0, 0.1, 1]))] = -math.inf
    if kind != "sums as float32":
        scores = scores.to(kind)
    best, mass = form(scores, offsets, scales, steps)
    wanted = reduce(scores.clone(), offsets, scales, steps)
    torch.testing.assert_close(best, wanted[0], rtol=1e-6, atol=1e-5)
    some = best > -1e20  # of the others nothing counts
    torch.testing.assert_close(mass[some], wanted[1][some], rtol=1e-5, atol=GROUP * 7e-6)
    assert mass.isfinite().all()
