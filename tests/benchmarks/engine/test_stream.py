"""The synthetic users: windows by the rule, steps that fit together, the same in every process."""

from itertools import pairwise

import numpy as np

from benchmarks.engine.batches import rectangles
from benchmarks.engine.plan import QUICK
from benchmarks.engine.stream import Stream, item_name
from model.window import Steps

RULE = QUICK.rule


def test_the_same_seed_gives_the_same_events():
    one, other = (Stream(QUICK) for _ in range(2))
    for _ in range(3):
        assert list(one.poll(20)) == list(other.poll(20))


def test_windows_are_as_full_as_the_stride_leaves_them():
    stream = Stream(QUICK)
    lengths = set()
    for _ in range(40):
        poll = stream.poll(64)
        assert [len(window.items) for window in poll] == poll.lengths().tolist()
        lengths |= set(poll.lengths().tolist())
    assert lengths == set(range(QUICK.window - QUICK.stride + 1, QUICK.window + 1))


def test_a_step_is_the_window_before_and_one_more_event():
    stream = Stream(QUICK)
    assert isinstance(stream.poll(1), Steps)
    lives: dict[str, list] = {}
    for _ in range(20):
        poll = stream.poll(64)
        for position, window in enumerate(poll):
            step = poll.step(position)
            assert (step.length, step.item, step.behavior, step.category, step.time_ms) == (
                len(window.items), *(column[-1] for column in window)
            )  # fmt: skip
            assert step.start == RULE.first(step.start + step.length)
            lives.setdefault(step.user_id, []).append((step, window))
    moved = 0
    for life in lives.values():
        for (before, older), (after, newer) in pairwise(life):
            assert after.before == before.offset < after.offset
            assert after.start + after.length == before.start + before.length + 1
            assert newer.items[:-1] == older.items[after.start - before.start :]
            moved += after.start > before.start
    assert moved > 0


def test_everybody_is_asked_about_once():
    stream = Stream(QUICK)
    users = [poll.step(position).user_id for poll in stream.everybody() for position in range(len(poll))]
    assert len(users) == len(set(users)) == QUICK.users


def test_some_events_come_after_one_that_nobody_was_asked_about():
    stream = Stream(QUICK)
    newest = {}
    known = []
    for _ in range(50):
        poll = stream.poll(64, unseen=0.25)
        for step in map(poll.step, range(len(poll))):
            if step.user_id in newest:
                known.append(newest[step.user_id] == step.before)
            newest[step.user_id] = step.offset
    assert abs(np.mean(known) - 0.75) < 0.05


def test_rectangles_hold_every_window_once_with_padding_on_the_right():
    poll = Stream(QUICK).poll(50)
    found = rectangles(poll, batch=8, step=5, window=QUICK.window)
    assert sorted(position for one in found for position in one.positions) == list(range(50))
    for one in found:
        assert one.rows.shape[1] % 5 == 0 or one.rows.shape[1] == QUICK.window
        for position, rows, last in zip(one.positions.tolist(), one.rows, one.last, strict=True):
            assert [item_name(row - 1) for row in rows[: last + 1]] == list(poll[position].items)
            assert not rows[last + 1 :].any()
