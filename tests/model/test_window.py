import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.window import DAY_MS, WindowRule


@pytest.mark.parametrize("name", ["events", "age_ms", "session_gap_ms", "stride", "age_stride_ms"])
def test_a_rule_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        WindowRule(**{name: 0})


@pytest.mark.parametrize(("name", "most"), [("stride", "50"), ("age_stride_ms", "2592000000")])
def test_a_stride_is_no_longer_than_what_it_cuts(name, most):
    with pytest.raises(ValueError, match=f"{name} must be at most {most}, got {int(most) + 1}"):
        WindowRule(**{name: int(most) + 1})


def test_the_share_of_the_age_is_that_of_the_events():
    assert WindowRule().with_stride(25) == WindowRule(stride=25, age_stride_ms=30 * DAY_MS * 25 // 50)
    assert WindowRule(events=3, age_ms=1).with_stride(2) == WindowRule(events=3, age_ms=1, stride=2)
    assert WindowRule().with_stride(25).with_stride(1) == WindowRule()


@st.composite
def rules(draw):
    events, age_ms = draw(st.integers(1, 9)), draw(st.integers(1, 60))
    return WindowRule(
        events=events,
        age_ms=age_ms,
        stride=draw(st.integers(1, events)),
        age_stride_ms=draw(st.integers(1, age_ms)),
    )


@given(rules())
def test_the_start_moves_forward_by_whole_strides_and_leaves_a_window_between_its_bounds(rule):
    before = 0
    for count in range(1, 60):
        first = rule.first(count)
        assert min(count, rule.events - rule.stride + 1) <= count - first <= rule.events
        assert first - before in (0, rule.stride)
        assert first % rule.stride == 0
        before = first


@given(rules(), st.integers(0, 10**6), st.integers(0, 50))
def test_what_is_too_old_stays_too_old_and_the_newest_event_never_is(rule, newest_ms, later_ms):
    oldest_ms = rule.oldest_ms(newest_ms)
    assert newest_ms - rule.age_ms <= oldest_ms < newest_ms - rule.age_ms + rule.age_stride_ms
    assert oldest_ms <= newest_ms
    assert oldest_ms <= rule.oldest_ms(newest_ms + later_ms)
    assert oldest_ms % rule.age_stride_ms == 0


@given(st.integers(1, 9), st.integers(1, 60), st.integers(0, 99), st.integers(0, 10**6))
def test_without_a_stride_the_start_is_that_of_the_last_events(events, age_ms, count, newest_ms):
    rule = WindowRule(events=events, age_ms=age_ms)
    assert (rule.first(count), rule.oldest_ms(newest_ms)) == (max(0, count - events), newest_ms - age_ms)


def test_a_stride_by_hand():
    rule = WindowRule(events=4, stride=2, age_ms=100, age_stride_ms=50)
    assert [count - rule.first(count) for count in range(1, 10)] == [1, 2, 3, 4, 3, 4, 3, 4, 3]
    assert [rule.oldest_ms(newest_ms) for newest_ms in (100, 101, 150, 151)] == [0, 50, 50, 100]
