"""The whole harness on toy sizes: that it works, not how fast anything is."""

import json
from pathlib import Path

import pytest

from benchmarks.engine import __main__ as program
from benchmarks.engine.chart import draw
from benchmarks.engine.paths import PATHS, Entry
from benchmarks.engine.report import render
from benchmarks.engine.suites import overlap, summary, with_ratios
from benchmarks.report import write_report

FIGURES = {
    "events_per_s",
    "events_per_s_min",
    "events_per_s_max",
    "us_per_event",
    "ratio_to_hugging_face",
    "peak_rss_mb",
}


def test_every_event_is_answered_and_figures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # toy programs are not worth the minute that compiling them takes
    figures = tmp_path / "figures.json"
    arguments = [
        "--quick",
        "--suites=throughput,hits,scoring",
        "--threads=1",
        f"--json={figures}",
        f"--report={tmp_path}",
    ]
    assert program.main([*arguments, "--paths=hugging_face,nextmove,nextmove_incremental"]) == 0
    result = json.loads(figures.read_text())
    assert result["failures"] == []
    rows = {row["path"]: row for row in result["throughput"]}
    assert set(rows) >= {"hugging_face", "nextmove", "nextmove_incremental"}
    for row in rows.values():
        assert (row["threads"], row["runs"]) == (1, 2)
        assert row["events"] > 0
        assert all(row[name] > 0 for name in FIGURES)
    assert rows["hugging_face"]["ratio_to_hugging_face"] == 1
    about = result["taken"]["throughput, 1"]
    assert about["machine"]["cores"] >= 1
    assert about["versions"]["torch"]
    report = (tmp_path / "README.md").read_text()
    assert all(f"| `{path}` |" in report for path in rows)
    assert all(f"- `{name}`: {reason}" in report for name, reason in result["missing"].items())
    before = report
    assert program.main(["--only-report", f"--json={figures}", f"--report={tmp_path}"]) == 0
    assert (tmp_path / "README.md").read_text() == before


def test_a_peer_that_is_not_installed_is_missing() -> None:
    entry = Entry("peer", "of nobody", "nothing", packages=("no_such_package_anywhere",))
    assert entry.missing("cpu") == "`make benchmark-setup` installs no_such_package_anywhere"
    assert entry.missing("cuda") == "it does not run on cuda"


def test_without_a_gpu_nothing_is_measured_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "gpu", lambda: None)
    figures = tmp_path / "figures.json"
    assert program.main(["--device=cuda", f"--json={figures}"]) == 0
    assert not figures.exists()


def test_large_is_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU its figures would take the place of the others."""
    for arguments in (["--large"], ["--large", "--device=cuda", "--quick"]):
        with pytest.raises(SystemExit):
            program.parse(arguments)
        assert "--large is for --device=cuda" in capsys.readouterr().err


def test_a_step_on_the_device_is_a_suite_where_there_is_one() -> None:
    assert "step" not in program.parse([]).suites
    assert "step" in program.parse(["--device=cuda"]).suites


def test_what_is_not_measured_again_is_kept() -> None:
    old = {
        "throughput": [{"path": "a", "threads": 1, "x": 0}, {"path": "a", "threads": 2, "x": 0}],
        "taken": {"throughput, 1": "then", "throughput, 2": "then"},
        "missing": {"b": "not installed", "scoring": "not there"},
    }
    new = {"throughput": [{"path": "b", "threads": 1, "x": 1}], "taken": {"throughput, 1": "now"}, "missing": {}}
    result = program.merged(old, new)
    assert [(row["path"], row["threads"]) for row in result["throughput"]] == [("b", 1), ("a", 2)]
    assert result["taken"] == {"throughput, 1": "now", "throughput, 2": "then"}
    assert result["missing"] == {"scoring": "not there"}


def test_figures_are_medians_and_ratios_of_medians() -> None:
    row = summary([100.0, 400.0, 200.0])
    assert (row["events_per_s"], row["events_per_s_min"], row["events_per_s_max"]) == (200, 100, 400)
    assert (row["us_per_event"], row["us_per_event_min"], row["us_per_event_max"]) == (1e6 / 200, 1e6 / 400, 1e6 / 100)
    rows = [{"path": "hugging_face", "events_per_s": 50.0}, {"path": "nextmove", "events_per_s": 200.0}]
    assert [one["ratio_to_hugging_face"] for one in with_ratios(rows)] == [1, 200 / 50]
    assert with_ratios(rows[1:])[0]["ratio_to_hugging_face"] is None


def test_overlap_is_with_the_first_path_of_the_same_weights() -> None:
    first, second = (path for path in PATHS if path.name in {"onnxruntime", "openvino"})
    started = {first.name: {"items": [[1, 2], [3, 4]]}, second.name: {"items": [[2, 1], [4, 5]]}}
    assert overlap(first, started) is None
    assert overlap(second, started) == (2 / 2 + 1 / 2) / 2


def test_the_committed_page_is_made_from_the_committed_figures(tmp_path: Path) -> None:
    write_report(json.loads((program.HERE / "results.json").read_text()), tmp_path, draw, render)
    assert (program.HERE / "README.md").read_text() == (tmp_path / "README.md").read_text()
