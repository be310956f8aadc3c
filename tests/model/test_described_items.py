import math

import numpy as np
import polars as pl
import pytest
import torch

from model.artifact import load
from model.config import NextMoveConfig
from model.described_items import BOUND, DescribedItems, bounded, rarely_met
from model.engine import Engine
from model.forecast import difference
from model.item_text import ItemText
from model.material import default_horizons, prepare
from model.sequences import sequences
from model.training import train
from model.window import Step, Window, WindowRule
from tests.model.conftest import BEHAVIORS, make_log
from tests.model.test_state_cache import Stream

COUNTS = np.array([30, 10, 2, 1, 1, 0, 0, 0])
TEXTS = np.array([0, -1, 1, 1, 0, 0, 1, 2])


@pytest.fixture
def described():
    config = NextMoveConfig(item_rows=3 + len(COUNTS), item_first=3, width=4, texts=3, text_width=5)
    torch.manual_seed(0)
    made = DescribedItems(config)
    vectors = np.eye(5, dtype=np.float32)[:3]
    made.fill(vectors, TEXTS, ~rarely_met(COUNTS, TEXTS, 2), COUNTS)
    return made


def test_who_is_rare_has_a_text_and_too_few_events(described):
    assert rarely_met(COUNTS, TEXTS, 2).tolist() == [False, False, True, True, True, True, True, True]
    assert described.unmet.tolist() == [False] * 6 + [True] * 3
    met_once, total, rare = 2, 44, (2 + 1 + 1) / 3 / 44
    assert described.rare_bias.item() == pytest.approx(math.log(rare))
    new = min(met_once / total / 3, 1 / 5)
    assert described.offset.tolist() == pytest.approx([0] * 6 + [math.log(new / rare)] * 3)


def test_a_vector_is_that_of_the_text_and_a_bounded_difference(described):
    own = torch.randn(len(COUNTS), 4) * 10
    table = described.table(own)
    by_text = described.project.weight.t()  # the texts' vectors are unit vectors
    torch.testing.assert_close(table[5:], by_text[:3])  # nothing but the text
    torch.testing.assert_close(table[1], bounded(own[1]))  # no text
    torch.testing.assert_close(table[0], by_text[0] + bounded(own[0]))
    assert bounded(own).abs().max() <= BOUND
    torch.testing.assert_close(described(torch.tensor([[0, 1, 2, 3, 8]]))[0, -2:], by_text[[0, 0]])
    assert not described(torch.tensor([0, 1, 2])).any()


def test_answers_and_learning_see_the_same_texts(described):
    rows = torch.arange(3 + len(COUNTS))
    learning = described.train()(rows)
    torch.testing.assert_close(described.eval()(rows), learning)
    assert described.projected is not None
    assert described.train().projected is None


def test_what_nobody_met_cannot_come_while_learning(described):
    own = torch.zeros(1 + len(COUNTS))
    assert described.train().bias(own)[6:].tolist() == [-math.inf] * 3
    assert described.bias(own)[3:6].tolist() == [described.rare_bias.item()] * 3
    assert described.eval().bias(own).isfinite().all()
    assert described.bias(own)[:3].tolist() == [0, 0, 0]


def test_items_without_a_difference_are_shown_as_unknown_ones(described):
    assert described.shown(torch.tensor([0, 1, 3, 4, 5, 10])).tolist() == [0, 1, 3, 4, 2, 2]


def texts_of(frame, extra=()):
    """Items of one category have one text."""
    names = sorted({*frame["item_id"], *extra})
    rows = {name: int(name.split("-")[1]) % 7 for name in names}
    return ItemText(
        "test", np.eye(7, dtype=np.float32), rows, catalogue=bool(extra), categories={"item-100": "category-2"}
    )


def test_the_vocabulary_holds_what_is_described_and_targets_stay_what_they_are():
    frame = make_log(users=8, events=20)
    data = sequences(frame)
    horizons = default_horizons(data.times_ms)
    rule = WindowRule(events=16)
    with_text = prepare(data, 100, BEHAVIORS, "purchase", rule, horizons, texts_of(frame, ["item-100"]))
    assert {"item-100", *frame["item_id"]} == set(with_text.vocabulary.items.names)
    counts = np.array(with_text.vocabulary.item_counts)
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == 0
    row = with_text.vocabulary.items.index["item-100"] - with_text.vocabulary.items.first
    category = with_text.vocabulary.item_categories[row]
    assert category == with_text.vocabulary.categories.row("category-2")
    named = with_text.columns.item_rows
    assert (with_text.item_rows[named >= with_text.vocabulary.items.first] >= with_text.vocabulary.items.first).all()
    log_alone = prepare(data, 100, BEHAVIORS, "purchase", rule, horizons, texts_of(frame))
    assert set(log_alone.vocabulary.items.names) == {data.items[at] for at in np.flatnonzero(data.order < 100).tolist()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Users stay within one text's items; the catalogue knows four items more, whom nobody met."""
    random = np.random.default_rng(0)
    rows = [
        (f"user-{user}", 1000 * step + user, "view", f"item-{7 * int(random.integers(12)) + user % 7}", None)
        for user in range(56)
        for step in range(20)
    ]
    schema = {
        "user_id": pl.String,
        "timestamp": pl.Int64,
        "behavior": pl.String,
        "item_id": pl.String,
        "category": pl.String,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row").sort("timestamp", maintain_order=True)
    place = tmp_path_factory.mktemp("described") / "model"
    new = [f"item-{number}" for number in (700, 701, 702, 703)]
    train(
        frame,
        ("view",),
        "view",
        place,
        epochs=8,
        device="cpu",
        text=texts_of(frame, new),
        window=WindowRule().with_stride(25),
    )
    return place


def test_an_item_that_nobody_met_is_ranked_by_its_text(trained):
    engine = Engine.load(trained, device="cpu")
    names = engine.vocabulary.items.names
    new = [names.index(f"item-{700 + kind}") for kind in range(4)]
    windows = [Window([f"item-{kind}", f"item-{kind + 7}"], ["view"] * 2, [None] * 2, [0, 1000]) for kind in range(4)]
    assert engine.item_scores(windows)[:, new].argmax(1).tolist() == [0, 1, 2, 3]
    cold = Window(["item-702"], ["view"], [None], [0])  # a window of nothing but such an item
    (answer,) = engine.predict([cold])
    assert answer.fallback is None
    assert {int(one["item_id"].split("-")[1]) % 7 for one in answer.next_items[:5]} == {2}


def test_the_card_says_that_texts_describe_items_and_a_loaded_model_knows_what_they_come_to(trained):
    assert "by their texts" in (trained / "README.md").read_text()
    assert load(trained).model.described.projected is not None


def test_states_that_are_kept_give_the_same_answers(trained):
    plain, kept = Engine.load(trained, device="cpu"), Engine.load(trained, device="cpu")
    kept.keep_states(1 << 28, buckets=(1, 4))
    items = ["item-3", "item-703", "unheard", None, "item-10", "item-703"]
    windows = [Window(items[:n], ["view"] * n, [None] * n, list(range(n))) for n in range(1, 7)]
    steps = [Step("u", 0, n - 2, n - 1, 0, n, items[n - 1], "view", None, n - 1) for n in range(1, 7)]
    pairs = zip(plain.predict(windows), kept.predict(Stream(windows, steps)), strict=True)
    assert max(difference(*pair) for pair in pairs) < 1e-5
    assert (kept.kept.hits, kept.kept.refills) == (5, 1)
