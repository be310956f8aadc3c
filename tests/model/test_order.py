from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from model import devices
from model.order import Order, TrainingError
from model.recipe import DENSE, SPARSE, Augmentation, Recipe
from tests.model.conftest import BEHAVIORS
from tests.model.test_learner import make_learner

OPTIONS = {"behaviors": BEHAVIORS, "goal": "purchase", "device": "cpu"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'; there are small, base, large"),
        ({"backbone": "mamba"}, "no backbone 'mamba'; there are nextmove, gpt2, llama, bert, gru, lstm, rnn"),
        ({"train_until": 0}, r"train_until must be in \(0, 1\] and validation in \[0, 1\), got 0, 0.1"),
        ({"validation": 1}, "got 0.8, 1"),
        ({"protocol": "daily"}, "one cannot train by 'daily'; the protocol is time or leave-one-out"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"bfloat16": "some"}, "no bfloat16 'some'; there are auto, off, blocks, all"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(option, message):
    with pytest.raises(TrainingError, match=message) as caught:
        Order(**OPTIONS, **option)
    assert "\n" not in str(caught.value)


def test_an_option_is_worth_more_than_the_recipe_and_a_recipe_more_than_the_log():
    material = make_learner().material
    found = Order(**OPTIONS, bfloat16="all").with_recipe(material).recipe
    assert found == replace(DENSE if material.is_dense() else SPARSE, bfloat16="all")
    given = Recipe(epochs=7, bfloat16="off")
    assert Order(**OPTIONS, recipe=given).with_recipe(material).recipe == given
    changed = Order(**OPTIONS, recipe=given, epochs=2, bfloat16="all").with_recipe(material).recipe
    assert (changed.epochs, changed.bfloat16) == (2, "all")


@pytest.mark.parametrize(("fastest", "wanted"), [(torch.bfloat16, "blocks"), (torch.float32, "off")])
def test_bfloat16_is_for_devices_that_multiply_it_faster(monkeypatch, fastest, wanted):
    monkeypatch.setattr(devices, "fastest_dtype", lambda device: fastest)
    material = make_learner().material
    chosen = Order(**OPTIONS).with_recipe(material)
    assert chosen.recipe.bfloat16 == wanted
    assert chosen.identity()["recipe"]["bfloat16"] == wanted  # another machine's checkpoint may be of another training
    for asked in ("off", "blocks", "all"):
        assert Order(**OPTIONS, bfloat16=asked).with_recipe(material).recipe.bfloat16 == asked


def test_processes_of_one_training_compute_in_one_precision(monkeypatch):
    """Each would find its own answer; the leader's counts."""
    monkeypatch.setattr(devices, "fastest_dtype", lambda device: torch.float32)
    leader = SimpleNamespace(agree=lambda value: 1.0, size=2)
    assert Order(**OPTIONS, group=leader).with_recipe(make_learner().material).recipe.bfloat16 == "blocks"


def test_augmentation_is_worth_more_than_the_recipe():
    material = make_learner().material
    given = Recipe(crop=0.1, mask_items=0.6, reorder=0.3)
    asked = Augmentation(crop=0.5, mask=0.0)
    found = Order(**OPTIONS, recipe=given, augmentation=asked, bfloat16="off").with_recipe(material).recipe
    assert found == replace(given, crop=0.5, mask_items=0.0, bfloat16="off")


@pytest.mark.parametrize("name", ["crop", "mask", "reorder"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_augmentation_is_a_share(name, share):
    with pytest.raises(ValueError, match=rf"{name} must be a share in \[0, 1\], got {share}"):
        Augmentation(**{name: share})


def test_what_decides_the_outcome_is_in_the_identity():
    first = Order(**OPTIONS).identity()
    assert Order(**OPTIONS, threads=3).identity() == first
    assert Order(**OPTIONS, seed=3).identity() == {**first, "seed": 3}
