import pytest

from model.window import WindowRule


@pytest.mark.parametrize("name", ["events", "age_ms", "session_gap_ms"])
def test_a_rule_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        WindowRule(**{name: 0})
