import math
import time
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.engine.paths.nextmove import artifact as random_artifact
from benchmarks.engine.setting import Setting
from model import artifact
from model.calibration import Line
from model.engine import ArtifactError, Engine, NotFinite
from model.few import MOST as FEW
from model.few import Few
from model.forecast import difference
from model.hiding import Hidden
from model.scorer import Scorer
from model.window import Window

HOUR_MS = 3_600_000


def window(items, behaviors=None, categories=None, gap_ms=HOUR_MS):
    count = len(items)
    return Window(items, behaviors or ["view"] * count, categories or ["category-1"] * count,
                  [gap_ms * step for step in range(count)])  # fmt: skip


def random_windows(count, engine, seed=0):
    random = np.random.default_rng(seed)
    names = [*engine.popular_items, "unheard", None]
    for _ in range(count):
        length = int(random.integers(1, 51))
        yield Window(
            [names[n] for n in random.integers(0, len(names), length)],
            [[*engine.behaviors, "odd"][n] for n in random.integers(0, len(engine.behaviors) + 1, length)],
            [["category-1", "category-2", "new", None][n] for n in random.integers(0, 4, length)],
            np.cumsum(random.integers(0, HOUR_MS, length)).tolist(),
        )


def test_what_the_engine_tells_of_itself(engine, log):
    assert engine.behaviors == ("view", "add_to_cart", "purchase")
    assert (engine.goal, engine.device, engine.window.events) == ("purchase", "cpu", 50)
    assert len(engine.version) == 16
    counts = log.head(1600)["item_id"].value_counts(sort=True)
    assert engine.popular_items[0] in counts.head(3)["item_id"].to_list()


names = st.one_of(st.none(), st.text(max_size=5), st.sampled_from([f"item-{n}" for n in range(60)]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(names, st.text(max_size=4), names, st.integers(0, 2 * 10**12)), min_size=1, max_size=55))
def test_any_window_gets_a_sane_answer(engine, rows):
    items, behaviors, categories, times = zip(*rows, strict=True)
    forecast = engine.predict([Window(items, behaviors, categories, sorted(times))])[0]
    assert sum(forecast.next_behaviors) == pytest.approx(1, abs=len(forecast.next_behaviors) * 0.5e-7)
    listed = [item["probability"] for item in forecast.next_items]
    assert listed == sorted(listed, reverse=True)
    assert 0 < sum(listed) <= 1 + 1e-6
    assert len({item["item_id"] for item in forecast.next_items}) == len(listed) == 10
    assert all(probability == round(probability, 7) for probability in listed)
    assert sum(category["probability"] for category in forecast.next_categories) <= 1 + 1e-6
    assert 0 <= forecast.purchase_probability <= 1
    assert 0 <= forecast.churn_probability <= 1
    low, middle, high = forecast.time_to_next_s
    assert 0 <= low <= middle <= high < math.inf
    known = set(engine.vocabulary.items.names)
    assert (forecast.fallback == "no_known_items") == (not known & set(items[-50:]))


def test_all_items_together_have_the_probability_of_the_named_ones(engine):
    everything = len(engine.vocabulary.items.names) + 50
    forecast = engine.predict([window(["item-1", "unheard"])], top_k=everything)[0]
    assert len(forecast.next_items) == len(engine.vocabulary.items.names) + 1
    assert 0.5 < sum(item["probability"] for item in forecast.next_items) <= 1 + 1e-6


def test_the_answer_does_not_depend_on_the_batch(engine):
    windows = list(random_windows(300, engine))
    together = engine.predict(windows)
    for number in range(0, 300, 23):
        alone = engine.predict([windows[number]])[0]
        assert (
            difference(alone, together[number]) < 5e-6
        )  # float32; where the weights lie in memory changes the last digits
    assert engine.predict(windows) == together
    assert [difference(a, b) < 1e-6 for a, b in zip(engine.predict(windows[::-1])[::-1], together, strict=True)]


def test_warm_is_one_answer_in_each_width_of_batch(engine, monkeypatch):
    """And of few windows and many."""
    widths = []
    run = engine._told
    monkeypatch.setattr(
        engine, "_told", lambda batch, *rest: (widths.append(batch.item_ids.shape), run(batch, *rest))[1]
    )
    engine.warm()
    assert widths == [*((1, width) for width in (4, 8, 16, 32, 50)), (FEW, 4), (FEW + 1, 4)]


@pytest.fixture
def long_catalogue(monkeypatch):
    """An engine whose catalogue is long enough for whatever a long one gets."""
    monkeypatch.setattr("model.engine.LONG", 0)
    monkeypatch.setattr("model.scorer.SHORT", 0)
    setting = Setting(width=32, layers=1, window=50, items=2000, categories=20)
    return Engine(random_artifact(setting, copy=False), device="cpu", few_in_int8=True)


def test_warm_is_an_answer_for_one_few_and_many_windows(long_catalogue):
    """Each is a program of its own, and nobody may wait for a compiler later."""
    with (
        mock.patch.object(Few, "top", autospec=True, side_effect=Few.top) as few,
        mock.patch.object(Scorer, "_top", autospec=True, side_effect=Scorer._top) as many,
    ):
        long_catalogue.warm()
    assert {1, FEW} <= {len(call.args[1]) for call in few.mock_calls}
    of_items = long_catalogue._answers._items.scorer
    assert FEW + 1 in {len(call.args[1]) for call in many.mock_calls if call.args[0] is of_items}


def test_few_windows_are_answered_as_many_are(long_catalogue):
    """Up to the precision of a long catalogue: what is listed has 1e-2 of its probability, mostly far less."""
    items = [f"item-{n:07d}" for n in range(40)]
    windows = [window(items[n : n + 1 + n % 4]) for n in range(20)]  # of one width
    with mock.patch.object(Scorer, "_top", autospec=True, side_effect=Scorer._top) as many:
        together = long_catalogue.predict(windows)
    assert 20 in {
        len(call.args[1]) for call in many.mock_calls if call.args[0] is long_catalogue._answers._items.scorer
    }
    for size in (1, 3, FEW):
        few = [one for begin in range(0, 20, size) for one in long_catalogue.predict(windows[begin : begin + size])]
        for one, other in zip(few, together, strict=True):
            chances = {item["item_id"]: item["probability"] for item in other.next_items}
            same = [item for item in one.next_items if item["item_id"] in chances]
            assert len(same) >= 9
            assert all(item["probability"] == pytest.approx(chances[item["item_id"]], rel=1e-2) for item in same)


def test_no_windows_no_answers_and_an_empty_window_is_an_error(engine):
    assert engine.predict([]) == []
    with pytest.raises(ValueError, match="at least one event"):
        engine.predict([window(["item-1"]), window([])])


def test_an_item_that_no_vocabulary_knows_is_copied(engine):
    loved = ["item-1", "never heard of", "item-2", "never heard of", "item-3"]
    names = [item["item_id"] for item in engine.predict([window(loved)])[0].next_items]
    assert "never heard of" in names
    strangers = engine.predict([window(["p", "q", "r", "p", "q", "r"])])[0]
    assert strangers.fallback == "no_known_items"
    assert {"p", "q", "r"} <= {item["item_id"] for item in strangers.next_items}


def test_the_fallback_fills_up_with_popular_items(engine):
    forecast = engine.predict([window(["unheard"])], top_k=6)[0]
    catalogue = [item["item_id"] for item in forecast.next_items if item["item_id"] != "unheard"]
    assert catalogue[:5] == engine.popular_items[:5]


def test_a_longer_window_than_the_rule_is_cut(engine):
    long = next(w for w in random_windows(50, engine, seed=4) if len(w.items) > 40)
    doubled = Window(*(list(column) for column in long))
    doubled = Window(
        ["item-9"] * 50 + doubled.items, ["purchase"] * 50 + doubled.behaviors, ["new"] * 50 + doubled.categories,
        [0] * 50 + doubled.times_ms,
    )  # fmt: skip
    cut = Window(*(list(column)[-50:] for column in doubled))
    assert engine.predict([doubled]) == engine.predict([cut])


def test_equal_and_falling_times_are_survived(engine):
    assert engine.predict([window(["item-1"] * 5, gap_ms=0)])[0].time_to_next_s[0] >= 0
    assert engine.predict([window(["item-1"] * 5, gap_ms=-HOUR_MS)])[0].time_to_next_s[0] >= 0


def test_it_has_learned_that_users_repeat_themselves(engine):
    own = ["item-3", "item-8", "item-5"] * 6
    names = [item["item_id"] for item in engine.predict([window(own)])[0].next_items]
    assert {"item-3", "item-8"} <= set(names[:5])


def test_top_k_is_asked_for(model_directory):
    engine = Engine.load(model_directory, device="cpu", top_k=3)
    assert len(engine.predict([window(["item-1"])])[0].next_items) == 3
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        Engine.load(model_directory, device="cpu", top_k=0)


def test_a_gpu_that_is_not_there_is_one_line(model_directory, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ArtifactError, match="no usable GPU"):
        Engine.load(model_directory, device="cuda")
    assert Engine.load(model_directory, device="auto").device == "cpu"


def test_calibrated_waits_are_what_is_answered(model_directory):
    parts = artifact.load(model_directory)
    lines = (Line(1.0, 1.0), Line(0.5, 2.0), Line(0.0, 9.0))
    applied = msgspec.structs.replace(parts.manifest.calibration, times=lines)
    manifest = msgspec.structs.replace(parts.manifest, calibration=applied)
    plain = Engine(parts, device="cpu")
    calibrated = Engine(msgspec.structs.replace(parts, manifest=manifest), device="cpu")
    windows = list(random_windows(5, plain))
    for before, after in zip(plain.predict(windows), calibrated.predict(windows), strict=True):
        logs = np.log1p(before.time_to_next_s)
        wanted = sorted((logs[0] + 1, logs[1] / 2 + 2, 9.0))
        assert np.log1p(after.time_to_next_s) == pytest.approx(wanted, abs=1e-5)
        assert after.next_behaviors == before.next_behaviors


def test_a_wait_below_nothing_is_nothing_before_it_is_calibrated(model_directory):
    """So it was where the lines were fitted: on answers, which are no less than 0 s."""
    parts = artifact.load(model_directory)
    with torch.no_grad():
        parts.model.time_head.weight.zero_()
        parts.model.time_head.bias.copy_(torch.tensor([-9.0, -9.0, -9.0]))
    applied = msgspec.structs.replace(
        parts.manifest.calibration, times=(Line(1.5, 0.1), Line(1.5, 0.2), Line(1.5, 0.3))
    )
    manifest = msgspec.structs.replace(parts.manifest, calibration=applied)
    calibrated = Engine(msgspec.structs.replace(parts, manifest=manifest), device="cpu")
    (answer,) = calibrated.predict([window(["item-1"])])
    assert answer.time_to_next_s == pytest.approx([math.exp(bias) - 1 for bias in (0.1, 0.2, 0.3)], abs=1e-5)


def test_a_batch_is_cheap(engine):
    windows = list(random_windows(512, engine, seed=2))
    engine.predict(windows)
    begun = time.perf_counter()
    engine.predict(windows)
    assert 512 / (time.perf_counter() - begun) > 100  # a guard against accidents, not a benchmark


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("head", ["items", "behaviors", "categories", "goal", "log_seconds", "churn"])
def test_an_answer_that_is_not_finite_is_no_answer(engine, monkeypatch, head, number):
    """One window of two has such a number somewhere: the whole batch is refused, and whoever asked may ask for less."""
    network = engine._model

    def broken(batch, **options):
        heads = network(batch, **options)
        part = getattr(heads, head)
        spoiled = (part.query if head in ("items", "categories") else part).clone()
        spoiled[-1] = number
        return heads._replace(**{head: part._replace(query=spoiled) if head in ("items", "categories") else spoiled})

    asked = [window(["item-1"]), window(["item-2"])]
    broken.item_table, broken.behavior_with_item = network.item_table, network.behavior_with_item
    monkeypatch.setattr(engine, "_model", broken)
    with pytest.raises(NotFinite, match="not finite"):
        engine.predict(asked)


def test_a_model_of_no_numbers_is_refused_at_load(model_directory):
    parts = artifact.load(model_directory)
    with torch.no_grad():
        parts.model.item_query.weight[0, 0] = math.nan
    engine = Engine(parts, device="cpu")
    with pytest.raises(ArtifactError, match="answers with numbers that are not finite"):
        engine.check_golden()


@pytest.mark.parametrize(
    ("precision", "factor", "refused"),
    [("float32", 1.015, True), ("int8", 1.015, False), ("int8", 1.1, True), ("int8", 1.0, False)],
)
def test_a_model_is_not_refused_for_the_digits_of_its_scoring(model_directory, precision, factor, refused):
    """Golden answers are float32's, and what a long catalogue comes to in int8 is off by a share of a percent."""
    parts = artifact.load(model_directory)
    engine = Engine(parts, device="cpu")
    engine.check_golden()
    engine.precision = precision
    likely = 0
    for one in parts.manifest.golden:
        for item in one.forecast.next_items:
            likely = max(likely, item["probability"])
            item["probability"] *= factor
    assert likely > 0.1  # so that a hundredth of it is more than the tolerance
    if refused:
        with pytest.raises(ArtifactError, match="does not reproduce its golden answers"):
            engine.check_golden()
    else:
        engine.check_golden()


def test_what_is_hidden_is_not_listed_and_the_rest_is_as_it_was(model_directory):
    engine = Engine.load(model_directory, device="cpu")
    windows = list(random_windows(60, engine, seed=5))
    names = set(engine.vocabulary.items.names)
    whole = engine.predict(windows, top_k=len(names) + 50)
    banned = frozenset([*engine.popular_items[:3], "unheard", "of another shop"])
    for hidden in (Hidden(banned), Hidden(seen=True), Hidden(banned, seen=True), Hidden()):
        assert engine.hide(hidden) == len(hidden.banned - names)
        for window, before, answer in zip(windows, whole, engine.predict(windows), strict=True):
            out = {*hidden.banned, *(window.items if hidden.seen else ())}
            left = [item for item in before.next_items if item["item_id"] not in out]
            listed = answer.next_items
            assert not out & {item["item_id"] for item in listed}
            assert [item["probability"] for item in listed] == pytest.approx(
                [item["probability"] for item in left[:10]], abs=2e-6
            )
            kept = {item["item_id"]: item["probability"] for item in left}
            assert all(item["probability"] == pytest.approx(kept[item["item_id"]], abs=2e-6) for item in listed)
            assert answer.next_behaviors == pytest.approx(before.next_behaviors, abs=2e-6)
