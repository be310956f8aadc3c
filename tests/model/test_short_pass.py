"""A pass of few events as one program says what the parts of a pass say one after the other."""

from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch

from model.ahead_of_time import AheadOfTime, Lasting, rebuilt, signature
from model.answers import Answers
from model.compiling import can_compile
from model.config import NextMoveConfig
from model.engine import Engine
from model.hiding import Hidden
from model.native import Library
from model.network import NextMoveModel
from model.short_pass import ShortPass, short_pass
from model.stepper import made_up
from model.told import difference
from model.window import WindowRule
from tests.artefacts import untrained

RULE = WindowRule(events=12, stride=5)
EVENTS = 5


@cache
def parts_of(items=5000, categories=20, *, layers=2, copy=True, network=0, heavy=()):
    """Random weights, none of which is zero, as those would be from which learning begins; some items, by number, are a thousand times as likely."""
    parts = untrained(items=items, categories=categories, window=RULE)
    torch.manual_seed(network)
    model = NextMoveModel(NextMoveConfig(**{**parts.model.config.to_dict(), "copy": copy, "layers": layers})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        model.item_bias[[1 + item for item in heavy]] += 7
    return msgspec.structs.replace(parts, model=model)


class NotCompiled(ShortPass):
    """A short pass as it is."""

    is_plain = False


def engine_of(parts, *, precision="float32", short=True, few=False, limit=1 << 23, **options):
    """An engine that has short passes, not compiled, or none."""
    engine = Engine(parts, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        if precision in ("int_mm", "qlinear"):  # whatever this processor has instructions for
            patch.setattr("model.precision.product_of_int8", lambda product=precision: product)
            precision = "int8"
        engine._answers = Answers(
            engine._model, engine.vocabulary, engine.calibration, precision=precision, few_in_int8=few
        )
    engine.keep_states(limit, **{"buckets": (1, 8), **options})
    stepper = engine.states.stepper
    assert not stepper._short_sizes
    if short:
        engine._answers._may_be_asked = True
        stepper._short, stepper._short_sizes = NotCompiled(stepper.plain), set(stepper.sizes)
    return engine


def passes(engine, users, k=10, strangers=None):
    """What is told of a few events of so many users each, and what is in the pool then; some identities beyond the vocabulary are not listed."""
    stepper = engine.states.stepper
    tell = engine._tell(k) if strangers is None else engine._teller(k, torch.tensor(strangers, dtype=torch.long))
    asked = [made_up(engine._model.config, 1 + users, event)[:, 1:] for event in range(EVENTS)]
    with torch.inference_mode():
        told = [stepper.run(columns, tell)() for columns in asked]
    unknown = torch.stack([each.unknown for each in told])
    assert not unknown[:, 0].any()  # there the catalogue's scores are what is told
    return told, tensors_of(stepper._pool)


def tensors_of(pool):
    return [part for part in (*pool.keys_values, *pool) if isinstance(part, torch.Tensor)]


def counted(engine, short=None):
    """How many events each short pass has from now on."""
    short, calls = short or engine.states.stepper._short, []
    forward = short.forward
    short.forward = lambda *given: (calls.append(given[1].shape[1]), forward(*given))[1]
    return calls


def off(told, wanted):
    return max(difference(*pair) for pair in zip(told, wanted, strict=True))


def alike(kept, wanted, slots=...):
    """What is in two pools, in some slots."""
    pairs = zip(kept, wanted, strict=True)
    return all(torch.allclose(a[slots], b[slots], rtol=1e-5, atol=1e-5) for a, b in pairs if len(a))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"precision": "bfloat16"},
        {"precision": "int_mm"},
        {"precision": "qlinear"},
        {"few": True},
        {"dtype": torch.bfloat16},
        {"seen": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("users", "rows"), [(1, 1), (3, 8), (8, 8)])
def test_it_says_and_keeps_what_the_parts_do(copy, how, users, rows):
    how = dict(how)
    seen = how.pop("seen", False)
    parts = parts_of(copy=copy)
    one, other = engine_of(parts, **how), engine_of(parts, short=False, **how)
    for engine in (one, other):
        engine.hide(Hidden(seen=seen))
        engine._hide()
    calls = counted(one)
    told, kept = passes(one, users)
    wanted, kept_then = passes(other, users)
    assert calls == [rows] * EVENTS
    assert all(len(each.ids) == users for each in told)
    assert off(told, wanted) < 2e-6
    assert alike(kept, kept_then)


@pytest.mark.parametrize(("items", "categories"), [(2000, 20), (4200, 5000), (5000, 0), (4127, 20)])
def test_catalogues_may_be_short_or_long(items, categories):
    """Or none, or end in classes that are no whole group."""
    parts = parts_of(items, categories)
    one, other = engine_of(parts), engine_of(parts, short=False)
    calls = counted(one)
    told, wanted = passes(one, 8)[0], passes(other, 8)[0]
    assert calls == [8] * EVENTS
    assert off(told, wanted) < 2e-6


def test_several_events_are_no_short_pass_where_scores_would_leave_the_cache(monkeypatch):
    monkeypatch.setattr("model.scorer.BLOCK_CELLS", 8 * 4000)
    engine = engine_of(parts_of(5000))
    calls = counted(engine)
    passes(engine, 8)
    assert calls == []
    passes(engine, 1)
    assert calls == [1] * EVENTS


def test_nor_are_more_than_a_few():
    """They are worth a second thread's work, and a pass in parts can be shared."""
    engine = engine_of(parts_of(), buckets=(8, 9))
    calls = counted(engine)
    passes(engine, 9)
    assert calls == []


IN_WINDOWS = tuple(
    sorted({7 * user + event for user in range(1, 9) for event in range(EVENTS)})
)  # as `made_up` has them
ELSEWHERE = 3000


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("seen", [False, True])
def test_any_list_of_what_is_banned_is_as_good(copy, seen):
    """None, one item, many with one of another shop that is in a window, that one alone, and none again; nearly all of the mass is banned then."""
    parts = parts_of(copy=copy, heavy=(*IN_WINDOWS, ELSEWHERE))
    one, other = engine_of(parts), engine_of(parts, short=False)
    calls, known = counted(one), one.vocabulary.items
    stranger = known.rows + 1  # user 5's, of those whom nobody knows
    assert (stranger in ids_of(passes(other, 8)[0])) == copy
    for items, strangers in (
        ((), []),
        ((8,), []),
        ((ELSEWHERE,), []),
        (IN_WINDOWS, [known.rows, stranger]),
        ((*IN_WINDOWS[:9], ELSEWHERE), []),
        ((), [stranger]),
        ((), []),
    ):
        for engine in (one, other):
            assert not engine.hide(Hidden(frozenset(f"i{item}" for item in items), seen))
            engine._hide()
        calls.clear()
        told, wanted = passes(one, 8, strangers=strangers)[0], passes(other, 8, strangers=strangers)[0]
        assert calls == [8] * EVENTS
        assert off(told, wanted) < 2e-6
        now = ids_of(told)
        assert not now & {known.first + item for item in items}
        assert (known.first + ELSEWHERE in now) == (ELSEWHERE not in items)
        assert (stranger in now) == (copy and not seen and not strangers)


@pytest.mark.parametrize(("copy", "seen"), [(True, False), (True, True), (False, False)])
def test_one_program_is_for_any_list(monkeypatch, copy, seen):
    kinds = set()

    def loaded(self, args, tensors, sizes, kind):
        kinds.add((type(self._program), kind))
        return lambda tensors: self._program(*rebuilt(args, iter(tensors)))

    monkeypatch.setattr(AheadOfTime, "_loaded", loaded)
    engine = engine_of(parts_of(copy=copy))
    engine.states.stepper._short = short_pass(engine.states.stepper.plain)
    for banned in (0, 1, 2, 3, 50):
        engine.hide(Hidden(frozenset(f"i{item}" for item in range(banned)), seen))
        engine._hide()
        for strangers in (0, 1, 2, 7):
            passes(engine, 1, strangers=[6000 + number for number in range(strangers)])
    assert len({kind for program, kind in kinds if program is ShortPass}) == 1


def ids_of(told):
    """All that is listed with a probability, of all windows."""
    return {
        listed
        for each in told
        for ids, count in zip(each.ids.tolist(), each.listed.tolist(), strict=True)
        for listed in ids[:count]
    }


def test_a_longer_list_is_as_good():
    one, other = engine_of(parts_of()), engine_of(parts_of(), short=False)
    calls = counted(one)
    told, wanted = passes(one, 8, k=40)[0], passes(other, 8, k=40)[0]
    assert calls == [8] * EVENTS
    assert told[0].ids.shape == (8, 40)
    assert off(told, wanted) < 2e-6


def test_what_is_asked_for_later_is_what_is_told():
    """Nothing of what was asked for before is left: what is hidden, or the length of the list."""
    one, other = engine_of(parts_of()), engine_of(parts_of(), short=False)
    calls, lists = counted(one), []
    for seen, k in ((False, 10), (True, 10), (True, 5), (False, 5), (False, 10)):
        for engine in (one, other):
            engine.hide(Hidden(seen=seen))
            engine._hide()
        told, wanted = passes(one, 1, k)[0], passes(other, 1, k)[0]
        assert off(told, wanted) < 2e-6
        lists.append(told[-1].ids.tolist())
    assert lists[0] != lists[1]
    assert len(calls) == 5 * EVENTS


@pytest.mark.parametrize(
    ("users", "rows", "how", "copy"),
    [
        (1, 1, {"banned": {"i8", "i9"}}, False),
        (6, 8, {"precision": "int8", "seen": True, "banned": {"i8", "i3000"}, "strangers": True}, True),
        (8, 8, {"banned": {"i8", "i3000"}, "strangers": True}, True),
    ],
)
def test_compiled_it_is_one_library_that_copies_nothing(monkeypatch, users, rows, how, copy):
    """It reads and writes a few slots of a pool of 300 MB, also where rows are nobody's."""
    if not can_compile():
        pytest.fail("a C++ compiler belongs to a machine that runs the tests: Debian's g++")
    how, parts = dict(how), parts_of(4200, layers=1, copy=copy, heavy=(8, 9, 3000))
    hidden, known = Hidden(frozenset(how.pop("banned")), how.pop("seen", False)), parts.vocabulary.items
    strangers = [known.rows, known.rows + 1] if how.pop("strangers", False) else []  # the latter is user 5's
    engine, other = engine_of(parts, limit=300 << 20, **how), engine_of(parts, short=False, **how)
    for each in (engine, other):
        assert not each.hide(hidden)
        each._hide()
    stepper = engine.states.stepper
    stepper._short = short_pass(stepper.plain)
    stepper._short._or_plain = False
    passes(engine, users, strangers=strangers)  # compiled, and loaded
    for part in tensors_of(stepper._pool):
        part.fill_(0)  # in memory, not only promised
    calls, call = [], Library.__call__
    monkeypatch.setattr(Library, "__call__", lambda self, given: (calls.append(self), call(self, given))[1])
    before = peak_of_memory(reset=True)
    told, kept = passes(engine, users, strangers=strangers)
    assert peak_of_memory() - before < 5 << 20
    assert len(calls) == EVENTS
    assert not ids_of(told) & {*strangers, *(known.index[name] for name in hidden.banned)}
    wanted, kept_then = passes(other, users, strangers=strangers)
    assert off(told, wanted) < (5e-6 if how == {} else 1e-5)
    assert alike(kept, kept_then, slice(1, 1 + users))


def peak_of_memory(*, reset=False):
    """Bytes that this process has had in memory at most, since it was reset."""
    process = Path("/proc/self")
    if reset:
        (process / "clear_refs").write_text("5")
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_what_compiles_but_does_not_run_is_done_in_parts(monkeypatch, caplog):
    def loaded(self, args, *_):
        if self._program.__class__ is ShortPass:
            return lambda _: torch.zeros(1)[5]  # an IndexError
        return lambda tensors: self._program(*rebuilt(args, iter(tensors)))

    monkeypatch.setattr("model.engine.LONG", 0)
    monkeypatch.setattr(AheadOfTime, "_loaded", loaded)
    engine = Engine(parts_of(), device="cpu", compiled=True)
    engine.keep_states(1 << 24, buckets=(1, 8))
    assert "passes of few events are done in parts: index 5 is out of bounds" in caplog.text
    assert off(passes(engine, 1)[0], passes(engine_of(parts_of(), short=False), 1)[0]) < 5e-6


@pytest.mark.parametrize("faster", [True, False])
def test_a_size_in_which_they_are_slower_has_none(monkeypatch, faster):
    """By the clock, of which each pass in parts takes ten seconds here."""
    engine = engine_of(parts_of(), short=False)
    engine._answers._may_be_asked = True
    stepper, now = engine.states.stepper, [0.0]
    stepper._short = NotCompiled(stepper.plain)
    stepper._told = lambda tell, found, told=stepper._told: (now.__setitem__(0, now[0] + 10), told(tell, found))[1]
    counted_forward = stepper._short.forward
    seconds = 9 if faster else 11
    stepper._short.forward = lambda *given: (now.__setitem__(0, now[0] + seconds), counted_forward(*given))[1]
    monkeypatch.setattr("model.stepper.time.perf_counter", lambda: now[0])
    stepper.warm(engine._tell(10), engine._finish)
    assert stepper._short_sizes == ({1, 8} if faster else set())


@pytest.mark.parametrize("compiles", [True, False])
def test_what_does_not_compile_is_done_in_parts(monkeypatch, caplog, compiles):
    """Where it does, everything is compiled before anybody waits."""

    def loaded(self, args, *_):
        if not compiles and self._program.__class__ is ShortPass:
            raise RuntimeError("too long for this compiler")
        return lambda tensors: self._program(*rebuilt(args, iter(tensors)))

    monkeypatch.setattr("model.engine.LONG", 0)
    monkeypatch.setattr(AheadOfTime, "_loaded", loaded)
    parts = parts_of()
    engine = Engine(parts, device="cpu", compiled=True)
    engine.keep_states(1 << 24, buckets=(1, 8))
    assert ("ShortPass is not compiled: too long for this compiler" in caplog.text) != compiles
    assert compiles or not engine.states.stepper._short_sizes
    engine.states.stepper._short_sizes = {1, 8}  # uncompiled, as here, they may be slower
    calls = counted(engine, engine.states.stepper._short._program)
    monkeypatch.setattr(AheadOfTime, "_loaded", lambda *_: pytest.fail("something is compiled while somebody waits"))
    for users in (1, 3):
        told, wanted = passes(engine, users)[0], passes(engine_of(parts, short=False), users)[0]
        assert off(told, wanted) < 5e-6
    assert calls == ([1] * EVENTS + [8] * EVENTS) * compiles


def test_a_model_that_knows_more_names_needs_no_new_code():
    def kind(parts):
        engine = engine_of(parts)
        short = short_pass(engine.states.stepper.plain)
        kinds = []
        short._loaded = lambda args, tensors, sizes, kind: (kinds.append(kind), lambda tensors: None)[1]
        short(
            Lasting(engine.states.stepper._pool), torch.zeros(8, 1, dtype=torch.int64), torch.zeros(1, 16),
            engine._tell(10).asked(1),
        )  # fmt: skip
        return kinds, short._about

    assert kind(parts_of(5000, 20)) == kind(parts_of(6007, 90, network=1))
    assert kind(parts_of(5000, 20)) != kind(parts_of(5000, 20, copy=False))


def test_what_lasts_is_looked_at_once(monkeypatch):
    """And a program gets the same tensors of it, in the same places."""
    calls, looks = [], []

    def add(one, both):
        return one + both[0][0] * both[0][1]

    program = AheadOfTime(add, lambda one, both: ({0: None}, ({}, {})))
    program._library = lambda args, tensors: (calls.append(len(tensors)), lambda given: add(given[0], (given[1:],)))[1]
    lasting = Lasting((torch.tensor([2.0]), torch.tensor([3.0])))
    monkeypatch.setattr(
        "model.ahead_of_time.signature", lambda args, tensors: (looks.append(args), signature(args, tensors))[1]
    )
    for number in (1.0, 10.0):
        assert program(torch.tensor([number]), lasting).tolist() == [number + 2 * 3]
    assert len(looks) == 2, "one for each call, and none for what lasts"
    assert program(torch.tensor([1.0]), Lasting((torch.tensor([4.0]), torch.tensor([5.0])))).tolist() == [1 + 4 * 5]
    assert calls == [3]
    assert lasting[0][1].item() == 3
