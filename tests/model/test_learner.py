import math

import numpy as np
import pytest
import torch

from model import losses
from model.assembly import new_model
from model.callbacks import Callback
from model.config import BACKBONES
from model.learner import Learner, groups
from model.material import default_horizons, prepare
from model.recipe import Recipe
from model.sequences import sequences
from model.window import WindowRule
from tests.model.conftest import BEHAVIORS, make_log


class Heard(Callback):
    def __init__(self, steps):
        self.on_step = steps.append


def make_learner(reports=None, learn=0.9, backbone="nextmove", options=None, still=False, **recipe):
    """A learner on a small log; `still` without dropout and hidden names, `options` of the learner itself."""
    data = sequences(make_log(users=12, events=30))
    material = prepare(
        data, int(len(data) * learn), BEHAVIORS, "purchase", WindowRule(events=16), default_horizons(data.times_ms)
    )
    torch.manual_seed(0)
    calm = {"dropout": 0.0, "mask_items": 0.0, "mask_categories": 0.0, "bfloat16": "off"} if still else {}
    chosen = Recipe(**{"bfloat16": "blocks", **calm, **recipe})
    model = new_model(material, "small", chosen, backbone)
    return Learner(model, material, chosen, 0, Heard([] if reports is None else reports), **(options or {}))


def test_learning_lowers_the_loss_and_keeps_the_best_weights():
    learner = make_learner(epochs=6, positions=128)
    at_start = learner.validate(learner.to_check)["loss"]
    epoch, metrics = learner.run()
    assert not learner.model.narrow
    assert 1 <= epoch <= 6
    assert metrics["loss"] < at_start - 0.5
    again = make_learner(epochs=6, positions=128)
    assert again.validate(again.to_check)["loss"] == at_start
    assert learner.validate(learner.to_check)["loss"] == pytest.approx(metrics["loss"], abs=1e-3)


def test_a_validation_that_never_improves_stops_after_the_patience(monkeypatch):
    learner = make_learner(epochs=20, patience=2, positions=512)
    losses = iter([3.0, 5.0, 4.0, 1.0])
    monkeypatch.setattr(learner, "validate", lambda _: {"loss": next(losses)})
    epoch, metrics = learner.run()
    assert (epoch, metrics) == (1, {"loss": 3.0})
    assert next(losses) == 1.0  # three epochs were run


def test_a_loss_that_is_not_a_number_keeps_nothing(monkeypatch):
    learner = make_learner(epochs=2)
    monkeypatch.setattr(learner, "step", lambda *_: math.nan)
    assert learner.run() == (0, {})


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_every_backbone_learns_by_the_same_steps(backbone):
    learner = make_learner(epochs=2, positions=64, backbone=backbone, crop=0.5, reorder=0.5)
    checked = learner.to_check
    before = learner.validate(checked)["loss"]
    learner.run(stop_after=2)
    assert learner.validate(checked)["loss"] < before


def test_bert_learns_what_comes_before_a_hidden_event_and_after_the_last():
    learner = make_learner(backbone="bert", hidden=0.5)
    hidden, learns = learner.hide(np.ones((3, 8), np.bool_), np.array([8, 5, 1]))
    for row, length in enumerate((8, 5, 1)):
        assert learns[row, length - 1]
        assert (learns[row, : length - 1] == hidden[row, 1:length].numpy()).all()


def test_progress_rises_to_its_end():
    reports = []
    make_learner(reports, epochs=2, positions=128).run()
    steps = [one.step for one in reports if one.phase == "train"]
    assert steps == sorted(steps)
    assert steps[-1] >= 800
    assert {one.phase for one in reports} == {"train", "validate"}
    assert all(one.loss > 0 for one in reports if one.phase == "train")


def test_a_batch_holds_about_as_many_events_as_asked_and_each_chunk_once():
    learner = make_learner(positions=64)
    begins = [int(begin) for _, _, some in learner.batches(5) for begin in some]
    assert len(set(begins)) == len(begins)
    assert max(int(lengths.sum()) for _, lengths, _ in learner.batches(5)) <= 64 + 16


def test_only_matrices_decay_and_none_that_begins_as_counts():
    model = make_learner().model
    matrices, vectors = groups(model, 0.5)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))
    assert [weight.shape for weight in vectors["params"] if weight.ndim > 1] == [model.behavior_after.shape]
    assert all(weight is not model.behavior_after for weight in matrices["params"])


def test_a_learner_does_not_choose_a_precision():
    with pytest.raises(ValueError, match=r"a learner wants to be told what to compute in bfloat16"):
        make_learner(bfloat16="auto")


@pytest.mark.parametrize(("narrow", "wanted"), [("off", torch.float32), ("blocks", torch.bfloat16)])
def test_products_with_the_catalogue_are_as_narrow_as_the_recipe_says(monkeypatch, narrow, wanted):
    seen = []
    real = losses.log_probability

    def heard(*given):
        seen.append(given[-1])
        return real(*given)

    monkeypatch.setattr(losses, "log_probability", heard)
    make_learner(epochs=1, positions=512, bfloat16=narrow).run()
    assert set(seen) == {wanted}


def test_half_precision_learns_much_the_same():
    off, blocks, everything = (
        make_learner(epochs=2, positions=128, still=True, bfloat16=narrow).run()[1]["loss"]
        for narrow in ("off", "blocks", "all")
    )
    assert blocks == pytest.approx(off, rel=0.02)
    assert everything == pytest.approx(off, rel=0.02)
    assert len({off, blocks, everything}) == 3
