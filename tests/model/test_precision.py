"""Products in int8: exact whatever the numbers, and the same for few queries as for many."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.precision import MOST, ZERO, lay_out, prepare, prepare_for_few
from model.scoring_library import compiled_reduce
from model.stages import HiddenInOrder, hide, in_bfloat16, multiplied

FIRST = {"int_mm": 0, "qlinear": ZERO}


def whole_numbers(rows, seed, width=128):
    """All but the signs at the largest value there is, as an overflow needs it; each query is also a row."""
    signs = torch.randint(0, 2, (rows, width), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    signs[0] = 1
    return signs


@pytest.mark.parametrize("queries", [1, 8, 40])
@pytest.mark.parametrize("product", ["int_mm", "qlinear"])
def test_sums_are_exact_where_all_numbers_are_largest(monkeypatch, product, queries):
    monkeypatch.setattr("model.precision.product_of_int8", lambda: product)
    rows = whole_numbers(640, 1)
    asking = torch.cat((rows[:1], -rows[:1], rows[1:queries]))[:queries]
    table = prepare(rows, torch.zeros(640), "int8")
    assert table.product == product
    asked, steps = lay_out(asking, table)
    sums = multiplied(table, asked, queries)
    most = table.vectors.int().amax() - FIRST[product]
    assert sums.tolist() == (rows @ asking.t() * most * MOST).tolist()
    torch.testing.assert_close(sums * table.scales[:, None] * steps, rows @ asking.t())


def test_few_queries_get_the_sums_of_many_in_bfloat16(monkeypatch):
    """Also where a vector fills no whole registers."""
    monkeypatch.setattr("model.precision.product_of_int8", lambda: "qlinear")
    random = torch.Generator().manual_seed(2)
    vectors, queries = (torch.randn(count, 50, generator=random) for count in (640, 5))
    many = prepare(vectors, torch.zeros(640), "int8")
    few = prepare_for_few(vectors, many)
    sums, steps = (multiplied(many, lay_out(queries, many)[0], 5), lay_out(queries, many)[1])
    theirs = multiplied(few, lay_out(queries, few)[0], 5)
    assert theirs.dtype == torch.bfloat16
    assert theirs.float().tolist() == in_bfloat16(sums).tolist()
    assert torch.equal(steps, lay_out(queries, few)[1])
    assert torch.equal(few.scales, many.scales)


@given(st.lists(st.integers(-(2**23), 2**23), min_size=1))
def test_rounded_by_sums_alone_it_is_bfloat16(numbers):
    sums = torch.tensor(numbers, dtype=torch.float32)
    assert in_bfloat16(sums).tolist() == sums.bfloat16().float().tolist()


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiler_rounds_as_well():
    """Where a product and a sum are one instruction. One number of each group of 16 is left: all others are hidden."""
    sums = torch.full((32 * 16, 40), -1e33)
    sums[::16] = torch.randint(-(2**20), 2**20, (32, 40), generator=torch.Generator().manual_seed(3)).float()
    compiled = compiled_reduce("cpu")
    best, mass = compiled(sums, torch.zeros(512), torch.ones(512), torch.ones(40))
    assert not compiled.is_plain
    assert best.tolist() == sums[::16].bfloat16().float().tolist()
    torch.testing.assert_close(mass, torch.ones(32, 40), atol=2e-6, rtol=0)  # 15 times 1e-7


@given(st.data(), st.integers(1, 5), st.integers(0, 2), st.integers(0, 5), st.integers(1, 7))
def test_what_is_hidden_in_order_is_what_is_hidden(data, queries, padding, each, pairs):
    """Block by block, by either way; 0 is nobody, and what lies behind the last block, which may be short, is looked into elsewhere."""
    size, rows, columns = 64, 32 * pairs, queries + padding
    classes = st.lists(st.integers(0, rows + 20), min_size=each, max_size=each)
    hidden = torch.tensor(data.draw(st.lists(classes, min_size=queries, max_size=queries)), dtype=torch.long)
    wanted = torch.zeros(rows, columns)
    for query, names in enumerate(hidden.tolist()):
        wanted[[one for one in names if 0 < one < rows], query] = -1
    in_order, found, other = HiddenInOrder(hidden, columns, range(0, rows, size)), [], []
    for begin in range(0, rows, size):
        part = len(wanted[begin : begin + size])
        found.append(torch.zeros(part, columns))
        in_order.hide(found[-1], begin // size, -1)
        scratch = torch.zeros(part + 2, columns)
        hide(scratch, hidden.t() - (begin - 1), part, -1)
        other.append(scratch[1:-1])
    other[0][0] = 0  # class 0 is never listed, so nobody asks whether it is hidden
    assert torch.cat(found).tolist() == wanted.tolist()
    assert torch.cat(other).tolist() == wanted.tolist()


def test_more_blocks_than_sixteen_bits_number():
    blocks = range(0, 32 * 70_000, 32)
    hidden = torch.tensor([[0, 5, 32 * 65_535, 32 * 65_536 + 5, blocks.stop - 1]])
    in_order = HiddenInOrder(hidden, 1, blocks)
    found = []
    for number, begin in enumerate(blocks):
        scores = torch.zeros(32, 1)
        in_order.hide(scores, number, 1)
        found += (scores[:, 0].nonzero()[:, 0] + begin).tolist()
    assert found == hidden[0, 1:].tolist()
