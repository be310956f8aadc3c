import numpy as np
import pytest
import torch

from model import artifact
from model.artifact import read_manifest
from model.material import default_horizons, prepare
from model.order import Order
from model.recipe import SPARSE
from model.sequences import sequences
from model.training import TrainingError, train
from model.warm_start import RATE, WarmStart, WarmStartError, pairs, transplant
from model.window import WindowRule
from tests.model.conftest import BEHAVIORS, make_log
from tests.model.test_learner import make_learner

ORDER = {"epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def frame():
    return make_log(users=10, events=30)


@pytest.fixture(scope="module")
def old(frame, tmp_path_factory):
    """A model of the first half of a log, which knows one behaviour less and other items in another order."""
    place = tmp_path_factory.mktemp("old") / "model"
    train(frame, ("view", "purchase"), "purchase", place, train_until=0.5, **ORDER)
    return place


def test_what_both_know_moves_by_name_and_all_else_of_the_network_stays(old):
    learner, parts = make_learner(), artifact.load(old)
    model, vocabulary = learner.model, learner.material.vocabulary
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transplant(model, vocabulary, parts)
    items, older = vocabulary.items, parts.vocabulary.items
    both = set(items.names) & set(older.names)
    assert both
    assert set(items.names) - both
    for name in items.names:
        row = items.index[name]
        source, place = (parts.model, older.index[name]) if name in both else (None, row)
        wanted = before["item.weight"][row] if source is None else source.item.weight[place]
        assert torch.equal(model.item.weight[row], wanted)
        bias = (
            before["item_bias"][row - items.first + 1] if source is None else source.item_bias[place - older.first + 1]
        )
        assert torch.equal(model.item_bias[row - items.first + 1], bias)
    assert torch.equal(model.item.weight[: items.first], parts.model.item.weight[: older.first])
    assert torch.equal(model.item_bias[0], parts.model.item_bias[0])
    assert torch.equal(model.blocks[0].query.weight, parts.model.blocks[0].query.weight)
    answer = [vocabulary.behaviors.names.index(name) for name in ("view", "purchase")]
    assert torch.equal(model.behavior_head.bias[answer], parts.model.behavior_head.bias)
    rows = torch.tensor(answer) + vocabulary.behaviors.first
    wanted = parts.model.behavior_with_item.weight[parts.vocabulary.behaviors.first :]
    assert torch.equal(model.behavior_with_item.weight[rows[:, None], torch.tensor(answer)], wanted)
    steps = parts.model.behavior_after[parts.vocabulary.behaviors.first :]
    assert steps.any()
    assert torch.equal(model.behavior_after[rows[:, None], torch.tensor(answer)], steps)
    assert torch.equal(model.item_categories, before["item_categories"])


def test_shared_rows_come_first_and_then_the_names_that_both_know(old):
    items = artifact.load(old).vocabulary.items
    new, same = pairs(items, items)
    assert torch.equal(new, same)
    assert len(new) == items.rows


def test_a_network_of_another_size_is_refused(old):
    learner = make_learner(backbone="gru")
    with pytest.raises(WarmStartError, match="has another backbone; give its"):
        transplant(learner.model, learner.material.vocabulary, artifact.load(old))


def test_a_training_goes_on_from_a_model_and_says_so(old, frame, tmp_path):
    result = train(frame, BEHAVIORS, "purchase", tmp_path / "m", train_until=0.8, warm=WarmStart(old), **ORDER)
    manifest = read_manifest(tmp_path / "m")
    assert manifest.training.older == read_manifest(old).version
    assert manifest.goal_horizon_ms == read_manifest(old).goal_horizon_ms
    assert f"went on from: model {read_manifest(old).version}" in (tmp_path / "m" / "README.md").read_text()
    assert result.events == 240
    again = train(frame, BEHAVIORS, "purchase", tmp_path / "n", train_until=0.8, warm=WarmStart(old), **ORDER)
    assert again.version == result.version
    before, after = (artifact.load(place).model.blocks[0].query.weight for place in (old, tmp_path / "m"))
    assert not torch.equal(before, after), "it has learned"
    assert (after - before).norm() < before.norm(), "and is what it was"


def test_only_what_is_new_and_a_share_of_the_rest_is_learned():
    data = sequences(make_log(users=12, events=60))
    until, since = len(data), int(len(data) * 0.8)
    made = prepare(
        data, until, BEHAVIORS, "purchase", WindowRule(events=8), default_horizons(data.times_ms), since=since
    )
    learner = make_learner()
    learner.material = made
    counts = {}
    for replay in (0.0, 0.5, 1.0):
        learner.recipe = type(SPARSE)(replay=replay)
        ends = np.concatenate([starts + lengths - 1 for starts, lengths, _ in learner.batches(3)])
        counts[replay] = (int((data.order[ends] >= since).sum()), len(ends))
    new, everything = counts[1.0]
    assert counts[0.0] == (new, new)
    assert counts[0.5][0] == new
    assert new < counts[0.5][1] < everything


def test_what_cannot_be_gone_on_from_is_one_line(old, frame, tmp_path):
    for options, said in (
        ({"train_until": 0.5}, "has learned from all of these days already"),
        ({"preset": "base"}, "has another width"),
        ({"window": WindowRule(events=20)}, "has another window rule"),
        ({"warm": WarmStart(tmp_path)}, "is not a model"),
    ):
        with pytest.raises(TrainingError, match=said) as caught:
            train(frame, BEHAVIORS, "purchase", tmp_path / "m", **{"warm": WarmStart(old), **ORDER, **options})
        assert "\n" not in str(caught.value)


def test_it_goes_on_at_a_part_of_the_recipes_rate(old, tmp_path):
    material = make_learner().material
    options = {"behaviors": BEHAVIORS, "goal": "purchase", "device": "cpu"}
    anew, on = (Order(**options, warm=warm).with_recipe(material).recipe for warm in (None, WarmStart(old, 0.1)))
    assert (on.learning_rate, on.replay) == (RATE * anew.learning_rate, 0.1)
    assert 0 < RATE < 1
