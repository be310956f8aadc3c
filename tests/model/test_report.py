import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import msgspec
import polars as pl
import pytest

from model import report
from model.artifact import read_manifest
from model.evaluation import evaluate
from model.report import ReportError
from model.training import train
from model.window import WindowRule
from tests.model.conftest import BEHAVIORS, make_log

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks that elements close in order; collects text outside of styles."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.attributes = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def sound(page):
    """No hole, nothing that is not a number, nothing from elsewhere; its text."""
    reader, text = read(page)
    assert not re.search(r"\b(nan|NaN|None|inf|Undefined)\b|\{\{|\{%", text)
    assert "NaN" not in page
    assert not {"script", "link", "img", "iframe"} & reader.seen
    assert not [value for name, value in reader.attributes if name in ("src", "href") and not value.startswith("#")]
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not re.search(r"<(td|dd|th)[^>]*>\s*</", page)
    return text


@pytest.fixture(scope="module")
def made(engine, log):
    return evaluate(engine, log), engine.manifest


@pytest.fixture(scope="module")
def page(made):
    return report.page(*made)


def test_the_page_stands_alone(page):
    assert page.lstrip().startswith("<!DOCTYPE html>")
    text = sound(page)
    for title in (
        "Model and baselines",
        "Where it holds",
        "Behaviours",
        "believed",
        "learned",
        "Protocol",
        "Model card",
    ):
        assert title in text


def test_every_figure_of_every_contender_is_in_a_table(page, made):
    text = read(page)[1]
    for own in made[0].scores.values():
        assert all(f"{value:.4f}" in text for value in own.values())
    assert all(name in text for name in made[0].scores["model"])


def test_tables_can_be_read_aloud(page):
    assert page.count("<table>") == page.count("<caption>") >= 5
    assert not re.search(r"<th(?![^>]*scope=)[ >]", page)
    assert all('role="img" aria-label=' in svg for svg in re.findall(r"<svg [^>]*>", page))


def test_the_protocol_is_told(page, made):
    text = read(page)[1]
    for value in asdict(made[0].protocol).values():
        assert value in text
    for word in (
        "by global time",
        "80 %",
        "by falling probability",
        "decided when to stop",
        "0 of the training",
        "left out",
    ):
        assert word in text


def test_the_json_beside_it_holds_the_same(made, tmp_path):
    html, beside = report.write(tmp_path / "page.html", *made)
    assert html.read_text() == report.page(*made)
    document = json.loads(beside.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["scores"] == made[0].scores
    assert document["against_best"]["item NDCG@10"]["verdict"] in ("ahead", "level", "behind")
    assert document["model"]["version"] == made[1].version
    assert len(document["model"]["curve"]) == 4  # two epochs, and two of the second pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.json"]


def lone(**columns):
    return make_log(users=4, events=30).with_columns(**columns)


@pytest.mark.parametrize(
    "frame",
    [
        make_log(users=1, events=60),
        lone(category=pl.lit(None, pl.String)),
        lone(item_id=pl.lit(None, pl.String), category=pl.lit(None, pl.String)),
        lone(behavior=pl.lit("view")),
        lone(behavior=pl.lit("unlisted")),
        lone(item_id=pl.lit("only")),
        lone(timestamp=pl.lit(5)),
    ],
    ids=["one user", "no category", "no item", "no goal event", "unlisted behaviours", "one item", "one time"],
)
def test_poor_logs_give_a_page_without_holes(frame, tmp_path):
    train(frame, BEHAVIORS, "purchase", tmp_path / "m", epochs=1, device="cpu", window=WindowRule(events=8))
    evaluation = evaluate(tmp_path / "m", frame, device="cpu")
    text = sound(report.page(evaluation, read_manifest(tmp_path / "m")))
    assert "too few users for intervals" in text
    json.dumps(report.document(evaluation, read_manifest(tmp_path / "m")), allow_nan=False)


def test_a_model_without_curve_and_calibration_has_a_page(made):
    older = msgspec.structs.replace(made[1], curve=[], calibration=None, compared={})
    text = sound(report.page(replace(made[0], calibration={}), older))
    assert "published without calibration" in text
    assert "How it was learned" not in text


def test_names_from_the_log_are_text(made):
    named = replace(made[0], protocol=replace(made[0].protocol, files="<script>alert(1)</script>.csv"))
    assert "&lt;script&gt;" in report.page(named, made[1])
    sound(report.page(named, made[1]))


@pytest.mark.parametrize(
    ("name", "message"), [("page.txt", "is an .html file"), ("none/page.html", "there is no directory")]
)
def test_a_place_that_cannot_be_is_one_line(made, tmp_path, name, message):
    with pytest.raises(ReportError, match=message) as caught:
        report.write(tmp_path / name, *made)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(made, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ReportError, match="cannot write .*: No space left on device"):
        report.write(tmp_path / "page.html", *made)
    assert list(tmp_path.iterdir()) == []
