"""A network before its training, from what there is to learn; and what an artefact says of itself after it."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from model.artifact import Described, TrainingRange
from model.assembly import GOLDEN_WINDOWS, assemble, new_model, with_golden
from model.callbacks import Callback
from model.config import BACKBONES, PRESETS, QUANTILES
from model.engine import GOLDEN_TOP_K, Engine
from model.features import pad
from model.learner import Learner
from model.material import default_horizons, prepare
from model.order import Order, TrainingError
from model.prices import BUCKETS
from model.recipe import SPARSE
from model.sequences import sequences
from model.window import WindowRule
from tests.model.conftest import BEHAVIORS, make_log
from tests.model.test_described_items import texts_of

RULE = WindowRule(events=16, session_gap_ms=1_234_567)
FRAME = make_log(users=12, events=30)  # 360 events
LEARNED = 290  # the newest of them is not the last user's


def material_of(frame=FRAME, learned=LEARNED, text=None, *, prices=False):
    data = sequences(frame)
    horizons = default_horizons(data.times_ms)
    return prepare(data, learned, BEHAVIORS, "purchase", RULE, horizons, text, prices=prices)


@pytest.fixture(scope="module")
def material():
    return material_of()


def made(material, *options, seed=0):
    torch.manual_seed(seed)
    return new_model(material, *(options or ("small",)))


@pytest.mark.parametrize(
    ("preset", "backbone"), [*((preset, "nextmove") for preset in PRESETS), *(("small", one) for one in BACKBONES[1:])]
)
def test_a_network_is_as_large_as_its_preset_of_its_backbone_and_says_what_the_log_has(material, preset, backbone):
    recipe = replace(SPARSE, dropout=0.11, mask_items=0.22, mask_categories=0.33)
    model = made(material, preset, recipe, backbone).eval()
    config, names = model.config, material.vocabulary
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert (config.dropout, config.unknown_items, config.unknown_categories) == (0.11, 0.22, 0.33)
    assert (config.backbone, config.positions, config.session_gap_ms) == (backbone, 16, 1_234_567)
    assert (len(model.blocks), model.peer is None) == ((config.layers, True) if backbone == "nextmove" else (0, False))
    for (vectors, bias), catalogue in ((model.item_table(), names.items), (model.category_table(), names.categories)):
        assert vectors.shape == (1 + len(catalogue.names), config.width)
        assert bias.shape == (1 + len(catalogue.names),)
    with torch.inference_mode():
        heads = model(pad(material.columns, np.array([0, 30]), np.array([16, 7]), 16))
    for mixture in (heads.items, heads.categories):
        assert mixture.query.shape == (2, 16, config.width)
        assert mixture.copied.pointer.shape == (2, 16, 16)
    assert heads.behaviors.shape == (2, 16, len(BEHAVIORS))
    assert heads.log_seconds.shape == (2, 16, len(QUANTILES))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_same_seed_begins_with_the_same_weights_and_another_with_others(material, backbone):
    first, again, other = (made(material, "small", SPARSE, backbone, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not torch.equal(first["item.weight"], other["item.weight"])
    drawn = [name for name in first if name.startswith(("blocks.0.", "peer.")) and first[name].unique().numel() > 1]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def log_shares(names, known):
    """Of each known name that is met twice, then of class 0: all others; half an event more for each."""
    counts = Counter(names)
    often = {name: counts[name] if counts[name] > 1 else 0 for name in known}
    each = [len(names) - sum(often.values()), *often.values()]
    return [math.log((count + 0.5) / (len(names) + 0.5 * len(each))) for count in each]


def test_its_biases_are_the_frequencies_of_what_is_learned_from(material):
    """An event that alone makes a name known is one of a name that is not."""
    model, names, learned = made(material), material.vocabulary, FRAME.head(LEARNED)
    for bias, column, known in (
        (model.item_bias, "item_id", names.items.names),
        (model.category_bias, "category", names.categories.names),
        (model.behavior_head.bias, "behavior", names.behaviors.names),
    ):
        expected = log_shares(learned[column].to_list(), known)[-len(bias) :]  # no class 0 for behaviours
        assert bias.tolist() == pytest.approx(expected, abs=1e-6)
    assert 1 in Counter(learned["item_id"]).values()


def test_before_training_behaviours_follow_each_other_as_they_did_in_what_is_learned_from(material):
    """Beside what followed a behaviour stand ten events of the usual shares."""
    model, learned = made(material), FRAME.head(LEARNED)
    with torch.no_grad():
        model.behavior_head.weight.zero_()
    shares = [learned["behavior"].to_list().count(name) + 0.5 for name in BEHAVIORS]
    shares = [share / sum(shares) for share in shares]
    steps = Counter()
    for user in learned.partition_by("user_id"):
        steps.update(zip(user["behavior"][:-1], user["behavior"][1:], strict=True))
    catalogue = material.vocabulary.behaviors
    assert catalogue.names == BEHAVIORS
    for before in BEHAVIORS:
        row = torch.tensor([[catalogue.row(before)]])
        told = model.behavior_logits(torch.zeros(1, 1, model.config.width), row).softmax(-1)[0, 0]
        total = sum(steps[before, after] for after in BEHAVIORS)
        expected = [
            (steps[before, after] + 10 * share) / (total + 10) for after, share in zip(BEHAVIORS, shares, strict=True)
        ]
        assert told.tolist() == pytest.approx(expected, abs=1e-6)
    unknown = torch.arange(catalogue.first)[:, None]
    assert torch.equal(model.behavior_after[unknown[:, 0]], torch.zeros(catalogue.first, len(BEHAVIORS)))


def test_each_item_has_the_row_of_its_category(material):
    model, names = made(material), material.vocabulary
    of = dict(FRAME.head(LEARNED).select("item_id", "category").iter_rows())
    expected = [names.categories.row(of[item]) for item in names.items.names]
    assert model.item_categories[names.items.first :].tolist() == expected


def test_events_that_are_not_learned_from_change_nothing(material):
    late = pl.int_range(pl.len()) >= LEARNED
    changed = FRAME.with_columns(
        item_id=pl.when(late).then(pl.lit("later")).otherwise("item_id"),
        category=pl.when(late).then(pl.lit("later")).otherwise("category"),
        behavior=pl.when(late).then(pl.lit("purchase")).otherwise("behavior"),
    )
    before, after = made(material), made(material_of(changed))
    assert before.config.to_dict() == after.config.to_dict()
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())


def test_there_is_something_to_copy_where_anybody_repeats_anything(material):
    once = FRAME.unique(["user_id", "item_id"], maintain_order=True).with_columns(category=pl.lit(None, pl.String))
    assert made(material).config.copy
    assert not made(material_of(once, learned=len(once))).config.copy


@pytest.mark.parametrize("prices", [False, True])
def test_without_texts_and_prices_in_the_log_there_is_no_place_for_them(prices):
    model = made(material_of(prices=prices))
    assert (model.config.price_buckets, model.price, model.item_buckets) == (0, None, None)
    assert (model.config.texts, model.config.text_width, model.described) == (0, 0, None)


def priced():
    """The log with prices: an item's number, none for those of item-0."""
    return FRAME.with_columns(price=pl.col("item_id").str.strip_prefix("item-").cast(pl.Float64))


def test_prices_are_seen_where_they_are_wanted():
    assert made(material_of(priced())).price is None
    material = material_of(priced(), prices=True)
    model, items = made(material), material.vocabulary.items
    assert model.config.price_buckets == len(model.price.weight) == 1 + BUCKETS
    assert model.item_buckets[items.first :].tolist() == material.item_buckets.tolist()
    assert not model.item_buckets[: items.first].any()


def texts():
    """Of all items but one, and of two that nobody met."""
    found = texts_of(FRAME, ["item-100", "item-101"])
    most = FRAME["item_id"].value_counts(sort=True)["item_id"][0]
    return replace(found, items={name: row for name, row in found.items.items() if name != most})


def test_an_item_with_a_text_has_its_vector():
    text = texts()
    material = material_of(text=text)
    model, items = made(material), material.vocabulary.items
    assert (model.config.texts, model.config.text_width) == text.vectors.shape
    for name in items.names:
        found = model.described.vectors[model.described.texts[items.row(name)]].numpy()
        expected = text.vectors[text.items[name]] if name in text.items else np.zeros(7)
        np.testing.assert_array_equal(found, expected)
    assert model.described.unmet[1:].tolist() == [not count for count in material.vocabulary.item_counts]


def learner_of(material):
    return Learner(made(material), material, replace(SPARSE, bfloat16="off"), 0, Callback())


ORDER = Order(
    behaviors=BEHAVIORS,
    goal="purchase",
    preset="large",
    backbone="gru",
    seed=7,
    protocol="leave-one-out",
    window=RULE,
    device="cpu",
)


@pytest.fixture(scope="module")
def parts(material):
    return assemble(learner_of(material), ORDER, 3)


def test_an_artefact_says_what_was_asked_and_what_was_learned_from(parts, material):
    manifest, learned = parts.manifest, FRAME.head(LEARNED)
    assert manifest.training == TrainingRange(
        events=LEARNED,
        users=learned["user_id"].n_unique(),
        from_ms=learned["timestamp"].min(),
        until_ms=learned["timestamp"].max(),
        preset="large",
        seed=7,
        epochs=3,
        protocol="leave-one-out",
        backbone="gru",
        older=None,
    )
    assert (manifest.window, manifest.behaviors, manifest.goal) == (RULE, list(BEHAVIORS), "purchase")
    horizons = manifest.goal_horizon_ms, manifest.churn_horizon_ms
    assert horizons == (material.horizons.goal_ms, material.horizons.churn_ms)
    counts = Counter(learned["item_id"])
    assert manifest.popular_items == sorted(counts, key=lambda name: (-counts[name], name))
    assert parts.vocabulary == material.vocabulary
    assert not parts.model.training
    assert (manifest.golden, manifest.metrics, manifest.described) == ([], {}, None)


def test_an_artefact_says_how_many_items_have_a_text():
    text = texts()
    manifest = assemble(learner_of(material_of(text=text)), ORDER, 1).manifest
    unmet = set(text.items) - set(FRAME.head(LEARNED)["item_id"])
    assert unmet >= {"item-100", "item-101"}
    assert manifest.described == Described(encoder="test", texts=7, items=len(text.items), unmet=len(unmet))


def test_of_no_epoch_there_is_no_artefact(material):
    with pytest.raises(TrainingError, match="training diverged: the loss is not a number"):
        assemble(learner_of(material), ORDER, 0)


def stretches(frame):
    """All windows of a log: item, behaviour, category and time of a user's last events at some moment."""
    lives = frame.partition_by("user_id", maintain_order=True)
    rows = [life.select("item_id", "behavior", "category", "timestamp").rows() for life in lives]
    return [life[max(0, end - RULE.events) : end] for life in rows for end in range(1, len(life) + 1)]


@pytest.mark.parametrize("events", [360, 3])
def test_golden_answers_are_those_to_windows_of_the_log(parts, events):
    frame = FRAME.head(events)
    golden = with_golden(parts, material_of(frame, learned=events)).manifest.golden
    windows = [one.window for one in golden]
    assert len(golden) == min(events, GOLDEN_WINDOWS)
    found, possible = [list(zip(*window, strict=True)) for window in windows], stretches(frame)
    assert all(one in possible for one in found)
    assert all(found.count(one) == 1 for one in found)
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    assert [one.forecast for one in golden] == answers
    assert {len(one.forecast.next_items) for one in golden} == {GOLDEN_TOP_K}
