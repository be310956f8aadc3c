"""Going on from kept states gives what whole windows give, whatever happens to streams and slots."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event, current_thread, main_thread

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from model import artifact, state_cache
from model.ahead_of_time import AheadOfTime
from model.answers import NotFinite
from model.compiling import can_compile
from model.config import NextMoveConfig
from model.engine import Engine
from model.forecast import difference
from model.graphs import records
from model.hiding import Hidden
from model.network import NextMoveModel
from model.pool import slot_bytes
from model.state_cache import StateCache
from model.window import Step, Window, WindowRule
from tests.artefacts import untrained

HOUR_MS = 3_600_000
RULE = WindowRule(events=12, age_ms=40 * HOUR_MS, stride=5, age_stride_ms=13 * HOUR_MS)
NAMES = [f"item-{n}" for n in range(20)] + ["unheard", "of", None]
CATEGORIES = ["category-1", "category-2", "category-3", "new", None]
BEHAVIORS = ["view", "add_to_cart", "purchase", "odd"]


class Stream(list):
    """Windows that know their steps, as `model.window.Steps` wants it."""

    def __init__(self, windows, steps):
        super().__init__(windows)
        self.steps = steps

    def step(self, position):
        return self.steps[position]


class Life:
    """One user's events so far, and the windows that they make."""

    def __init__(self, user):
        self.user, self.rows, self.offset = user, [], -1

    def add(self, row, offset):
        """The window as of this event, and the step that leads to it."""
        before, self.offset = self.offset, offset
        self.rows.append(row)
        newest = row[3]
        start = RULE.first(len(self.rows))
        while self.rows[start][3] < RULE.oldest_ms(newest):
            start += 1
        window = Window(*map(list, zip(*self.rows[start:], strict=True)))
        item, behavior, category, _ = row
        step = Step(self.user, 0, before, offset, start, len(window.items), item, behavior, category, newest)
        return window, step


@pytest.fixture(scope="module")
def parts(model_directory):
    loaded = artifact.load(model_directory)
    return msgspec.structs.replace(loaded, manifest=msgspec.structs.replace(loaded.manifest, window=RULE))


@pytest.fixture(scope="module")
def whole(parts):
    return Engine(parts, device="cpu")


def keeping(parts, slots, buckets=(1, 4), device="cpu", helped=False, **options):
    """An engine with a cache of so many slots."""
    engine = Engine(parts, device=device, helped=helped)
    dtype = options.get("dtype", torch.float32)
    nobody = records(torch.device(device))  # has a slot as well
    engine.keep_states((slots + nobody) * slot_bytes(parts.model, RULE.events, dtype), buckets=buckets, **options)
    assert engine.states.room == slots
    return engine


def same(one, other):
    return max((difference(*pair) for pair in zip(one, other, strict=True)), default=0)


def overlap(answers, wanted):
    """How many of the items listed are the ones wanted, on average."""
    listed = [[{item["item_id"] for item in answer.next_items} for answer in some] for some in (answers, wanted)]
    return np.mean([len(one & other) / len(other) for one, other in zip(*listed, strict=True)])


events = st.tuples(
    st.integers(0, 7),  # user
    st.sampled_from(NAMES),
    st.sampled_from(BEHAVIORS),
    st.sampled_from(CATEGORIES),
    st.sampled_from([0, 1, 60_000, HOUR_MS, 5 * HOUR_MS, 30 * HOUR_MS]),
)


def live(engine, whole, batches, data, tolerance=1e-5):
    """Batches of events, some of which are no steps, or are asked for again: the engine answers as `whole` does."""
    lives, time, offset = {}, 10**12, 0
    for rows in batches:
        windows, steps = [], []
        for user, item, behavior, category, gap in rows:
            time, offset = time + gap, offset + 1
            window, step = lives.setdefault(user, Life(f"user-{user}")).add((item, behavior, category, time), offset)
            windows.append(window)
            steps.append(step if data.draw(st.integers(0, 9)) else None)  # late events and replays are no steps
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < tolerance
        if data.draw(st.booleans()):  # a chunk that is asked for again
            assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < tolerance


histories = st.lists(st.lists(events, max_size=20), max_size=4)


@pytest.mark.parametrize("helped", [False, True])
@settings(deadline=None, max_examples=25)
@given(histories, st.integers(4, 9), st.data())
def test_steps_are_answered_like_whole_windows(parts, whole, helped, batches, slots, data):
    live(keeping(parts, slots, helped=helped), whole, batches, data)


def stream(count, users, seed=0):
    """`count` events of random users in order: windows and their steps."""
    random = np.random.default_rng(seed)
    lives = {}
    windows, steps = [], []
    for offset in range(count):
        user = int(random.integers(users))
        row = (
            NAMES[random.integers(len(NAMES))],
            BEHAVIORS[random.integers(len(BEHAVIORS))],
            CATEGORIES[random.integers(len(CATEGORIES))],
            10**12 + offset * 60_000,
        )
        window, step = lives.setdefault(user, Life(f"user-{user}")).add(row, offset)
        windows.append(window)
        steps.append(step)
    return windows, steps


@pytest.mark.parametrize("backbone", ["gru", "lstm", "rnn"])
def test_a_recurrent_backbone_goes_on_from_its_state(parts, backbone):
    torch.manual_seed(0)
    network = NextMoveModel(NextMoveConfig(**{**parts.model.config.to_dict(), "backbone": backbone})).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    peer = msgspec.structs.replace(parts, model=network)
    engine = keeping(peer, slots=8)
    windows, steps = stream(300, users=8)
    whole = Engine(peer, device="cpu").predict(windows)
    assert same(engine.predict(Stream(windows, steps)), whole) < 1e-5
    assert engine.states.counts.hits > 100
    engine.keep_states(1 << 24, buckets=(1, 4), dtype=torch.bfloat16)
    assert overlap(engine.predict(Stream(windows, steps)), whole) >= 0.95


def test_nearly_every_event_of_a_known_user_is_a_hit(parts):
    engine = keeping(parts, slots=10)
    windows, steps = stream(500, users=10)
    engine.predict(Stream(windows, steps))
    counts = engine.states.counts
    assert counts.hits + counts.refills == 500
    firsts = {step.user_id for step in steps}
    turns = sum(step.start > 0 and step.length == RULE.events - RULE.stride + 1 for step in steps)
    assert counts.refills == len(firsts) + turns  # the first event of each, and whenever a window's start has moved
    assert counts.evictions == 0


def test_who_was_used_last_is_told_by_the_events_and_not_by_the_passes(parts):
    engine = keeping(parts, slots=10)
    windows, steps = stream(60, users=10)
    engine.predict(Stream(windows, steps))
    users = [step.user_id for step in steps]
    assert engine.recent_users() == list(dict.fromkeys(reversed(users)))


def test_the_user_who_was_idle_for_longest_gives_way(parts, whole):
    engine = keeping(parts, slots=4)
    windows, steps = stream(300, users=9)
    assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
    assert engine.states.users == 4
    assert engine.states.counts.evictions > 0


def test_a_window_of_another_life_is_not_gone_on_from(parts, whole):
    """Erased, and back again with another past: the offset before, the start or the length tells."""
    engine = keeping(parts, slots=4)
    windows, steps = stream(30, users=1)
    engine.predict(Stream(windows, steps))
    window, step = Life("user-0").add(("item-1", "view", None, 2 * 10**12), 31)
    assert same(engine.predict(Stream([window], [step])), whole.predict([window])) < 1e-5
    assert engine.states.counts.refills > 1


@pytest.mark.parametrize("helped", [False, True])
def test_what_is_not_finite_is_not_kept(parts, whole, helped):
    """The whole batch is refused; asked again for the others, the answers are those of the windows, whoever gets the slot."""
    engine = keeping(parts, slots=4, helped=helped)
    windows, steps = stream(60, users=4)
    engine.predict(Stream(windows[:40], steps[:40]))
    network = engine.states.stepper.program

    def broken(*given):
        found = network(*given)
        poisoned = tuple(part * float("nan") for part in found.keys_values)
        heads = found.heads._replace(goal=found.heads.goal * float("nan"))
        return found._replace(heads=heads, keys_values=poisoned)

    engine.states.stepper.program = broken
    with pytest.raises(NotFinite) as caught:
        engine.predict(Stream(windows[40:42], steps[40:42]))
    engine.states.stepper.program = network
    assert engine.states.users == 4 - len({step.user_id for step in steps[40:42]})
    assert same(engine.predict(Stream(windows[40:], steps[40:])), whole.predict(windows[40:])) < 1e-5
    assert caught.tb is not None, "what was dropped was dropped while somebody still looked at the error"


@pytest.mark.parametrize("wrong", [0, 1, 4, 9])
def test_an_error_in_the_helpers_thread_leaves_nothing_to_trust(parts, whole, wrong):
    """Nor does anybody tell any more, who might read what the next batch hides."""
    engine = keeping(parts, slots=8, helped=True)
    windows, steps = stream(80, users=8)
    engine.predict(Stream(windows[:40], steps[:40]))
    tell, told = engine._answers.tell, []

    def failing(*given):
        told.append(given)
        if len(told) > wrong:
            raise RuntimeError("no more")
        return tell(*given)

    engine._answers.tell = failing
    with pytest.raises(RuntimeError, match="no more"):
        engine.predict(Stream(windows[40:], steps[40:]))
    known = len(told)
    assert engine.states.users == 0
    time.sleep(0.05)
    assert len(told) == known
    engine._answers.tell = tell
    assert same(engine.predict(Stream(windows[40:], steps[40:])), whole.predict(windows[40:])) < 1e-5


@pytest.mark.parametrize(("events", "sizes"), [(63, [63]), (64, [32, 32]), (85, [43, 42]), (129, [65, 64])])
def test_what_would_be_one_pass_is_shared_by_two_threads(parts, whole, events, sizes):
    for helped, wanted in ((False, [min(events, 128)] + [1] * (events > 128)), (True, sizes)):
        engine = keeping(parts, slots=130, buckets=(1, 128), helped=helped)
        engine.states.stepper.most = 128
        run, seen = engine.states.stepper.run, []
        engine.states.stepper.run = lambda columns, tell, run=run, seen=seen: (
            seen.append(columns.shape[1]), run(columns, tell),
        )[1]  # fmt: skip
        lives = [Life(f"user-{n}").add(("item-1", "view", None, 10**12), n) for n in range(events)]
        windows, steps = zip(*lives, strict=True)
        assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
        assert seen == wanted


def both(parts, hot, cold):
    """A helped engine that knows some users, and the second events of those and of others."""
    engine = keeping(parts, slots=130, buckets=(1, 64), helped=True)
    engine.states.stepper.most = 64
    row = ("item-1", "view", None, 10**12)
    lives = [Life(f"user-{n}") for n in range(hot + cold)]
    firsts = [life.add(row, n) for n, life in enumerate(lives)]
    engine.predict(Stream(*zip(*firsts[:hot], strict=True)))
    return engine, Stream(*zip(*(life.add(row, 1000 + n) for n, life in enumerate(reversed(lives))), strict=True))


def test_the_helper_refills_while_users_whose_states_are_kept_are_answered(parts, whole):
    """The cold ones come first in the log, and last in the passes."""
    engine, given = both(parts, hot=80, cold=40)
    run, refill, threads = engine.states.stepper.run, engine.states._refill, []
    begun, stepped = Event(), Event()

    def stepping(*columns):
        assert begun.wait(30), "nobody refills while others are answered"
        stepped.set()
        return run(*columns)

    def refilling(*windows):
        threads.append(current_thread().name)
        begun.set()
        assert stepped.wait(30), "nobody is answered before all are refilled"
        refill(*windows)

    engine.states.stepper.run, engine.states._refill = stepping, refilling
    assert same(engine.predict(given), whole.predict(given)) < 1e-5
    assert threads
    assert all(name.startswith("helper") for name in threads)
    assert (engine.states.counts.hits, engine.states.counts.refills) == (80, 80 + 40)


def refills_of(engine, given):
    """How many users each refill is of, and whether it is this thread's, while an engine answers."""
    refill, found = engine.states._refill, []
    engine.states._refill = lambda slots, *rest: (
        found.append((len(slots), current_thread() is main_thread())), refill(slots, *rest),
    )[1]  # fmt: skip
    engine.predict(given)
    return found


def test_what_the_first_pass_waits_for_is_not_left_to_the_helper(parts):
    """Nor is anything in a batch that is too small to be shared."""
    engine, given = both(parts, hot=40, cold=90)
    assert (64 - 40, True) in (found := refills_of(engine, given))
    assert sum(users for users, _ in found) == 90
    engine, given = both(parts, hot=1, cold=3)
    engine.states.stepper.most = 1
    assert refills_of(engine, given) == [(3, True)]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_refill_that_fails_in_either_thread_leaves_nothing_to_trust(parts, whole, wrong):
    """Those of the first pass, which has room for more than the users whose states are kept, are the first thread's."""
    engine, given = both(parts, hot=40, cold=90)
    refill, refilled = engine.states._refill, []

    def failing(*windows):
        refilled.append(windows)
        if len(refilled) > wrong:
            raise RuntimeError("no room")
        refill(*windows)

    engine.states._refill = failing
    with pytest.raises(RuntimeError, match="no room"):
        engine.predict(given)
    assert engine.states.users == 0
    engine.states._refill = refill
    assert same(engine.predict(given), whole.predict(given)) < 1e-5


@pytest.mark.parametrize(("count", "sizes"), [(63, [63]), (64, [32, 32]), (101, [51, 50]), (300, [128, 128, 44])])
def test_whole_windows_are_shared_by_two_threads(parts, monkeypatch, count, sizes):
    engine, seen = Engine(parts, device="cpu", helped=True), []
    told = engine._told
    monkeypatch.setattr(engine, "_told", lambda batch, *rest: (seen.append(len(batch.item_ids)), told(batch, *rest))[1])
    engine.predict([Window(["item-1"], ["view"], [None], [n]) for n in range(count)])
    assert sorted(seen, reverse=True) == sizes


def test_a_helped_engine_is_as_good_for_whole_windows(parts, whole):
    windows, _ = stream(300, users=3)
    given = [*windows, *windows[:1]]  # the last ones go alone
    engine = Engine(parts, device="cpu", helped=True)
    for some in (given, given[:1]):
        assert same(engine.predict(some), whole.predict(some)) < 1e-6


@pytest.mark.parametrize("helped", [False, True])
def test_an_error_in_the_middle_leaves_nothing_to_trust(parts, whole, helped):
    engine = keeping(parts, slots=4, helped=helped)
    windows, steps = stream(60, users=4)
    engine.predict(Stream(windows[:40], steps[:40]))
    network = engine.states.stepper.program

    def failing(*_):
        raise RuntimeError("out of memory")

    engine.states.stepper.program = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.predict(Stream(windows[40:44], steps[40:44]))
    engine.states.stepper.program = network
    assert same(engine.predict(Stream(windows[40:], steps[40:])), whole.predict(windows[40:])) < 1e-5


def test_where_memory_is_short_passes_get_smaller(parts, whole):
    """Whoever asked asks again for less, and so it fits at last."""
    engine = keeping(parts, slots=16, buckets=(1, 2, 8))
    engine.states.stepper.most = 8
    windows, steps = stream(40, users=12)
    network, sizes = engine.states.stepper.program, []

    def cramped(pool, event, named):
        sizes.append(len(event.slots))
        if len(event.slots) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(pool, event, named)

    engine.states.stepper.program = cramped
    with pytest.raises(torch.OutOfMemoryError):
        engine.predict(Stream(windows, steps))
    assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
    assert (sizes[0], max(sizes[1:])) == (8, 2)


def test_a_name_that_no_vocabulary_knows_is_copied_from_what_is_kept(parts):
    engine = keeping(parts, slots=4)
    life = Life("user-0")
    for offset in range(6):
        window, step = life.add((["unheard", "item-1"][offset % 2], "view", "new", 10**12 + offset), offset)
        found = engine.predict(Stream([window], [step]))[0]
    assert engine.states.counts.hits == 5
    assert "unheard" in [item["item_id"] for item in found.next_items]
    assert "new" in [category["category"] for category in found.next_categories]


def test_memory_is_limited_and_too_little_is_said_at_once(parts):
    engine = Engine(parts, device="cpu")
    engine.keep_states(5_000_000, buckets=(1, 4))
    assert 4_900_000 < engine.states.bytes <= 5_000_000
    with pytest.raises(ValueError, match="1000 bytes hold the states of 0 users"):
        engine.keep_states(1000)


def test_a_rule_without_a_stride_keeps_nothing(model_directory):
    engine = Engine.load(model_directory, device="cpu")
    engine.keep_states(1 << 20)
    assert engine.states is None


def test_bfloat16_lists_nearly_the_same(parts, whole):
    engine = Engine(parts, device="cpu")
    engine.keep_states(1 << 24, buckets=(1, 4), dtype=torch.bfloat16)
    windows, steps = stream(400, users=20)
    assert overlap(engine.predict(Stream(windows, steps)), whole.predict(windows)) >= 0.98


def test_compiled_steps_answer_the_same(parts, whole):
    if not can_compile():
        pytest.fail("a C++ compiler belongs to a machine that runs the tests: Debian's g++")
    engine = Engine(parts, device="cpu")
    engine.keep_states(1 << 24, buckets=(4,), compile_steps=True)
    assert engine.states.stepper.compiled
    windows, steps = stream(100, users=9)
    assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5
    assert engine.states.counts.hits > 50


def test_whoever_answers_in_another_thread_finds_everything_compiled(parts, monkeypatch, caplog):
    """Passes that are full, and others, of which rows are nobody's."""
    engine = Engine(parts, device="cpu", compiled=True)
    engine.keep_states(1 << 24, buckets=(1, 4))
    assert engine.states.stepper.compiled
    reason = "something is compiled, or loaded, while somebody waits"
    monkeypatch.setattr(AheadOfTime, "_loaded", lambda *_: pytest.fail(reason))  # which no `except Exception` catches
    before = counters["stats"]["unique_graphs"]
    windows, steps = stream(60, users=9)
    with ThreadPoolExecutor(1) as device:
        for begin, end in ((0, 40), (40, 43), (43, 60)):
            some = Stream(windows[begin:end], steps[begin:end])
            assert len(device.submit(engine.predict, some).result()) == end - begin
    assert "is not compiled" not in caplog.text
    assert counters["stats"]["unique_graphs"] == before


def test_every_column_of_a_pass_lies_in_one_piece(parts, monkeypatch):
    """Compiled code takes nothing else: each would be copied, or the program compiled again while somebody waits."""
    engine, seen = keeping(parts, slots=9, buckets=(4,)), []
    run = engine.states.stepper._step
    monkeypatch.setattr(engine.states.stepper, "_step", lambda event: (seen.extend(event), run(event))[1])
    windows, steps = stream(3, users=3)
    engine.predict(Stream(windows, steps))
    assert seen
    assert all(column.is_contiguous() for column in seen)


def test_another_list_of_banned_items_waits_for_no_compiler(parts, monkeypatch, caplog):
    """Nor one that has names of another shop, where the one before had none, nor an empty one."""
    monkeypatch.setattr("model.engine.LONG", 0)  # as if the catalogue was worth compiled scoring
    engine = Engine(parts, device="cpu", compiled=True)
    engine.hide(Hidden(frozenset({"item-1"})))
    engine.keep_states(1 << 24, buckets=(1,), bans_change=True)
    monkeypatch.setattr(AheadOfTime, "_loaded", lambda *_: pytest.fail("something is compiled while somebody waits"))
    windows, steps = stream(80, users=1)
    of_many = {"item-4", "item-5", "item-6", "of another shop", "of a third"}
    stepper, told = engine.states.stepper, []
    at_once = stepper._at_once
    monkeypatch.setattr(stepper, "_at_once", lambda *given: (told.append(at_once(*given)), told[-1])[1])
    for begin, names in ((0, {"item-2", "of another shop"}), (20, {"item-3"}), (40, set()), (60, of_many)):
        engine.hide(Hidden(frozenset(names)))
        for at, sizes in ((begin, set()), (begin + 10, {1})):  # in parts, and as one program
            stepper._short_sizes = sizes
            told.clear()
            found = engine.predict(Stream(windows[at : at + 10], steps[at : at + 10]))
            assert not names & {item["item_id"] for one in found for item in one.next_items}
            assert bool(told) == bool(sizes)
            assert None not in told
    assert "is not compiled" not in caplog.text


def test_where_nothing_compiles_it_goes_without(parts, whole, monkeypatch, caplog):
    def refuse(*_):
        def run(*_):
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr("model.stepper.compiled_step", refuse)
    engine = Engine(parts, device="cpu")
    engine.keep_states(1 << 24, buckets=(1, 4), compile_steps=True)
    assert not engine.states.stepper.compiled
    assert engine.states.stepper._short is None, "what is longer does not compile either"
    assert "states are kept without compiled code: no C++ compiler found" in caplog.text
    windows, steps = stream(20, users=3)
    assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 1e-5


def test_too_many_slots_are_not_asked_for(parts):
    with pytest.raises(ValueError, match="at least 256 are needed"):
        StateCache(parts.model, parts.vocabulary, RULE, 100_000)


def test_a_batch_of_cold_users_is_computed_in_passes(model_directory, monkeypatch):
    """However many they are: memory is that of REFILL_TOKENS events."""
    rule = WindowRule(events=100, stride=50)
    engine = Engine(untrained(window=rule), device="cpu")
    engine.keep_states(1 << 30, buckets=(256,))
    count, passes = 2000, []
    assert engine.states.room > count
    fill = state_cache.fill
    monkeypatch.setattr(state_cache, "fill", lambda *given: (passes.append(given[3].item_ids.shape), fill(*given))[1])
    cut = []

    class Watched(Stream):
        def __getitem__(self, position):
            cut.append(position)
            assert len(cut) - sum(rows for rows, _ in passes) <= state_cache.REFILL_TOKENS // 50, "windows lie ready"
            return super().__getitem__(position)

    window = Window(["i1"] * 100, ["view"] * 100, [None] * 100, list(range(100)))
    steps = [Step(f"u{n}", 0, 98, 99, 0, 100, "i1", "view", None, 99) for n in range(count)]
    assert len(engine.predict(Watched([window] * count, steps))) == count
    assert sum(rows for rows, _ in passes) == len(cut) == count
    assert max(rows * width for rows, width in passes) <= state_cache.REFILL_TOKENS


def failing(engine, error, times=1):
    """The device fails so many times; there is a copy of the model on the host, as for a GPU."""
    engine._spare = copy.deepcopy(engine._model)
    left, network = [error] * times, engine.states.stepper.plain

    def program(*given):
        if left:
            raise left.pop()
        return network(*given)

    engine.states.stepper.program = program


@pytest.mark.parametrize("error", [torch.AcceleratorError("misaligned address"), RuntimeError("CUDA error: unknown")])
def test_a_device_that_fails_is_given_up_for_the_cpu(parts, whole, caplog, error):
    engine = keeping(parts, slots=8)
    windows, steps = stream(60, users=6)
    engine.predict(Stream(windows[:40], steps[:40]))
    engine.hide(Hidden(frozenset({"item-1"})))
    failing(engine, error)
    found = engine.predict(Stream(windows[40:], steps[40:]))
    assert "item-1" not in {item["item_id"] for answer in found for item in answer.next_items}
    engine.hide(Hidden())
    assert same(engine.predict(Stream(windows[40:], steps[40:])), whole.predict(windows[40:])) < 1e-5
    assert (engine.device, engine.kept.device_fallbacks, engine.states.room) == ("cpu", 1, 8)
    assert "goes on on the CPU" in caplog.text
    failing(engine, error)
    engine._spare = None
    with pytest.raises(RuntimeError):  # there is nowhere else to go
        engine.predict(Stream(windows[40:], steps[40:]))


def test_a_device_without_memory_for_one_window_is_given_up(parts, whole):
    """For more of them it is not: whoever asked asks again for less."""
    engine = keeping(parts, slots=8)
    windows, steps = stream(20, users=6)
    failing(engine, torch.OutOfMemoryError("CUDA out of memory"), times=2)
    with pytest.raises(torch.OutOfMemoryError):
        engine.predict(Stream(windows, steps))
    assert engine.kept.device_fallbacks == 0
    assert same(engine.predict(Stream(windows[:1], steps[:1])), whole.predict(windows[:1])) < 1e-5
    assert engine.kept.device_fallbacks == 1


def test_an_error_of_the_model_is_no_error_of_the_device(parts):
    engine = keeping(parts, slots=8)
    windows, steps = stream(3, users=1)
    failing(engine, ValueError("a window needs at least one event"))
    with pytest.raises(ValueError, match="at least one event"):
        engine.predict(Stream(windows, steps))
    assert engine.kept.device_fallbacks == 0
