import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sequences import FrameError, chunks, sequences, window_list
from model.window import WindowRule


def frame(rows):
    """Rows of (user, time)."""
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in rows],
            "timestamp": [time for _, time in rows],
            "behavior": ["view"] * len(rows),
            "item_id": [f"i{place}" for place in range(len(rows))],
            "category": [None] * len(rows),
        },
        schema_overrides={"category": pl.String},
    )


def test_events_are_grouped_by_user_and_ties_keep_the_order_of_the_log():
    data = sequences(frame([("b", 5), ("a", 7), ("b", 5), ("a", 3), ("b", 4)]))
    assert data.items == ["i3", "i1", "i4", "i0", "i2"]
    assert data.order.tolist() == [0, 4, 1, 2, 3]
    assert data.first.tolist() == [0, 0, 2, 2, 2]
    assert [list(window.items) for window in data.whole()] == [["i3", "i1"], ["i4", "i0", "i2"]]


def test_rows_without_user_time_or_behaviour_are_left_out():
    rows = frame([("a", 1), ("a", 2)]).with_columns(behavior=pl.Series(["view", None]))
    assert sequences(rows).items == ["i0"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame([]), "the table of events is empty"),
        (frame([("a", 1)]).drop("item_id", "category"), "has no column item_id, category"),
        (frame([("a", 1)]).with_columns(timestamp=pl.lit("noon")), "has a column of the wrong type"),
        (frame([(None, 1)]), "has no row with a user, a time and a behaviour"),
    ],
)
def test_an_unusable_table_is_refused_in_one_line(bad, message):
    with pytest.raises(FrameError, match=message) as caught:
        sequences(bad)
    assert "\n" not in str(caught.value)


def test_a_window_is_the_last_events_not_too_old():
    data = sequences(frame([("a", time) for time in (0, 10, 20, 30)]))
    assert data.window_starts(np.array([3]), WindowRule(events=3)).tolist() == [1]
    assert data.window_starts(np.array([3]), WindowRule(events=3, age_ms=10)).tolist() == [2]  # 20 is just young enough
    assert data.window_starts(np.array([3]), WindowRule(events=3, age_ms=9)).tolist() == [3]
    window = data.window(3, WindowRule(events=2))
    assert window == window_list(data, [3], WindowRule(events=2))[0]
    assert (list(window.items), list(window.times_ms)) == (["i2", "i3"], [20, 30])


def test_with_a_stride_events_are_counted_from_the_users_first_one_of_the_table():
    data = sequences(frame([("a", time) for time in range(5)] + [("b", time) for time in range(6)]))
    starts = data.window_starts(np.arange(11), WindowRule(events=4, stride=2))
    assert starts.tolist() == [0, 0, 0, 0, 2, *(5 + start for start in (0, 0, 0, 0, 2, 2))]
    old = data.window_starts(np.arange(5), WindowRule(events=4, stride=2, age_ms=4, age_stride_ms=3))
    assert old.tolist() == [0, 0, 0, 0, 2]
    assert data.window_starts(np.array([4]), WindowRule(age_ms=3, age_stride_ms=3)).tolist() == [3]


@st.composite
def window_rules(draw):
    events, age_ms = draw(st.integers(1, 7)), draw(st.integers(1, 50))
    strides = draw(st.booleans())
    return WindowRule(
        events=events,
        age_ms=age_ms,
        stride=draw(st.integers(1, events)) if strides else 1,
        age_stride_ms=draw(st.integers(1, age_ms)) if strides else 1,
    )


lives = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), min_size=1, max_size=40)


@given(lives, window_rules())
def test_a_window_starts_where_the_rule_says(rows, rule):
    data = sequences(frame(rows))
    starts = data.window_starts(np.arange(len(data)), rule).tolist()
    for last, (start, first) in enumerate(zip(starts, data.first.tolist(), strict=True)):
        places = range(first + rule.first(last + 1 - first), last + 1)
        oldest_ms = rule.oldest_ms(int(data.times_ms[last]))
        assert start == next(place for place in places if data.times_ms[place] >= oldest_ms)


@given(lives, window_rules(), st.integers(0, 9), st.floats(0.1, 1), st.sampled_from([0.5, 0.3, 0.8]))
def test_every_learning_event_learns_once_inside_its_own_window(rows, rule, offset, share, overlap):
    data = sequences(frame(rows))
    until = max(1, int(len(rows) * share))
    starts, lengths, begins = chunks(data, until, rule, offset, overlap)
    learned = np.zeros(len(rows), np.int64)
    for start, length, begin in zip(starts, lengths, begins, strict=True):
        end = start + length - 1
        assert start <= begin <= end
        assert length <= rule.events
        assert data.users[start] == data.users[end]
        learned[begin : end + 1] += 1
        own = data.window_starts(np.arange(begin, end + 1), rule)
        assert (own <= start).all()  # nobody sees more than serving would show
    assert learned.tolist() == (data.order < until).astype(int).tolist()


def test_a_long_life_learns_with_at_least_half_a_window():
    data = sequences(frame([("a", time) for time in range(100)]))
    starts, _, begins = chunks(data, 100, WindowRule(events=10), 3)
    seen = (begins - starts)[begins >= 10]
    assert seen.min() == 10 // 2


@given(lives, window_rules(), st.integers(0, 9), st.floats(0.1, 1))
def test_without_overlap_every_event_learns_inside_its_own_window(rows, rule, offset, share):
    data = sequences(frame(rows))
    starts, lengths, begins = chunks(data, max(1, int(len(rows) * share)), rule, offset, overlap=0)
    learned = np.zeros(len(rows), np.int64)
    for start, length in zip(starts, lengths, strict=True):
        learned[start : start + length] += 1
        assert data.window_starts(np.array([start + length - 1]), rule)[0] == start
    assert (begins == starts).all()
    assert ((learned > 0) == (data.order < max(1, int(len(rows) * share)))).all()


@pytest.mark.parametrize(("events", "stride"), [(10, 5), (11, 5), (10, 7), (10, 10), (50, 25)])
def test_with_a_stride_of_what_learns_each_event_has_the_window_of_serving(events, stride):
    data = sequences(frame([("a", time) for time in range(130)] + [("b", time) for time in range(7)]))
    rule = WindowRule(events=events, stride=stride)
    for offset in range(12):
        starts, lengths, begins = chunks(data, len(data), rule, offset)
        assert len(starts) == len(chunks(data, len(data), rule, 0)[0])
        for start, length, begin in zip(starts, lengths, begins, strict=True):
            served = data.window_starts(np.arange(begin, start + length), rule)
            assert set(served.tolist()) == {start}


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_with_a_small_stride_stretches_are_as_full_as_without(stride):
    data = sequences(frame([("a", time) for time in range(100)]))
    for offset in range(12):
        starts, lengths, begins = chunks(data, 100, WindowRule(events=10, stride=stride), offset)
        assert (lengths[begins >= 10][:-1] == 10).all()
        assert (begins - starts)[begins >= 10].min() >= 10 // 2


def test_without_overlap_a_short_life_is_one_stretch_and_all_of_every_stretch_learns():
    rows = [("short", step) for step in range(8)] + [("long", step) for step in range(35)]
    data = sequences(frame(rows))
    for offset in range(10):
        starts, lengths, begins = chunks(data, len(data), WindowRule(events=10), offset, overlap=0)
        assert (begins == starts).all()
        assert lengths.max() <= 10
        covered = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        assert set(covered.tolist()) == set(range(43))
        short = np.flatnonzero(data.users[starts] == data.users[np.flatnonzero(data.first == data.first[-1])[0]])
        assert (starts[short].tolist(), lengths[short].tolist()) == ([35], [8])
