"""Passes: everybody's steps in order, no user twice at once, and as few passes as there can be."""

from collections import Counter
from itertools import pairwise
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from model.passes import passes, spans
from model.window import Step


def steps_of(names: str) -> list[Step | None]:
    """A step for each letter, whose name is the user's; none for a dash."""
    return [None if name == "-" else Step(name, 0, -1, n, 0, 1, None, "view", None, 0) for n, name in enumerate(names)]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 9))
def test_passes_are_few_full_and_in_each_users_order(users: list[str], most: int) -> None:
    found = list(passes(users, most))
    assert sorted(position for some in found for position in some) == list(range(len(users)))
    for some in found:
        assert len({users[position] for position in some}) == len(some) <= most
    for user in set(users):
        own = [position for some in found for position in some if users[position] == user]
        assert own == sorted(own)
    assert len(found) == max(ceil(len(users) / most), max(Counter(users).values(), default=0))


def test_whoever_has_most_left_goes_first() -> None:
    assert list(passes("abcca", most=2)) == [[0, 2], [4, 3], [1]]


@given(st.text("abcdef-", max_size=40), st.integers(1, 6))
def test_spans_are_in_order_and_of_no_more_users_than_there_is_room_for(names: str, most: int) -> None:
    found = spans(steps_of(names), most)
    assert [position for some in found for position in some] == [n for n, name in enumerate(names) if name != "-"]
    for some, following in pairwise(found):
        users = {names[position] for position in some}
        assert len(users) == most
        assert names[following[0]] not in users
