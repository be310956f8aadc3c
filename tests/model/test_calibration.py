from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import measures
from model.calibration import (
    WAITS,
    Calibration,
    Line,
    WaitingEffect,
    awaited,
    fit_behaviors,
    fit_question,
    fit_times,
    heated,
    line,
    quantile_line,
    temperature,
)
from model.config import QUANTILES


def drawn(events=4000, classes=4, seed=0):
    """Probabilities, and answers drawn from them."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), events)
    actual = (probabilities.cumsum(1) < random.random(events)[:, None]).sum(1)
    return probabilities, np.minimum(actual, classes - 1)


@pytest.mark.parametrize("hot", [0.4, 1.0, 2.5])
def test_a_temperature_that_was_put_in_is_found(hot):
    probabilities, actual = drawn()
    assert temperature(heated(probabilities, 1 / hot), actual) == pytest.approx(hot, rel=0.06)
    assert heated(heated(probabilities, hot), 1 / hot) == pytest.approx(probabilities)


@pytest.mark.parametrize(("scale", "bias"), [(0.5, -1.0), (2.0, 0.7), (1.0, 0.0)])
def test_a_line_that_was_put_in_is_found_and_undone(scale, bias):
    probabilities, actual = drawn(classes=2, events=20_000)
    usual = abs(probabilities[:, 1] - 0.5) < 0.49  # what is nearly sure is cut off at the seventh decimal
    truth, happened = probabilities[usual, 1], actual[usual] == 1
    wrong = Line(scale, bias).undone(truth)
    found = line(wrong, happened)
    assert (found.scale, found.bias) == pytest.approx((scale, bias), abs=0.08)
    assert Line(scale, bias).applied(wrong) == pytest.approx(truth)


def test_a_line_is_no_worse_than_the_plain_rate_even_for_scores_that_mislead():
    probabilities, actual = drawn(classes=2)
    happened = actual == 1
    misled = 1 - probabilities[:, 1]
    found, effect = fit_question(misled, happened)
    rate = np.full(len(happened), happened.mean())
    plain = measures.value(measures.binary_log_loss(rate, happened), len(happened))
    assert found.scale > 0
    assert effect.log_loss[1] < plain + 1e-3 < effect.log_loss[0]
    assert effect.ece[1] < effect.ece[0]


def test_answers_that_are_all_the_same_stay_finite():
    probability = np.array([0.0, 0.5, 1.0])
    for happened in (np.zeros(3, bool), np.ones(3, bool)):
        found = line(probability, happened)
        assert np.isfinite([found.scale, found.bias]).all()
    assert (line(np.zeros(0), np.zeros(0, bool)), temperature(np.zeros((0, 2)), np.zeros(0, np.int64))) == (Line(), 1.0)
    assert np.isfinite(temperature(np.array([[1.0, 0.0]]), np.array([0])))


def test_a_temperature_lowers_the_loss_and_changes_no_choice():
    probabilities, actual = drawn()
    sharp = heated(probabilities, 0.3)
    found, effect = fit_behaviors(sharp, actual)
    assert (heated(sharp, found).argmax(1) == sharp.argmax(1)).all()
    assert effect.log_loss[1] < effect.log_loss[0]
    assert effect.ece[1] < effect.ece[0]
    assert effect.events == len(actual)


def waits(events=20_000, seed=0):
    """Quantiles of log seconds that are right, [E, 3], and waits drawn from them: normal around a mean of their own."""
    random = np.random.default_rng(seed)
    mean = random.uniform(2, 9, events)
    told = mean[:, None] + np.array([NormalDist().inv_cdf(level) for level in QUANTILES])
    return told, random.normal(mean, 1)


@pytest.mark.parametrize(("scale", "bias"), [(0.5, 1.0), (1.25, -2.0), (1.0, 0.0)])
def test_a_line_of_a_quantile_that_was_put_in_is_found(scale, bias):
    told, actual = waits()
    for column, level in zip(told.T, QUANTILES, strict=True):
        found = quantile_line((column - bias) / scale, actual, level)
        assert (found.scale, found.bias) == pytest.approx((scale, bias), abs=0.15)


@given(st.integers(0, 10**6), st.integers(WAITS, 2 * WAITS), st.floats(-2, 2), st.booleans())
def test_calibrated_waits_are_no_worse_than_before_nor_than_the_same_quantiles_for_all(seed, events, slope, crossing):
    told, actual = waits(events, seed)
    told = slope * told[:, ::-1] if crossing else slope * told
    lines, effect = fit_times(told, actual)
    constant = np.tile(np.quantile(actual, QUANTILES), (events, 1))
    plain = measures.value(measures.pinball(constant, actual, QUANTILES), events)
    assert effect.pinball[1] <= min(plain, effect.pinball[0]) + 1e-9
    given_ = awaited(torch.from_numpy(told.copy()), Calibration(times=lines).of_waits())
    assert (given_.diff(dim=-1) >= 0).all()
    after = measures.value(measures.pinball(given_.numpy(), actual, QUANTILES), events)
    assert effect == WaitingEffect(events, (effect.pinball[0], after), effect.inside)
    inside = ((actual >= given_[:, 0].numpy()) & (actual <= given_[:, 2].numpy())).mean()
    assert effect.inside[1] == inside


def test_too_few_waits_are_left_as_they_are():
    told, actual = waits(WAITS - 1)
    assert fit_times(told, actual) == ((), None)
    assert fit_times(*waits(WAITS))[1].events == WAITS


def test_lines_that_cross_leave_quantiles_in_order_by_hand():
    lines = (Line(1.0, 3.0), Line(2.0, 0.0), Line(0.0, 1.0))
    found = awaited(torch.tensor([[1.0, 1.5, 9.0]]), Calibration(times=lines).of_waits())
    assert found.tolist() == [[1.0, 1 * 1.5 * 2, 1 + 3.0]]


def test_nothing_fitted_changes_nothing():
    logits = torch.randn(5, dtype=torch.float64)
    assert torch.equal(awaited(logits[:3], Calibration().of_waits()), logits[:3])
    assert torch.equal(Calibration().purchase.apply(logits), logits)
    assert Calibration().behavior_temperature == 1.0
