import shutil
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.scorer import SHORT, Scorer
from model.stages import BLOCK_CELLS, GROUP, Ranked

PRECISIONS = ["float32", "bfloat16", "int_mm", "qlinear"]
of_each_precision = pytest.mark.parametrize("precision", PRECISIONS, indirect=True)


@pytest.fixture
def precision(request, monkeypatch):
    """One that a scorer has; int8 with either product, whatever this processor has instructions for."""
    if request.param in ("float32", "bfloat16", "int8"):
        return request.param
    monkeypatch.setattr("model.precision.product_of_int8", lambda: request.param)
    return "int8"


def plain(vectors, bias, queries, k, banned=(), hidden=None):
    """All logits at once, in float64: the list of each query, its logits, and the log of the total."""
    logits = queries.double() @ vectors.double().t() + bias.double()
    logits[:, list(banned)] = -torch.inf
    if hidden is not None:
        none_of_these = logits[:, 0].clone()
        logits.scatter_(1, hidden, -torch.inf)
        logits[:, 0] = none_of_these
    total = logits.logsumexp(1)
    logits[:, 0] = -torch.inf
    best, classes = logits.sort(dim=1, descending=True, stable=True)
    missing = (0, max(0, k - logits.shape[1]))
    best = torch.nn.functional.pad(best[:, :k], missing, value=-torch.inf)
    classes = torch.nn.functional.pad(classes[:, :k], missing)
    return best, classes.masked_fill(best == -torch.inf, 0), total


def catalogue(classes, width=16, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(classes + 1, width, generator=random) * scale, torch.randn(classes + 1, generator=random)


def learned(classes, queries, seed=0):
    """Vectors as training leaves them: near a space of few dimensions, the frequent ones longer; D = 64."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(12, 64, generator=random)
    length = 0.5 + torch.rand(classes + 1, 1, generator=random)
    vectors = length * (torch.randn(classes + 1, 12, generator=random) @ basis) / 12
    vectors += 0.1 * torch.randn(vectors.shape, generator=random)
    asked = torch.randn(queries, 12, generator=random) @ basis / 6 + 0.3 * torch.randn(queries, 64, generator=random)
    return vectors, 0.5 * torch.randn(classes + 1, generator=random), asked


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 300), st.integers(1, 40), st.integers(1, 5), st.sampled_from(["float32", "bfloat16"]))
@pytest.mark.parametrize("short", [0, 4096])
def test_the_same_as_the_plain_softmax_with_many_ties(short, data, classes, k, rows, precision):
    """Small whole numbers, whose products are exact in any precision and often equal."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    vectors, queries = (torch.randint(-2, 3, (count, 4), generator=random).float() for count in (classes + 1, rows))
    bias = torch.randint(-1, 2, (classes + 1,), generator=random).float()
    banned = data.draw(st.lists(st.integers(1, classes), max_size=9)) if classes else []
    hidden = torch.randint(0, classes + 1, (rows, data.draw(st.integers(0, 60))), generator=random)
    scorer = Scorer(vectors, bias, precision=precision, block=64, banned=torch.tensor(banned, dtype=torch.long))
    with mock.patch("model.scorer.SHORT", short):  # in one product, or by groups
        ranked = scorer.top(queries, k, hidden)
    best, listed, total = plain(vectors, bias, queries, k, banned, hidden)
    assert ranked.logits.tolist() == best.tolist()
    assert ranked.classes.tolist() == listed.tolist()
    torch.testing.assert_close(ranked.log_total.double(), total, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [32, 1024, 8192])
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_float32_is_exact(block, rows):
    vectors, bias = catalogue(3000)
    queries = torch.randn(rows, 16, generator=torch.Generator().manual_seed(1))
    ranked = Scorer(vectors, bias, block=block).top(queries, 10)
    best, listed, total = plain(vectors, bias, queries, 10)
    assert torch.equal(ranked.classes, listed)
    torch.testing.assert_close(ranked.logits, best.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ranked.log_total, total.float(), atol=1e-5, rtol=1e-5)


def test_any_number_of_queries_fits_into_whole_groups():
    """Blocks are shorter for more queries; 40 and 200 divide no power of two."""
    vectors, bias = catalogue(30_000, width=8)
    queries = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    scorer = Scorer(vectors, bias)
    everything = plain(vectors, bias, queries, 3)
    for rows in (40, 200):
        ranked = scorer.top(queries[:rows], 3)
        assert torch.equal(ranked.classes, everything[1][:rows])
        torch.testing.assert_close(ranked.log_total, everything[2][:rows].float(), atol=1e-5, rtol=1e-5)


@of_each_precision
def test_what_is_listed_has_its_exact_logit_whatever_the_batch(precision):
    vectors, bias, queries = learned(5000, 40)
    scorer = Scorer(vectors, bias, precision=precision)
    ranked = scorer.top(queries, 10)
    assert torch.equal(scorer.logits(queries, ranked.classes), ranked.logits)
    alone = scorer.top(queries[7:8], 10)
    assert torch.equal(alone.logits[0], ranked.logits[7])
    torch.testing.assert_close(alone.log_total[0], ranked.log_total[7], atol=1e-4, rtol=0)


def test_bfloat16_lists_the_same_where_gaps_are_larger_than_its_rounding():
    """The ten best are 1 apart, at 30 and more above all others; bfloat16 knows 3 digits."""
    vectors, bias, queries = learned(20_000, 8)
    logits = queries @ vectors.t() + bias
    bias[torch.arange(500, 5500, 500)] += logits.max() - logits.min() + 30 + 10 * torch.arange(10)
    ranked = Scorer(vectors, bias, precision="bfloat16").top(queries, 10)
    assert torch.equal(ranked.classes, plain(vectors, bias, queries, 10)[1])


@pytest.mark.parametrize(
    ("precision", "recall", "error"),
    [("bfloat16", 0.999, 5e-3), ("int_mm", 0.98, 2e-2), ("qlinear", 0.98, 2e-2)],
    indirect=["precision"],
)
def test_low_precision_finds_nearly_all_and_nearly_the_total(precision, recall, error):
    vectors, bias, queries = learned(20_000, 64)
    ranked = Scorer(vectors, bias, precision=precision).top(queries, 10)
    _, listed, total = plain(vectors, bias, queries, 10)
    found = (ranked.classes[:, :, None] == listed[:, None]).any(-1).double().mean()
    assert found >= recall
    torch.testing.assert_close(ranked.log_total, total.float(), atol=error, rtol=0)


@of_each_precision
def test_hidden_and_banned_classes_are_neither_listed_nor_counted(precision):
    """The whole head of the list is taken away, and with it nearly all of the total."""
    vectors, bias, queries = learned(5000, 20)
    bias[torch.arange(50, 5000, 50)] += 20
    _, hidden, _ = plain(vectors, bias, queries, 90)
    banned = torch.tensor([7, 5000, 2500])
    ranked = Scorer(vectors, bias, precision=precision, block=1024, banned=banned).top(queries, 15, hidden)
    best, listed, total = plain(vectors, bias, queries, 15, banned.tolist(), hidden)
    assert (ranked.classes[:, :9] == listed[:, :9]).all()
    torch.testing.assert_close(ranked.logits, best.float(), atol=0.05, rtol=0)
    torch.testing.assert_close(ranked.log_total, total.float(), atol=0.02, rtol=0)


@of_each_precision
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("size", [1, 1e-6])
def test_of_a_long_catalogue_all_but_one_may_be_hidden(precision, rows, size):
    """Also where logits are so small that a low score would be none."""
    vectors, bias, queries = (size * part for part in learned(SHORT + 900, rows))
    hidden = torch.arange(SHORT + 900).repeat(rows, 1)  # all but the last; 0 is nobody
    ranked = Scorer(vectors, bias, precision=precision).top(queries, 3, hidden)
    best, listed, total = plain(vectors, bias, queries, 3, hidden=hidden)
    assert ranked.classes.tolist() == listed.tolist() == [[SHORT + 900, 0, 0]] * rows
    torch.testing.assert_close(ranked.logits, best.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ranked.log_total, total.float(), atol=1e-5, rtol=1e-5)


def test_where_all_but_some_are_hidden_the_list_ends_early():
    vectors, bias = catalogue(100)
    hidden = torch.arange(100)[None]  # all but class 100; 0 is nobody
    ranked = Scorer(vectors, bias).top(torch.ones(1, 16), 3, hidden)
    left = vectors[[0, 100]].sum(1) + bias[[0, 100]]
    assert ranked.classes.tolist() == [[100, 0, 0]]
    assert ranked.logits[0, 1:].tolist() == [-torch.inf, -torch.inf]
    torch.testing.assert_close(ranked.logits[0, 0], left[1])
    torch.testing.assert_close(ranked.log_total[0], left.logsumexp(0))


@of_each_precision
@pytest.mark.parametrize("classes", [500, SHORT + 900])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_has_no_answer_and_its_neighbours_do(precision, broken, classes):
    vectors, bias, queries = learned(classes, 20)
    scorer = Scorer(vectors, bias, precision=precision)
    expected = scorer.top(queries, 5)
    queries[1, 3] = broken
    ranked = scorer.top(queries, 5)
    others = torch.arange(20) != 1
    assert not ranked.log_total[1].isfinite()
    assert not ranked.logits[1].isfinite().any()
    assert torch.equal(ranked.logits[others], expected.logits[others])
    assert torch.equal(ranked.log_total[others], expected.log_total[others])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        new = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and not func.is_view]
        self.elements = max([self.elements, *(each.numel() for each in new)])
        return result


@of_each_precision
def test_no_more_than_a_block_of_scores_exists_at_once(precision):
    vectors, bias = catalogue(200_000, width=8)
    scorer = Scorer(vectors, bias, precision=precision, block=1024)
    hidden = torch.randint(1, 200_000, (32, 50), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        scorer.top(torch.ones(32, 8), 10, hidden)
    assert 32 * 1024 <= largest.elements <= 32 * (1024 + 2)  # two rows beside the block, for nobody


@pytest.mark.parametrize(("classes", "few"), [(BLOCK_CELLS // 8, 8), (BLOCK_CELLS // 8 + 600, 1)])
def test_few_queries_are_as_many_as_have_a_block_of_scores_in_all(classes, few):
    """Where eight would have more, only one is few."""
    scorer = Scorer(*catalogue(classes, width=8), few_in_int8=True, block=1024)
    rows = (classes + 1) // 32 * 32
    for queries in range(1, 10):
        with Largest() as largest:
            scorer.top(torch.ones(queries, 8), 10)
        if queries <= few:
            assert queries * rows <= largest.elements <= queries * (classes + 1)
        else:
            assert largest.elements < 3 * rows  # queries are padded to 8 or 16, and have a block at once


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(
    ("precision", "per_number"),
    [("float32", 4), ("bfloat16", 4 + 2), ("int_mm", 4 + 1), ("qlinear", 4 + 1 + 1)],
    indirect=["precision"],
)
def test_memory_held(precision, per_number, few):
    vectors, bias = catalogue(10_239, width=128)
    held = Scorer(vectors, bias, precision=precision, few_in_int8=few).bytes
    per_number += few and precision != "int8"  # of which few queries need no table of their own
    assert 10_240 * 128 * per_number <= held <= 10_240 * (128 * per_number + 14)  # scales, ones, two biases


def test_the_vectors_are_shared_not_copied():
    vectors, bias = catalogue(1000)
    assert Scorer(vectors, bias)._exact.vectors.data_ptr() == vectors.data_ptr()


@pytest.mark.parametrize(
    ("precision", "digits"),
    [("float32", 1e-5), ("bfloat16", 1e-4), ("int_mm", 1e-4), ("qlinear", 1e-5)],
    indirect=["precision"],
)
def test_one_query_is_told_the_same_as_among_many(precision, digits):
    """Up to the last digits, unless few in int8 are wanted: a record that comes again is answered as the first time."""
    vectors, bias, queries = learned(20_100, 40)
    scorer = Scorer(vectors, bias, precision=precision)
    many = scorer.top(queries, 10)
    alone = Ranked(*map(torch.cat, zip(*(scorer.top(one, 10) for one in queries.split(1)), strict=True)))
    assert torch.equal(alone.classes, many.classes)
    torch.testing.assert_close(alone.logits, many.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.log_total, many.log_total, atol=digits, rtol=0)


FEW = [(1, "float32"), (8, "float32"), (1, "bfloat16"), (3, "bfloat16"), (1, "int_mm"), (1, "qlinear"), (5, "qlinear")]


@pytest.mark.parametrize(("rows", "precision"), FEW, indirect=["precision"])
@pytest.mark.parametrize("width", [64, 50])
def test_few_queries_find_nearly_all_and_nearly_the_total(rows, precision, width):
    """Also where a vector fills no whole registers; what is listed has its exact logit."""
    vectors, bias, queries = learned(20_100, 64)
    vectors, queries = vectors[:, :width], queries[:, :width]
    scorer = Scorer(vectors, bias, precision=precision, few_in_int8=True)
    parts = [scorer.top(some, 10) for some in queries.split(rows)]
    ranked = Ranked(*map(torch.cat, zip(*parts, strict=True)))
    _, listed, total = plain(vectors, bias, queries, 10)
    found = (ranked.classes[:, :, None] == listed[:, None]).any(-1).double().mean()
    assert found >= 0.999
    torch.testing.assert_close(ranked.log_total, total.float(), atol=2e-2 if precision == "int8" else 1e-2, rtol=0)
    torch.testing.assert_close(ranked.logits, scorer.logits(queries, ranked.classes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "precision"), FEW, indirect=["precision"])
def test_of_few_queries_hidden_and_banned_classes_are_neither_listed_nor_counted(rows, precision):
    """Among the whole squares, and among the classes behind them, from 4,864 on."""
    vectors, bias, queries = learned(5000, rows)
    bias[torch.arange(50, 5000, 50)] += 20
    _, hidden, _ = plain(vectors, bias, queries, 90)
    hidden = torch.nn.functional.pad(hidden, (0, 3))  # 0 is nobody
    banned = torch.tensor([7, 5000, 2500])
    scorer = Scorer(vectors, bias, precision=precision, few_in_int8=True)
    scorer.ban(torch.tensor([8]))
    scorer.ban(banned)
    ranked = scorer.top(queries, 15, hidden)
    best, listed, total = plain(vectors, bias, queries, 15, banned.tolist(), hidden)
    assert (ranked.classes[:, :9] == listed[:, :9]).all()
    torch.testing.assert_close(ranked.logits, best.float(), atol=0.05, rtol=0)
    torch.testing.assert_close(ranked.log_total, total.float(), atol=0.02, rtol=0)


@pytest.mark.parametrize(("rows", "precision"), FEW, indirect=["precision"])
def test_for_few_queries_a_ban_that_comes_later_holds_in_all_groups(rows, precision):
    """More heavy classes than groups are looked into, each in a group of its own; then they are back."""
    vectors, bias, queries = learned(5000, rows)
    heavy = torch.arange(50, 5000, 50)
    bias[heavy] += 20
    scorer = Scorer(vectors, bias, precision=precision, few_in_int8=True)
    for banned in (heavy, torch.tensor([], dtype=torch.long)):
        scorer.ban(banned)
        ranked = scorer.top(queries, 5)
        best, _, total = plain(vectors, bias, queries, 5, banned.tolist())
        torch.testing.assert_close(ranked.logits, best.float(), atol=0.05, rtol=0)
        torch.testing.assert_close(ranked.log_total, total.float(), atol=0.02, rtol=0)


@pytest.mark.parametrize(("rows", "precision"), FEW, indirect=["precision"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_of_few_queries_one_that_is_not_finite_has_no_answer_and_its_neighbours_do(rows, precision, broken):
    vectors, bias, queries = learned(5000, rows)
    scorer = Scorer(vectors, bias, precision=precision, few_in_int8=True)
    expected = scorer.top(queries, 5)
    queries[0, 3] = broken
    ranked = scorer.top(queries, 5)
    assert not ranked.log_total[0].isfinite()
    assert not ranked.logits[0].isfinite().any()
    assert torch.equal(ranked.logits[1:], expected.logits[1:])
    assert torch.equal(ranked.log_total[1:], expected.log_total[1:])


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("precision", "classes", "most", "in_int8", "k", "hiding"),
    [
        ("bfloat16", 3000, 20, False, 10, (False, True)),
        ("int8", SHORT + 1000, 20, False, 10, (False, True)),
        ("float32", SHORT + 1000, 20, False, 10, (True,)),
        ("float32", SHORT + 1000, 1, False, 10, (True,)),
        ("float32", 4 * SHORT, 5, True, 40, (False,)),
        ("bfloat16", SHORT + 1000, 1, True, 1000, (True,)),
    ],
    indirect=["precision"],
)
def test_compiled_says_the_same(precision, classes, most, in_int8, k, hiding, caplog):
    """For many queries, for few, and for one, which has code of its own; each kind with and without what is hidden is a library."""
    vectors, bias, queries = learned(classes, 20)
    hidden = torch.arange(1, 21)[:, None].repeat(1, 2)
    fast, slow = (
        Scorer(vectors, bias, precision=precision, block=2048, compiled=compiled, few_in_int8=in_int8)
        for compiled in (True, False)
    )
    for hides in hiding:
        seen = hidden[:most] if hides else None
        one, other = fast.top(queries[:most], k, seen), slow.top(queries[:most], k, seen)
        assert torch.equal(one.classes, other.classes)
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.log_total, other.log_total, atol=1e-4, rtol=0)
    if precision == "int8":  # in which few queries may have code of their own
        few = fast.top(queries[:5], k, hidden[:5])
        assert torch.equal(few.classes, one.classes[:5])
        torch.testing.assert_close(few.log_total, one.log_total[:5], atol=1e-5, rtol=0)
    assert "is not compiled" not in caplog.text


def test_one_query_is_answered_where_nothing_compiles(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("model.ahead_of_time.AheadOfTime._loaded", refuse)
    vectors, bias, queries = learned(SHORT + 1000, 1)
    one, other = (Scorer(vectors, bias, compiled=compiled).top(queries, 10) for compiled in (True, False))
    assert torch.equal(one.classes, other.classes)
    torch.testing.assert_close(one.log_total, other.log_total, atol=1e-5, rtol=0)


def test_an_empty_batch_has_an_empty_answer():
    ranked = Scorer(*catalogue(100)).top(torch.empty(0, 16), 3)
    assert [tuple(each.shape) for each in ranked] == [(0, 3), (0, 3), (0,)]


def test_what_cannot_be_is_refused():
    vectors, bias = catalogue(100)
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, got int4"):
        Scorer(vectors, bias, precision="int4")
    with pytest.raises(ValueError, match=f"block must be a multiple of {2 * GROUP}, got 100"):
        Scorer(vectors, bias, block=100)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Scorer(vectors, bias).top(torch.ones(1, 16), 0)
