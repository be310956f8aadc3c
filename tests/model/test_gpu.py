"""The engine on a CUDA device: what it says is what it says on a CPU, and it survives what befalls a device."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import artifact
from model.compiling import can_compile
from model.devices import learns_in_bfloat16, scoring_precision
from model.engine import Engine
from model.hiding import Hidden
from model.scorer import Scorer
from model.training import train
from tests.artefacts import untrained
from tests.model.conftest import BEHAVIORS
from tests.model.test_scorer import learned, plain
from tests.model.test_state_cache import (
    NAMES,
    RULE,
    Life,
    Stream,
    histories,
    keeping,
    live,
    overlap,
    parts,
    same,
    stream,
    whole,
)

__all__ = ["parts", "whole"]  # fixtures, on a CPU

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


@settings(deadline=None, max_examples=8)
@given(histories, st.integers(4, 9), st.data())
def test_recorded_steps_are_answered_like_whole_windows(parts, whole, batches, slots, data):
    engine = keeping(parts, slots, device="cuda")
    assert engine.states.stepper.recorded
    live(engine, whole, batches, data, tolerance=5e-5)


def test_whole_windows_are_answered_as_on_a_cpu(parts, whole):
    windows, _ = stream(300, users=20)
    assert same(Engine(parts, device="cuda").predict(windows), whole.predict(windows)) < 5e-5


@pytest.mark.parametrize("recorded", [False, True])
def test_compiled_steps_answer_the_same(parts, whole, recorded, monkeypatch):
    assert can_compile("cuda")
    if not recorded:
        monkeypatch.setattr("model.state_cache.records", lambda _: False)
        monkeypatch.setattr("tests.model.test_state_cache.records", lambda _: False)
    engine = keeping(parts, 20, buckets=(1, 4, 16), device="cuda", compile_steps=True)
    assert (engine.states.stepper.compiled, engine.states.stepper.recorded) == (True, recorded)
    windows, steps = stream(400, users=20)
    assert same(engine.predict(Stream(windows, steps)), whole.predict(windows)) < 5e-5


def test_bfloat16_lists_nearly_the_same(parts, whole):
    engine = keeping(parts, 20, device="cuda", dtype=torch.bfloat16)
    windows, steps = stream(400, users=20)
    assert overlap(engine.predict(Stream(windows, steps)), whole.predict(windows)) >= 0.98


def test_what_is_hidden_later_is_recorded_anew(parts):
    windows, steps = stream(90, users=9)
    hidden = [Hidden(), Hidden(frozenset({"item-1", "unheard"})), Hidden(frozenset({"item-2"}), seen=True)]
    host, engine = Engine(parts, device="cpu"), keeping(parts, slots=9, device="cuda")
    for begin, one in zip((0, 30, 60), hidden, strict=True):
        some = slice(begin, begin + 30)
        engine.hide(one)
        host.hide(one)
        assert same(engine.predict(Stream(windows[some], steps[some])), host.predict(windows[some])) < 5e-5


@pytest.mark.parametrize("backbone", ["gru", "lstm", "gpt2", "bert"])
def test_other_backbones_answer_as_on_a_cpu(log, tmp_path, backbone):
    """Learned there as well."""
    rule = RULE if backbone in ("gru", "lstm") else None
    given = {"window": rule} if rule else {}
    train(log, BEHAVIORS, "purchase", tmp_path / "model", epochs=1, device="cuda", backbone=backbone, **given)
    loaded = artifact.load(tmp_path / "model")
    windows, steps = stream(200, users=20)
    wanted = Engine(loaded, device="cpu").predict(windows)
    engine = Engine(loaded, device="cuda")
    assert same(engine.predict(windows), wanted) < 1e-3
    if rule:
        engine.keep_states(1 << 24, buckets=(1, 16))
        assert same(engine.predict(Stream(windows, steps)), wanted) < 1e-3
        assert engine.states.counts.hits > 50


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [5_000, 70_001])
def test_a_catalogue_is_scored_as_it_is_all_at_once(classes, precision, compiled):
    vectors, bias, queries = learned(classes, 300)
    best, listed, total = plain(vectors, bias, queries, 10)
    scorer = Scorer(vectors.cuda(), bias.cuda(), precision=precision, compiled=compiled)
    for count in (300, 17, 1):
        found = scorer.top(queries[:count].cuda(), 10)
        agreed = (found.classes.cpu()[:, :, None] == listed[:count, None]).any(-1).double().mean()
        assert agreed >= (1 - 1e-3 if precision == "float32" else 0.98)
        off = 1e-4 if precision == "float32" else 0.02
        assert (found.log_total.cpu() - total[:count]).abs().max() < off
        assert (found.logits.cpu() - best[:count]).abs().max() < (1e-4 if precision == "float32" else 0.05)


def test_a_long_catalogue_in_the_precision_that_is_chosen(log):
    """Recorded with everything, so that nothing in scoring waits for the device."""
    parts = untrained(items=25_000, window=RULE)
    host = Engine(parts, device="cpu")
    engine = Engine(parts, device="cuda", compiled=True)
    engine.keep_states(1 << 26, buckets=(1, 16))
    assert engine.states.stepper.recorded
    assert engine.precision == scoring_precision("cuda", True)
    life, windows, steps = Life("user-0"), [], []
    for offset in range(100):
        window, step = life.add((f"i{offset * 37 % 500}", "view", "c1", 10**12 + offset * 60_000), offset)
        windows.append(window)
        steps.append(step)
    assert overlap(engine.predict(Stream(windows, steps)), host.predict(windows)) >= 0.95


def test_memory_that_is_short_makes_passes_smaller_and_then_the_cpu_goes_on(parts, whole, caplog):
    """The memory of a real device, of which this process may have next to nothing."""
    engine = keeping(parts, slots=9, device="cuda")
    windows, steps = stream(60, users=9)
    engine.predict(Stream(windows[:30], steps[:30]))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            engine.predict(windows[30:] * 100)
        (alone,) = engine.predict(windows[30:31])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.device == "cpu"
    assert "device cuda failed" in caplog.text
    assert same([alone], whole.predict(windows[30:31])) < 1e-5
    assert same(engine.predict(Stream(windows[31:], steps[31:])), whole.predict(windows[31:])) < 1e-5


BROKEN = """
import sys, torch
from model import artifact
from model.engine import Engine
from model.window import Window
parts = artifact.load(sys.argv[1])
windows = [Window(["item-1", "item-2"], ["view", "view"], ["category-1", None], [0, 1000])]
wanted = Engine(parts, device="cpu").predict(windows)
engine = Engine(parts, device="cuda")
engine.predict(windows)
torch.zeros(3, device="cuda")[torch.tensor([10], device="cuda")]  # an assertion of the device itself: nothing works from here on
answers = engine.predict(windows)
assert engine.device == "cpu" and engine.kept.device_fallbacks == 1
assert [answer.next_items for answer in answers] == [answer.next_items for answer in wanted]
print("goes on")
"""


def test_a_device_that_fails_is_given_up_for_the_cpu(model_directory):
    """In a process of its own, since nobody gets such a device back."""
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, str(model_directory)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert run.stdout.strip() == "goes on", run.stderr[-2000:]
    assert "device cuda failed" in run.stderr


def test_learning_on_a_gpu(log, tmp_path):
    """In bfloat16, and what it makes answers the same on both."""
    assert learns_in_bfloat16("cuda")
    train(log, BEHAVIORS, "purchase", tmp_path / "model", epochs=3, device="cuda")
    loaded = artifact.load(tmp_path / "model")
    life = Life("user-0")
    windows = [life.add((NAMES[n % 5], "view", "category-1", 10**12 + n), n)[0] for n in range(20)]
    pair = [Engine(loaded, device=device).predict(windows) for device in ("cuda", "cpu")]
    assert same(*pair) < 1e-4
