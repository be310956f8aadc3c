import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features import NO_IDENTITY, encode, pad
from model.vocabulary import NONE, PAD, build
from model.window import Window

VOCABULARY = build({"a": 2, "b": 1}, {"x": 1}, {"a": "x"}, ("view", "purchase"), "purchase", item_buckets=3)
ITEMS = st.one_of(st.none(), st.sampled_from(["a", "b", "new", "newer", ""]))


def window(items, times=None):
    count = len(items)
    return Window(items, ["view"] * count, [None] * count, times or list(range(count)))


def test_known_unknown_and_missing_names():
    columns = encode([Window(["a", "new", None, "new"], ["view", "fly", "purchase", "view"], ["x", "z", None, "x"],
                             [1, 2, 3, 4])], VOCABULARY)  # fmt: skip
    a, new = VOCABULARY.items.row("a"), VOCABULARY.items.row("new")
    assert columns.item_rows.tolist() == [a, new, NONE, new]
    assert columns.item_ids.tolist() == [a, VOCABULARY.items.rows, NO_IDENTITY, VOCABULARY.items.rows]
    assert columns.unknown_items == ["new"]
    assert columns.unknown_categories == ["z"]
    assert columns.behavior_rows.tolist() == [3, 2, 4, 3]  # 2: unknown


@given(st.lists(st.lists(ITEMS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_identities_are_equal_exactly_when_names_are(windows):
    columns = encode([window(items) for items in windows], VOCABULARY)
    names = [name for items in windows for name in items]
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            same = columns.item_ids[i] == columns.item_ids[j]
            assert same == (one == other)


@given(st.lists(ITEMS, min_size=1, max_size=8), st.data())
def test_a_cut_of_a_life_is_what_serving_makes_of_that_window(items, data):
    """Training cuts long lives, serving encodes short windows: rows, times and equality must be the same."""
    start = data.draw(st.integers(0, len(items) - 1))
    end = data.draw(st.integers(start + 1, len(items)))
    times = [10 * step for step in range(len(items))]
    life = encode([window(items, times)], VOCABULARY)
    cut = pad(life, np.array([start]), np.array([end - start]), 8)
    short = encode([window(items[start:end], times[start:end])], VOCABULARY)
    served = pad(short, short.starts, short.lengths, 8)
    for name in ("item_rows", "category_rows", "behavior_rows", "times_ms", "lengths"):
        assert getattr(cut, name).tolist() == getattr(served, name).tolist()
    same = [[a == b for a in ids] for ids in cut.item_ids.tolist() for b in ids]
    assert same == [[a == b for a in ids] for ids in served.item_ids.tolist() for b in ids]


def test_padding_is_on_the_right():
    columns = encode([window(["a"], [7]), window(["a", "b", "a"], [1, 2, 9])], VOCABULARY)
    batch = pad(columns, columns.starts, columns.lengths, 4)
    a, b = VOCABULARY.items.row("a"), VOCABULARY.items.row("b")
    assert batch.item_rows.tolist() == [[a, PAD, PAD, PAD], [a, b, a, PAD]]
    assert batch.item_ids.tolist() == [[a, -1, -1, -1], [a, b, a, -1]]
    assert batch.times_ms.tolist() == [[7, 7, 7, 7], [1, 2, 9, 9]]
    assert batch.lengths.tolist() == [1, 3]


def test_no_windows_make_no_columns():
    assert len(encode([], VOCABULARY).starts) == 0


def test_a_window_that_is_not_text_is_not_silently_known():
    with pytest.raises((TypeError, AttributeError)):
        encode([window([5])], VOCABULARY)
