import json

import pytest

from benchmarks.quality import __main__ as program
from benchmarks.quality.report import render, write_report
from benchmarks.quality.rows import PUBLISHED, ROWS, Row

FOUND = {
    "metrics": {"ndcg@10": [0.1234, 0.12, 0.1268], "hr@10": [0.3, 0.29, 0.31]},
    "against_best": {"ndcg@10": {"baseline": "markov", "value": 0.0234, "interval": [0.01, 0.03], "verdict": "ahead"}},
    "epochs": 3,
    "cpu_seconds": 600.0,
    "protocol": "one of many",
    "file": "log.gz",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A row that measures nothing, and a folder instead of the project's."""
    asked = []

    def measure(folder, report, **options):
        asked.append(options)
        return {**FOUND, "seed": options["seed"]}

    monkeypatch.setitem(ROWS, "ml-1m", Row("ml-1m", measure))
    monkeypatch.setattr(program, "HERE", tmp_path)
    return asked


def test_a_row_leaves_its_figures_with_all_they_depend_on_and_a_page(fake, tmp_path):
    assert program.main(["ml-1m", "--seed", "7", "--time-budget", "60", "--preset", "small"]) == 0
    assert fake == [{"seed": 7, "budget_s": 60.0, "preset": "small"}]
    found = json.loads((tmp_path / "results" / "ml-1m.json").read_text())
    assert found["metrics"] == FOUND["metrics"]
    assert {"commit", "machine", "versions", "date", "seed", "protocol", "file"} <= found.keys()
    assert {"python", "torch", "transformers"} <= found["versions"].keys()
    page = (tmp_path / "README.md").read_text()
    assert "| `ml-1m` | **.1234** [.1200, .1268] | **.3000** [.2900, .3100] | 3 | 10 | 7 |" in page
    assert "| its best baseline | .1000 markov (ahead) |  | | | |" in page  # .1234 - .0234
    assert "Protocol: one of many." in page


def test_figures_may_go_elsewhere(fake, tmp_path):
    program.main(["ml-1m", "--json", str(tmp_path / "a" / "b.json")])
    assert json.loads((tmp_path / "a" / "b.json").read_text())["row"] == "ml-1m"


def test_the_committed_page_is_made_from_the_committed_figures(tmp_path):
    write_report(program.HERE / "results", tmp_path / "README.md")
    assert (program.HERE / "README.md").read_text() == (tmp_path / "README.md").read_text()


def test_every_table_of_published_figures_has_rows():
    assert PUBLISHED.keys() <= {row.table for row in ROWS.values()}
    assert render({}).count("|") == 0
