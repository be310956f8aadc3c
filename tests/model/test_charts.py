import re
from xml.etree import ElementTree as ET

import pytest

from model import charts
from model.reliability import Bin

DRAWN = {
    "beside": lambda: charts.beside('a < b & "c"', [("model", 0.5, (0.4, 0.6)), ("repeat", 0.25, None)]),
    "curve": lambda: charts.curve("next item", {1: 3.0, 2: 2.0}, {1: 3.5, 2: 2.5}, 2),
    "one epoch": lambda: charts.curve("all", {1: 3.0}, {}, None),
    "diagram": lambda: charts.diagram("purchase", [Bin(10, 0.2, 0.3), Bin(5, 0.9, 0.8)]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_one_element_with_a_description_and_nothing_from_elsewhere(name):
    svg = DRAWN[name]()
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert len(root.attrib["aria-label"]) > 10
    assert not re.findall(r"https?://|<script|<image|@import", svg)
    assert "NaN" not in svg
    assert not re.findall(r"#00000\d", svg)
    assert "var(--model)" in svg or name == "one epoch"


def test_the_same_figures_give_the_same_picture_and_names_are_not_shared():
    assert DRAWN["curve"]() == DRAWN["curve"]()
    names = [set(re.findall(r' id="([^"]+)"', DRAWN[name]())) for name in ("curve", "diagram")]
    assert not names[0] & names[1]


def test_descriptions_tell_the_figures():
    assert "Loss of next item by epoch: training 3.000, 2.000; validation 3.500, 2.500" in DRAWN["curve"]()
    assert "said 0.20, came 0.30 of 10; said 0.90, came 0.80 of 5" in DRAWN["diagram"]()
    assert "a &lt; b &amp; &quot;c&quot;: model 0.5000, repeat 0.2500" in DRAWN["beside"]()
