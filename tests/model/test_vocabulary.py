import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vocabulary import NONE, Catalogue, Vocabulary, VocabularyError, build


def small(**changes):
    given = {
        "item_counts": {"a": 2, "b": 5, "c": 2, "once": 1},
        "category_counts": {"x": 3, "y": 4},
        "item_category": {"a": "x", "b": "y"},
        "behaviors": ("view", "purchase"),
        "goal": "purchase",
    }
    return build(**{**given, **changes}, min_item_count=2, item_buckets=8, category_buckets=2)


def test_rows_follow_falling_count_then_name():
    vocabulary = small()
    assert vocabulary.items.names == ("b", "a", "c")
    assert vocabulary.popular_items(2) == ["b", "a"]
    assert [vocabulary.items.row(name) for name in "bac"] == [2 + 8, 2 + 8 + 1, 2 + 8 + 2]
    assert vocabulary.items.rows == 2 + 8 + 3
    assert vocabulary.item_counts == (5, 2, 2)
    assert vocabulary.item_categories == (vocabulary.categories.row("y"), vocabulary.categories.row("x"), NONE)


def test_max_items_keeps_the_most_frequent():
    assert build({"a": 1, "b": 2}, {}, {}, ("view",), "view", max_items=1).items.names == ("b",)


@given(st.text())
def test_unknown_names_stay_in_their_rows(name):
    catalogue = Catalogue(("known",), buckets=5)
    row = catalogue.row(name)
    assert row == 7 if name == "known" else 2 <= row < 7


def test_an_unknown_name_has_the_same_row_in_every_process():
    program = "from model.vocabulary import Catalogue; print([Catalogue((), 1000).row(x) for x in ('é', 'b', '')])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{[Catalogue((), 1000).row(name) for name in ('é', 'b', '')]}\n"}


def test_json_round_trip_keeps_everything_and_the_hash():
    vocabulary = small()
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary
    assert again.content_hash == vocabulary.content_hash
    assert small(goal="view").content_hash != vocabulary.content_hash


def test_names_with_lone_surrogates_survive():
    vocabulary = build({"\ud800": 1}, {}, {}, ("view",), "view")
    assert Vocabulary.from_json(vocabulary.to_json()).items.names == ("\ud800",)
    assert vocabulary.items.row("\udfff") >= 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "not a vocabulary"),
        ("[]", "not a vocabulary: TypeError"),
        ("{}", "not a vocabulary: KeyError"),
        (json.dumps({**json.loads(small().to_json()), "goal": "fly"}), "the goal 'fly' is not one of the behaviours"),
        (json.dumps({**json.loads(small().to_json()), "item_counts": [1]}), "item_counts has 1 entries for 3 names"),
    ],
)
def test_a_damaged_vocabulary_is_refused_in_one_line(document, message):
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.from_json(document)
    assert "\n" not in str(caught.value)


def test_a_name_twice_or_no_row_for_unknown_names_is_refused():
    with pytest.raises(VocabularyError, match="lists a name twice"):
        Catalogue(("a", "a"))
    with pytest.raises(VocabularyError, match="at least 1 row"):
        Catalogue(("a",), buckets=0)
