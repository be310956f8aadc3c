"""Passes: everybody's steps in order, no user twice at once, and as few passes as there can be."""

from collections import Counter
from itertools import pairwise
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from model.passes import in_order, passes, spans
from model.window import Step


def steps_of(names: str) -> list[Step | None]:
    """A step for each letter, whose name is the user's; none for a dash."""
    return [None if name == "-" else Step(name, 0, -1, n, 0, 1, None, "view", None, 0) for n, name in enumerate(names)]


polls = st.lists(st.sampled_from("abcdefgh"), max_size=60)


@given(polls, st.integers(1, 9), st.sets(st.integers(0, 59)))
def test_passes_are_few_full_and_in_each_users_order(users: list[str], most: int, late: set[int]) -> None:
    found = list(passes(users, most, late=late))
    are_in_order(users, found, most)
    assert len(found) == max(ceil(len(users) / most), max(Counter(users).values(), default=0))


@given(polls, st.integers(1, 9), st.integers(1, 9), st.sets(st.integers(0, 59)))
def test_the_last_two_passes_worth_goes_in_smaller_ones(
    users: list[str], most: int, at_end: int, late: set[int]
) -> None:
    found = list(passes(users, most, late=late, at_end=at_end))
    are_in_order(users, found, most)
    left, own = Counter(users), len(users)
    for some in found:
        assert len(some) == min(most if own >= 2 * most else min(at_end, most), len(+left))
        own -= len(some)
        left.subtract(users[position] for position in some)


def are_in_order(users: list[str], found: list[list[int]], most: int) -> None:
    """Every position once, in passes of distinct users."""
    assert sorted(position for some in found for position in some) == list(range(len(users)))
    for some in found:
        assert len({users[position] for position in some}) == len(some) <= most
    for user in set(users):
        own = [position for some in found for position in some if users[position] == user]
        assert own == sorted(own)


def test_two_threads_get_passes_with_which_both_end() -> None:
    users = [str(number) for number in range(1100)]
    sizes = [len(some) for some in passes(users, 256, at_end=128)]
    assert sizes == [256, 256, 256, 128, 128, 1100 - 3 * 256 - 2 * 128]
    assert [len(some) for some in passes(users[:200], 256, at_end=100)] == [100, 100]


@given(st.integers(0, 40), st.integers(1, 9), st.sets(st.integers(0, 39)))
def test_of_users_with_one_step_each_the_late_ones_are_last(count: int, most: int, late: set[int]) -> None:
    order = [position for some in passes([str(n) for n in range(count)], most, late=late) for position in some]
    assert order == sorted(range(count), key=lambda position: (position in late, position))


def test_of_those_with_as_much_left_the_late_ones_go_last() -> None:
    assert list(passes("abcde", most=2, late={0, 2})) == [[1, 3], [4, 0], [2]]
    assert list(passes("aab", most=1, late={0})) == [[0], [1], [2]], "two are more than one, late or not"
    assert list(passes("aab", most=1, late={1})) == [[0], [2], [1]]


@given(st.text("abc", max_size=20), st.sets(st.integers(0, 19)))
def test_a_users_steps_follow_each_other(names: str, wrong: set[int]) -> None:
    """All but those that begin elsewhere go on from where the one before ended."""
    steps, lengths, offsets = [], dict[str, int](), dict[str, int]()
    for offset, name in enumerate(names):
        if offset in wrong:  # a window that has moved
            lengths[name] = 0
        lengths[name] = lengths.get(name, 0) + 1
        start = -1 if offset in wrong else 0
        steps.append(Step(name, 0, offsets.get(name, -1), offset, start, lengths[name], None, "view", None, 0))
        offsets[name] = offset
    found = in_order(steps)
    own = {name: [n for n, other in enumerate(names) if other == name] for name in names}
    assert found.firsts == sorted(mine[0] for mine in own.values())
    assert found.following == {one: other for mine in own.values() for one, other in pairwise(mine)}
    assert found.broken == {other for one, other in found.following.items() if {one, other} & wrong}


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
