import pytest

from model.course import Clock, schedule


def test_the_clock_follows_whichever_runs_out_first():
    assert Clock(steps=10, step=5).share() == 0.5
    assert Clock(steps=10, step=5, budget_s=1e-9).share() == 1.0
    assert Clock(steps=10, step=20).share() == 1.0


def test_the_learning_rate_rises_then_falls():
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.02 + 0.98 / 2)
    assert schedule(1.0, 0.1) == pytest.approx(0.02)
