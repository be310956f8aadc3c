"""Rate and cost from samples."""

import pytest

from benchmarks.stream.failures import TooShort
from benchmarks.stream.meter import Sample, figures


def test_the_first_tenth_is_left_out() -> None:
    samples = [
        Sample(0.0, 0, 1.0, 5.0),
        Sample(2.0, 5, 3.0, 5.0),
        Sample(3.0, 20, 4.0, 6.0),  # the first with a tenth of 100
        Sample(5.0, 60, 5.5, 6.5),
        Sample(7.0, 100, 6.0, 7.0),
        Sample(8.0, 100, 9.0, 9.0),
    ]
    found = figures(samples, 100)
    assert found.events_per_s == (100 - 20) / (7.0 - 3.0)
    assert found.cpu_us_per_event == pytest.approx((6.0 - 4.0) / 80 * 1e6)
    assert found.broker_cpu_us_per_event == pytest.approx((7.0 - 6.0) / 80 * 1e6)
    assert found.first_answer_s == 2.0


def test_what_came_between_two_looks_counts_from_the_look_before() -> None:
    found = figures([Sample(0.5, 0, 0.0, 0.0), Sample(1.0, 50, 0.25, 0.0)], 50)
    assert found.events_per_s == 50 / 0.5


def test_one_look_is_no_measurement() -> None:
    with pytest.raises(TooShort):
        figures([Sample(0.5, 50, 0.25, 0.0)], 50)
