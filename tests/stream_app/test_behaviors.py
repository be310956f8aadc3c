"""The behaviour vocabulary: data, closed, and refused with one line where it is ambiguous."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app import behaviors
from stream_app.behaviors import BehaviorError

SHIPPED = behaviors.load()

BANK = """
[[behavior]]
name = "Transfer"
about_item = false
goal = true
aliases = ["wire"]

[[behavior]]
name = "statement"
about_item = true
"""


def test_the_shipped_vocabulary_has_distinct_names_and_one_goal() -> None:
    assert len(set(SHIPPED.names)) == len(SHIPPED.names)
    assert SHIPPED.goal in SHIPPED.names
    assert SHIPPED.about_item < set(SHIPPED.names)
    assert set(SHIPPED.canonical.values()) == set(SHIPPED.names)


@given(st.data())
def test_every_name_and_alias_resolves_in_any_case(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SHIPPED.canonical)))
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    written = "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=True))
    assert SHIPPED.resolve(written) == SHIPPED.canonical[name]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Product Viewed", "view"),  # Segment
        ("view_item", "view"),  # Google Analytics 4
        ("detail-page-view", "view"),  # Google retail
        ("Order Completed", "purchase"),
        ("pv", "view"),
        ("fav", "favorite"),
        ("cart", "add_to_cart"),
        ("buy", "purchase"),
    ],
)
def test_names_of_other_tools_are_known(written: str, meant: str) -> None:
    assert SHIPPED.resolve(written) == meant


@given(st.text())
def test_any_other_name_is_unknown(name: str) -> None:
    assert SHIPPED.resolve(name) == SHIPPED.canonical.get(name.lower())


def test_another_business_brings_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bank.toml"
    path.write_text(BANK, "utf-8")
    bank = behaviors.load(path)
    assert bank.names == ("Transfer", "statement")
    assert bank.goal == "Transfer"
    assert bank.about_item == {"statement"}
    assert [bank.resolve(name) for name in ("transfer", "WIRE", "Statement", "view")] == [
        "Transfer",
        "Transfer",
        "statement",
        None,
    ]


def test_an_alias_may_hold_anything_since_no_history_keeps_it() -> None:
    vocabulary = behaviors.parse(_entry("a", "goal = true", 'aliases = ["x\\u0000y"]'))
    assert vocabulary.resolve("x\0y") == "a"


def _entry(name: str, *more: str) -> str:
    return "\n".join(["[[behavior]]", f'name = "{name}"', "about_item = false", *more, ""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "behavior"),
        ("behavior = []", "exactly one behaviour must be the goal, found none"),
        (_entry("a"), "exactly one behaviour must be the goal, found none"),
        (_entry("a", "goal = true") + _entry("b", "goal = true"), "found ['a', 'b']"),
        (_entry("a", "goal = true") + _entry("b", 'aliases = ["A"]'), "'A' means both 'a' and 'b'"),
        (_entry("a", "goal = true") + _entry("A"), "'A' means both 'a' and 'A'"),
        (_entry("a", "goal = true") + _entry("a"), "'a' is there twice"),
        (_entry("a\\u0000b", "goal = true"), "'a\\x00b' holds a NUL, which histories keep for themselves"),
        (_entry("a", "goal = true") + _entry("\\u0000"), "'\\x00' holds a NUL"),
        (_entry("a", "goal = true", "colour = 1"), "colour"),
        ('[[behavior]]\nname = "a"\ngoal = true', "about_item"),
        ("[[behavior", "at end of document"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_one_line(text: str, message: str) -> None:
    with pytest.raises(BehaviorError) as caught:
        behaviors.parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "behaviors.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BehaviorError, match="behaviors.toml"):
        behaviors.load(path)
