import msgspec
import pytest

from model.artifact import Compared, read_manifest
from model.calibration import Calibration, Effect, WaitingEffect
from model.card import LICENCE, LIMITS, card, facts, moment
from model.window import WindowRule


@pytest.fixture(scope="module")
def manifest(model_directory):
    return read_manifest(model_directory)


def test_the_card_of_a_model_is_in_its_directory(manifest, model_directory):
    assert (model_directory / "README.md").read_text() == card(manifest)


def test_measures_stand_with_interval_and_best_baseline(manifest):
    compared = {"item HR@10": Compared(0.5, (0.4, 0.6), "repeat", 0.25, "ahead"), "item ECE": Compared(0.1, None)}
    text = card(msgspec.structs.replace(manifest, compared=compared, metrics={"validation loss": 2.0}))
    assert "| validation item HR@10 | 0.5000 | 0.4000 – 0.6000 | repeat 0.2500 | ahead |" in text
    assert "| validation item ECE | 0.1000 |  |  |  |" in text
    assert "| validation loss | 2.0000 | | | |" in text


def test_what_calibration_did_is_told(manifest):
    effects = {"purchase": Effect(100, (0.6, 0.5), (0.1, 0.05))}
    text = card(msgspec.structs.replace(manifest, calibration=Calibration(effects=effects)))
    assert "| purchase | 100 | 0.6000 → 0.5000 | 0.1000 → 0.0500 |" in text
    assert "pinball loss" not in text
    waiting = WaitingEffect(1234, (0.26, 0.25), (0.7, 0.79))
    told = card(msgspec.structs.replace(manifest, calibration=Calibration(effects=effects, waiting=waiting)))
    line = "Times to the next event, 1,234 events: pinball loss 0.2600 → 0.2500 log s; 0.7000 → 0.7900 within the outer quantiles."
    assert line in told.splitlines()
    assert "## Calibration" not in card(msgspec.structs.replace(manifest, calibration=None))


def test_a_model_that_was_not_measured_says_so(manifest):
    assert "Nothing was measured" in card(msgspec.structs.replace(manifest, compared={}, metrics={}))


def test_use_limits_and_licence_are_always_there(manifest):
    text = card(manifest)
    assert all(limit in text for limit in LIMITS)
    assert LICENCE[1:] in text
    assert "## Intended use" in text
    assert dict(facts(manifest))["learned from"] == "1,600 events of 40 users"


@pytest.mark.parametrize(("stride", "told"), [(1, "the last 50 events, "), (25, "the last 26 to 50 events, ")])
def test_a_window_is_as_long_as_its_rule_allows(manifest, stride, told):
    window = WindowRule().with_stride(stride)
    assert dict(facts(msgspec.structs.replace(manifest, window=window)))["window"].startswith(told)


def test_a_moment_no_calendar_knows_is_a_number():
    assert moment(0) == "1970-01-01 00:00 UTC"
    assert moment(10**18) == f"{10**18} ms UTC"
