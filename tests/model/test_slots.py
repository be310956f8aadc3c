"""Slots against a plain model of what they promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.slots import Slots, Tag, after, before
from model.window import Step


def step(user, before_=-1, offset=0, start=0, length=1):
    return Step(user, 0, before_, offset, start, length, None, "view", None, 0)


def test_a_step_leads_from_its_tag_to_the_next():
    one = step("u", before_=3, offset=7, start=10, length=4)
    assert before(one) == Tag(partition=0, offset=3, start=10, length=4 - 1)
    assert after(one) == Tag(partition=0, offset=7, start=10, length=4)


@pytest.mark.parametrize(
    "other", [{"before_": 4}, {"start": 11}, {"length": 5}], ids=["another offset", "another start", "another length"]
)
def test_what_does_not_fit_exactly_is_not_found(other):
    slots = Slots(2)
    slots.take("u")
    slots.keep("u", Tag(0, 3, 10, 3))
    fits = {"before_": 3, "offset": 7, "start": 10, "length": 4}
    assert slots.find(step("u", **fits)) == 0
    assert slots.find(step("u", **{**fits, **other})) is None
    assert slots.find(step("u", **fits)._replace(partition=1)) is None
    assert (slots.counts.hits, slots.counts.refills) == (1, 2)


def test_a_slot_that_was_taken_stands_for_nothing_until_it_is_kept():
    slots = Slots(1)
    slots.take("u")
    assert slots.find(step("u", length=1)) is None


def test_a_number_of_slots_is_positive():
    with pytest.raises(ValueError, match="at least one slot is needed, got 0"):
        Slots(0)


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_the_least_recent_gives_way_and_no_slot_is_anybody_elses(count, asked):
    slots, recent = Slots(count), []  # users, the most recent last
    for user, drop in asked:
        if drop:
            assert (slots.drop(user) is not None) == (user in recent)
            recent = [other for other in recent if other != user]
            continue
        slot = slots.take(user)
        slots.keep(user, Tag(0, 0, 0, 1))
        recent = [*(other for other in recent if other != user), user][-count:]
        assert 0 <= slot < count
        assert len(slots) == len(recent)
        held = {other: slots.find(step(other, before_=0, length=2)) for other in recent}
        assert None not in held.values()
        assert len(set(held.values())) == len(recent)


def test_who_is_restored_gives_way_before_all_others():
    slots = Slots(3)
    for user in ("used", "hot", "cool"):
        slots.take(user)
        (slots.keep if user == "used" else slots.restore)(user, Tag(0, 0, 0, 1))
    assert slots.recent() == ["used", "hot", "cool"]
    assert (slots.free, "hot" in slots, slots.counts.restored) == (0, True, 2)
    slots.take("new")
    assert slots.recent() == ["new", "used", "hot"]
