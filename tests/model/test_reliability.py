import numpy as np
import pytest

from model.calibration import Calibration, Line
from model.questions import Choice, Ranking, Waiting, YesNo
from model.reliability import Bin, bins, effects, reliability

AT = np.arange(4)


def test_bins_hold_what_was_said_and_what_came():
    found = bins(np.array([0.01, 0.03, 0.99, 1.0]), np.array([False, True, True, True]))
    assert found == [Bin(2, pytest.approx(0.02), 0.5), Bin(2, pytest.approx(0.995), 1.0)]


def asked():
    probability = np.array([0.5, 0.5, 0.25, 0.75])
    mixes = np.stack((probability, 1 - probability), axis=1)
    return [
        Ranking("item", AT, {"model": np.array([1, 2, 0, 1])}, np.array([0.4, 0.4, 0.4, np.nan]), (1,)),
        Choice(AT, np.array([0, 0, 1, 1]), {"model": mixes}, ("view", "cart")),
        Waiting(AT, np.ones(4), {"model": np.ones((4, 3))}),
        YesNo("purchase", AT, np.array([True, False, False, True]), {"model": probability}),
    ]


def test_every_head_that_says_a_probability_has_its_bins():
    found = reliability(asked())
    assert list(found) == ["next item", "next behavior", "purchase"]
    assert all(sum(one.events for one in each) == 4 for each in found.values())
    assert found["next item"][-1] == Bin(3, pytest.approx(0.4), pytest.approx(1 / 3))


def test_the_effect_is_that_of_taking_calibration_away():
    nothing = effects(asked(), Calibration())
    assert list(nothing) == ["behavior", "purchase"]
    assert all(one.log_loss[0] == pytest.approx(one.log_loss[1]) for one in nothing.values())
    found = effects(asked(), Calibration(behavior_temperature=2.0, purchase=Line(1.0, 5.0)))
    assert found["purchase"].log_loss[1] == pytest.approx(nothing["purchase"].log_loss[1])
    assert found["purchase"].log_loss[0] > found["purchase"].log_loss[1]
    assert found["behavior"].ece[0] != pytest.approx(found["behavior"].ece[1])
