import math

import numpy as np
import pytest
import torch

from model.answers import distribution, table
from model.config import BACKBONES
from model.features import pad
from model.learner import RANKED, Clock, Learner, Recipe, groups, schedule
from model.material import default_horizons, prepare
from model.sequences import sequences
from model.training import new_model
from model.window import WindowRule
from tests.model.conftest import BEHAVIORS, make_log


def make_learner(reports=None, learn=0.9, backbone="nextmove", options=None, still=False, **recipe):
    """A learner on a small log; `still` without dropout and hidden names, `options` of the learner itself."""
    data = sequences(make_log(users=12, events=30))
    material = prepare(
        data, int(len(data) * learn), BEHAVIORS, "purchase", WindowRule(events=16), default_horizons(data.times_ms)
    )
    torch.manual_seed(0)
    calm = {"dropout": 0.0, "mask_items": 0.0, "mask_categories": 0.0, "bfloat16": False} if still else {}
    chosen = Recipe(**{**calm, **recipe})
    model = new_model(material, "small", chosen, backbone)
    report = (reports if reports is not None else []).append
    return Learner(model, material, chosen, 0, report, **(options or {}))


def test_learning_lowers_the_loss_and_keeps_the_best_weights():
    learner = make_learner(epochs=6, positions=128)
    at_start = learner.validate(learner.positions_to_check())["loss"]
    epoch, metrics = learner.run()
    assert not learner.model.narrow
    assert 1 <= epoch <= 6
    assert metrics["loss"] < at_start - 0.5
    again = make_learner(epochs=6, positions=128)
    assert again.validate(again.positions_to_check())["loss"] == at_start
    assert learner.validate(learner.positions_to_check())["loss"] == pytest.approx(metrics["loss"], abs=1e-3)


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
    checked = learner.positions_to_check()
    before = learner.validate(checked)["loss"]
    learner.run(stop_after=2)
    assert learner.validate(checked)["loss"] < before


def test_bert_learns_what_comes_before_a_hidden_event_and_after_the_last():
    learner = make_learner(backbone="bert", hidden=0.5)
    hidden, learns = learner.hide(np.ones((3, 8), np.bool_), np.array([8, 5, 1]))
    for row, length in enumerate((8, 5, 1)):
        assert learns[row, length - 1]
        assert (learns[row, : length - 1] == hidden[row, 1:length].numpy()).all()


def test_the_ranking_of_a_validation_by_the_plainest_code():
    reports = []
    learner = make_learner(reports, best_by=RANKED, dropout=0.0)
    checked = learner.positions_to_check()
    found = learner.validate(checked)
    assert reports[-1].found == found
    data, material = learner.material.data, learner.material
    gains = []
    for last in checked.tolist():
        wanted = material.checked.next[last]
        if wanted < 0:
            continue
        start = int(data.window_starts(np.array([last]), material.rule)[0])
        batch = pad(material.columns, np.array([start]), np.array([last - start + 1]), last - start + 1)
        with torch.inference_mode():
            heads = learner.model(batch, last=True)
        against = table(learner.model.item_table(), material.vocabulary.items, material.vocabulary.item_counts)
        scores = distribution(heads.items, batch.item_ids, against, None)[0, 1:]
        row = material.item_rows[wanted] - material.vocabulary.items.first
        rank = int((scores >= scores[row]).sum()) if row >= 0 else 99
        gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    assert found[RANKED] == pytest.approx(sum(gains) / len(gains), abs=1e-4)


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


def test_the_clock_follows_whichever_runs_out_first():
    assert Clock(steps=10, step=5).share() == 0.5
    assert Clock(steps=10, step=5, budget_s=1e-9).share() == 1.0
    assert Clock(steps=10, step=20).share() == 1.0


def test_the_learning_rate_rises_then_falls():
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.02 + 0.98 / 2)
    assert schedule(1.0, 0.1) == pytest.approx(0.02)


def test_only_matrices_decay():
    model = make_learner().model
    matrices, vectors = groups(model, 0.5)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))
    assert all(weight.ndim <= 1 for weight in vectors["params"])


@pytest.mark.parametrize("recipe", [{}, {"backbone": "bert", "crop": 0.5, "reorder": 0.5}])
def test_a_run_that_goes_on_from_any_checkpoint_gives_the_same_weights_to_the_bit(recipe):
    kept = []
    whole = make_learner(options={"keep": kept.append, "keep_every_s": 0}, epochs=3, positions=128, **recipe)
    torch.manual_seed(1)
    result = whole.run()
    steps = whole.clock.step
    assert len(kept) == steps + 3  # after each step and after each epoch
    for number in (0, 1, steps // 2, len(kept) - 2, len(kept) - 1):
        again = make_learner(epochs=3, positions=128, **recipe)
        torch.manual_seed(2)  # whatever was drawn since
        again.restore(kept[number])
        assert again.run() == result
        assert again.curve == whole.curve
        assert torch.equal(again.weights.log_variance, whole.weights.log_variance)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


def test_a_checkpoint_is_a_copy():
    kept = []
    make_learner(options={"keep": kept.append, "keep_every_s": 1e9}, epochs=2, positions=128).run()
    first, second = (checkpoint.tensors["model.item_bias"] for checkpoint in kept)
    assert not torch.equal(first, second)


def test_half_precision_learns_much_the_same():
    losses = [make_learner(epochs=2, positions=128, still=True, bf16=bf16).run()[1]["loss"] for bf16 in (False, True)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
