"""Recorded passes, with a stand-in for the device's recording: it runs the program when it is started, and answers when it is asked.

The same with a real device: `tests/model/test_gpu.py`.
"""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import artifact, stepper
from model.answers import NotFinite
from model.engine import Engine
from model.graphs import WAYS
from model.hiding import Hidden
from model.pool import slot_bytes
from model.window import WindowRule
from tests.artefacts import untrained
from tests.model.test_state_cache import RULE, Stream, histories, keeping, live, parts, same, stream, whole

__all__ = ["parts", "whole"]  # fixtures


class Recorded:
    """Like `model.graphs.Graph`, on the CPU: what it reads and writes stays in its place, and so does what is on its way."""

    made: list["Recorded"]

    def __init__(self, program, nothing, memory):
        assert memory == "memory"
        self.program, self.filling, self.waiting, self.most = program, nothing.clone(), 0, 0
        self.given, self.found = nothing.clone(), program(nothing.clone())  # recording runs it
        self.ways, self.starts = [torch.empty_like(self.found) for _ in range(WAYS)], 0
        self.made.append(self)

    def start(self, columns):
        way, count = self.ways[self.starts % WAYS], columns.shape[1]
        self.starts += 1
        self.given.copy_(self.filling)
        self.given[:, :count] = torch.from_numpy(columns)
        self.found.copy_(self.program(self.given))
        way.copy_(self.found)
        self.waiting += 1
        self.most = max(self.most, sum(each.waiting for each in self.made))

        def answers():
            self.waiting -= 1
            return way[:count].clone()

        return answers


@contextmanager
def recording():
    """Programs are recorded on the CPU; gives those that are."""
    Recorded.made = []
    with (
        mock.patch.multiple(stepper, new_memory=lambda: "memory", Graph=Recorded),
        mock.patch("model.state_cache.records", return_value=True),
        mock.patch("tests.model.test_state_cache.records", return_value=True),
    ):
        yield Recorded.made


@settings(deadline=None, max_examples=25)
@given(histories, st.integers(4, 9), st.data())
def test_recorded_passes_answer_like_whole_windows(parts, whole, batches, slots, data):
    with recording():
        live(keeping(parts, slots), whole, batches, data)


def test_the_device_is_one_pass_ahead_of_whoever_takes_the_answers(parts, whole):
    windows, steps = stream(120, users=30)
    with recording() as made:
        engine = keeping(parts, slots=40)
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
        assert max(each.most for each in made) == WAYS
        assert sum(each.waiting for each in made) == 0


def test_rows_that_nobody_asked_for_are_nobodys(parts, whole):
    """A pass of one user has the rows of four; the first slot's owner, and every other one, is left alone by the other three."""
    windows, steps = stream(40, users=4)
    with recording():
        engine = keeping(parts, slots=4, buckets=(4,))
        for position in range(40):
            some = slice(position, position + 1)
            assert same(engine.predict(Stream(windows[some], steps[some])), whole.predict(windows[some])) < 1e-5
        assert engine.states.counts.hits > 20


def test_what_is_hidden_later_is_recorded_anew(parts):
    """Items that are banned, names that the model does not know, and all that a user has seen."""
    windows, steps = stream(90, users=9)
    thirds = [slice(begin, begin + 30) for begin in (0, 30, 60)]
    hidden = [Hidden(), Hidden(frozenset({"item-1", "unheard"})), Hidden(frozenset({"item-2"}), seen=True)]
    plain = Engine(parts, device="cpu")
    with recording() as made:
        engine, counts = keeping(parts, slots=9), []
        for some, one in zip(thirds, hidden, strict=True):
            engine.hide(one)
            plain.hide(one)
            answers = engine.predict(Stream(windows[some], steps[some]))
            assert same(answers, plain.predict(windows[some])) < 1e-5
            listed = {item["item_id"] for answer in answers for item in answer.next_items}
            assert not listed & one.banned
            counts.append(len(made))
    assert counts[0] < counts[1] < counts[2]


def test_what_is_hidden_already_is_recorded_once(parts):
    """What was compared at the start is what answers."""
    engine = Engine(parts, device="cpu")
    engine.hide(Hidden(frozenset({"item-1"})))
    windows, steps = stream(30, users=9)
    with recording() as made:
        engine.keep_states(1 << 24, buckets=(1, 4))
        before = len(made)
        answers = engine.predict(Stream(windows, steps))
        assert len(made) == before > 0
    assert "item-1" not in {item["item_id"] for answer in answers for item in answer.next_items}


def test_what_cannot_be_recorded_is_run(parts, whole, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    windows, steps = stream(60, users=9)
    with recording(), mock.patch.object(stepper, "Graph", refuse):
        engine = keeping(parts, slots=9)
        assert "passes are not recorded: operation not permitted when stream is capturing" in caplog.text
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
        assert engine.states.counts.hits > 20


@pytest.mark.parametrize("wrong", ["answers", "states"])
def test_what_was_recorded_wrongly_is_not_trusted(parts, whole, caplog, wrong):
    """A recording that answers with what was found the time before, or that keeps nothing."""

    class Wrong(Recorded):
        def start(self, columns):
            if wrong == "states":
                columns = columns.copy()
                columns[0] = self.filling[0, 0]  # everything is nobody's
            answers = super().start(columns)
            last = self.__dict__.get("last", answers)
            self.last = answers
            return last if wrong == "answers" and last().shape == answers().shape else answers

    windows, steps = stream(60, users=9)
    with recording(), mock.patch.object(stepper, "Graph", Wrong):
        engine = keeping(parts, slots=9)
        assert not engine.states.stepper.recorded
        assert "passes are not recorded: they do not say what the program says" in caplog.text
        assert (engine.states.users, engine.states.counts.hits, engine.states.counts.refills) == (0, 0, 0)
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5


def test_windows_of_two_events_are_compared_as_well():
    """With no more events of made-up users than there is room for."""
    rule = WindowRule(events=2, stride=2)
    with recording():
        engine = Engine(untrained(window=rule), device="cpu")
        engine.keep_states(1 << 24, buckets=(1, 4))
        assert engine.states.stepper.recorded


def test_what_can_be_recorded_no_more_is_run(parts, whole, caplog):
    """After something else was hidden, say: whoever asks gets an answer, and the states that were kept are gone on from."""
    plain, hidden = Engine(parts, device="cpu"), Hidden(frozenset({"item-1"}))
    windows, steps = stream(90, users=9)
    with recording():
        engine = keeping(parts, slots=9)
        assert same(engine.predict(Stream(windows[:45], steps[:45])), whole.predict(windows[:45])) < 1e-5

        def refuse(*_):
            raise RuntimeError("operation not permitted")

        hits = engine.states.counts.hits
        engine.hide(hidden)
        plain.hide(hidden)
        with mock.patch.object(stepper, "Graph", refuse):
            answers = engine.predict(Stream(windows[45:], steps[45:]))
        assert same(answers, plain.predict(windows[45:])) < 1e-5
        assert engine.states.counts.hits > hits
        assert not engine.states.stepper.recorded
        assert "passes are not recorded: operation not permitted" in caplog.text


def test_sizes_are_those_that_there_is_room_for(parts):
    """A GPU's passes are of up to 2,048 users, but nobody has to have room for so many."""
    each = slot_bytes(parts.model, RULE.events, torch.float32)
    with recording():
        engine = Engine(parts, device="cpu")
        engine.keep_states(301 * each)
        assert (engine.states.room, engine.states.stepper.sizes) == (300, (8, 64, 256))
        with pytest.raises(ValueError, match="hold the states of 255 users, .* at least 256 are needed"):
            engine.keep_states(256 * each)


def test_sizes_for_which_there_is_no_memory_are_left_out(parts, whole, caplog):
    class Cramped(Recorded):
        def __init__(self, program, nothing, memory):
            if nothing.shape[1] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(program, nothing, memory)

    windows, steps = stream(60, users=9)
    with recording(), mock.patch.object(stepper, "Graph", Cramped):
        engine = keeping(parts, slots=16, buckets=(1, 4, 8, 16))
        assert engine.states.stepper.recorded
        assert engine.states.stepper.sizes == (1, 4)
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
    assert "there is no memory for passes of 16 users" in caplog.text


def test_an_answer_that_is_not_finite_leaves_nothing_behind(parts, whole):
    """Of the users in a pass that was ahead neither."""
    windows, steps = stream(60, users=6)
    with recording():
        engine = keeping(parts, slots=6, buckets=(1, 2))
        engine.predict(Stream(windows[:40], steps[:40]))
        for kept in engine.states._pool.keys_values:
            kept[:] = float("nan")
        with pytest.raises(NotFinite):
            engine.predict(Stream(windows[40:46], steps[40:46]))
        assert engine.states.users == 6 - len({step.user_id for step in steps[40:46]})
        engine.states.distrust(steps)
        assert same(engine.predict(Stream(windows[46:], steps[46:])), whole.predict(windows[46:])) < 1e-5


def test_artefacts_know_nothing_of_it(model_directory):
    """The golden answers of a directory are whole windows: loading records nothing."""
    with recording() as made:
        Engine(artifact.load(model_directory), device="cpu").check_golden()
    assert made == []
