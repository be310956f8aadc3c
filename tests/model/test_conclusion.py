"""The end of an answer, as compiled code and as it is."""

import pytest
import torch

from model.ahead_of_time import AheadOfTime
from model.calibration import Calibration, Line
from model.compiling import can_compile
from model.conclusion import Seen, compiled_conclude, conclude, decimals, fixed
from model.hiding import banned
from model.mixing import listing, ranking, scored
from model.network import Copied, Heads, Mixture
from model.pointer import FAR
from model.scorer import Scorer
from model.told import Told
from model.vocabulary import Catalogue

WIDTH, BEHAVIORS, K = 8, 4, 5
ITEMS, CATEGORIES = (
    Catalogue(tuple(f"{of}{n}" for n in range(count)), buckets=4) for of, count in (("i", 90), ("c", 150))
)
RANKED, RANKED_CATEGORIES = (
    ranking(Scorer(torch.ones(len(of.names) + 1, WIDTH), torch.zeros(len(of.names) + 1)), of, [1] * len(of.names))
    for of in (ITEMS, CATEGORIES)
)
CALIBRATION = Calibration(
    1.3, purchase=Line(0.8, -0.4), churn=Line(1.2, 0.3), times=(Line(0.9, 0.1), Line(1.0, -0.2), Line(0.8, 0.4))
)


def answers(windows, events, *, copy=True, categories=True, barred=(), hidden=False, seed=0):
    """What `conclude` is given, at random."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=numbers)

    def mixture(ids):
        last = torch.stack([(ids[:, at + 1 :] != ids[:, at : at + 1]).all(1) for at in range(events)], dim=1)
        pointer = torch.log_softmax(normal(windows, events).masked_fill(~last, FAR), -1).masked_fill(~last, FAR)
        share = torch.rand(windows, 1, generator=numbers)
        return Mixture(
            normal(windows, 1, WIDTH), Copied(share.log(), (1 - share).log(), pointer[:, None]) if copy else None
        )

    def ids_of(catalogue):
        found = torch.randint(catalogue.first, catalogue.rows + 3, (windows, events), generator=numbers)
        found[0] = catalogue.rows + found[0] % 3  # a window without a known name
        return found

    def against(catalogue):
        count = len(catalogue.names)
        found = ranking(Scorer(normal(count + 1, WIDTH), normal(count + 1)), catalogue, range(count, 0, -1))
        if catalogue is ITEMS and barred:
            some = banned(barred, catalogue, torch.device("cpu"))
            found.scorer.ban(some.classes)
            found = found._replace(banned=some)
        return found

    seen = Seen(ids_of(ITEMS), ids_of(CATEGORIES), torch.randint(0, 6, (windows, events), generator=numbers))
    heads = Heads(
        items=mixture(seen.item_ids),
        categories=mixture(seen.category_ids),
        behaviors=normal(windows, 1, BEHAVIORS),
        goal=normal(windows, 1),
        churn=normal(windows, 1),
        log_seconds=normal(windows, 1, 3).cumsum(-1),
    )
    items, others = against(ITEMS), against(CATEGORIES)
    away = seen.item_ids == ITEMS.rows if hidden else None
    return (
        heads,
        seen,
        away,
        scored(heads.items, seen.item_ids, items, K, away),
        scored(heads.categories, seen.category_ids, others, K, None) if categories else None,
        fixed(listing(items, K), listing(others, K), normal(6, BEHAVIORS), CALIBRATION),
        K,
    )


KINDS = [
    {},
    {"copy": False, "categories": False},
    {"copy": False, "categories": False, "barred": ("i1", "i2", "of another shop")},
    {"hidden": True},
    {"barred": ("i1", "i2", "i3", "i4"), "hidden": True},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiled_says_the_same(kind, caplog):
    if not can_compile():
        pytest.fail("a C++ compiler belongs to a machine that runs the tests: Debian's g++")
    run = compiled_conclude()
    for number, (windows, events) in enumerate([(37, 12), (1, 12), (1, 100), (300, 2), (2, 3)]):
        given = answers(windows, events, seed=number, **kind)
        found, wanted = run(*given), conclude(*given)
        assert type(found) is Told
        for name in Told._fields:
            one, other = getattr(found, name), getattr(wanted, name)
            assert (one.dtype, one.shape) == (other.dtype, other.shape), name
            if one.dtype == torch.float64:
                torch.testing.assert_close(one, other, atol=2e-7, rtol=1e-6)  # the last decimal that is told
            else:
                assert torch.equal(one, other), name
    assert "is not compiled" not in caplog.text


def test_one_program_is_for_all_lists(monkeypatch, caplog):
    """Whoever changes the list of banned items while a worker answers waits for no compiler."""
    run = compiled_conclude()
    run(*answers(3, 12))
    monkeypatch.setattr(AheadOfTime, "_loaded", lambda *_: pytest.fail("another program is made"))
    for kind in (*KINDS[3:], {}):
        assert run(*answers(5, 7, **kind)).ids.shape == (5, K)
    assert "is not compiled" not in caplog.text


def test_what_is_no_number_is_not_sound():
    given = answers(3, 12)
    given[0].goal[1] = torch.nan
    for say in (conclude, compiled_conclude()):
        assert say(*given).sound.tolist() == [True, False, True]


@pytest.mark.parametrize("strange", [torch.nan, -torch.nan, torch.inf])
def test_a_window_without_known_names_is_not_sound_either(strange):
    """What is popular stands in for the catalogue, and has a probability."""
    heads, seen, *_, given, k = answers(3, 12)
    heads.items.query[0] = strange
    items = scored(heads.items, seen.item_ids, RANKED, k, None)
    others = scored(heads.categories, seen.category_ids, RANKED_CATEGORIES, k, None)
    assert conclude(heads, seen, None, items, others, given, k).sound.tolist() == [False, True, True]


def test_decimals_are_those_of_torch():
    numbers = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decimals(numbers, 7), numbers.round(decimals=7))
