"""The whole harness with a tiny load: that it works, not how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.stream.__main__ import merged
from benchmarks.stream.report import sources
from benchmarks.stream.trained_model import is_readable
from tests.artefacts import published, untrained

EVENTS = 5_000
PATHS = ["nextmove_constant", "stock_faust", "plain_loop"]
FIGURES = {
    "events_per_s",
    "events_per_s_min",
    "events_per_s_max",
    "cpu_us_per_event",
    "cpu_us_per_event_min",
    "cpu_us_per_event_max",
    "broker_cpu_us_per_event",
    "peak_rss_mb",
    "ratio_to_stock_faust",
    "ratio_to_plain_loop",
}


def test_every_event_is_answered_and_figures_are_told(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.stream", "--quick", "--suites=throughput", "--broker=embedded"),
            *("--loads=skewed", f"--events={EVENTS}", f"--paths={','.join(PATHS)}"),
            *(f"--json={figures}", f"--report={tmp_path}"),
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert result["failures"] == []
    assert result["loads"]["skewed"]["events"] == EVENTS
    about = result["taken"]["throughput, embedded, skewed"]
    assert about["machine"]["cores"] >= 1
    assert about["versions"]["aiokafka"]
    rows = {row["path"]: row for row in result["throughput"]}
    assert list(rows) == PATHS
    for row in rows.values():
        assert (row["broker"], row["load"], row["runs"], row["events"]) == ("embedded", "skewed", 1, EVENTS)
        assert all(row[name] > 0 for name in FIGURES)
    assert rows["stock_faust"]["ratio_to_stock_faust"] == rows["plain_loop"]["ratio_to_plain_loop"] == 1
    report = (tmp_path / "README.md").read_text()
    assert all(f"| `{path}` |" in report for path in PATHS)


def test_what_is_not_measured_again_keeps_its_figures_and_its_date() -> None:
    old = {"users": [1], "codecs": [2], "taken": {"users": "then", "codecs": "then"}, "loads": {"real": "r"}}
    new = {"codecs": [3], "taken": {"codecs": "now"}, "loads": {"skewed": "s"}, "failures": []}
    assert merged(old, new) == {
        "users": [1], "codecs": [3], "taken": {"users": "then", "codecs": "now"}, "loads": {"real": "r", "skewed": "s"},
        "failures": [],
    }  # fmt: skip


def test_of_the_comparison_each_broker_with_each_load_is_measured_by_itself() -> None:
    def rows(*places: tuple[str, str, str, int]) -> list[dict[str, Any]]:
        return [{"path": path, "broker": broker, "load": load, "x": x} for path, broker, load, x in places]

    old = {
        "throughput": rows(("b", "kafka", "real", 1), ("a", "kafka", "real", 1), ("a", "kafka", "skewed", 1)),
        "taken": {"throughput, kafka, real": "then", "throughput, kafka, skewed": "then"},
    }
    new = {
        "throughput": rows(("b", "kafka", "skewed", 2), ("b", "embedded", "real", 2)),
        "taken": {"throughput, kafka, skewed": "now", "throughput, embedded, real": "now"},
    }
    result = merged(old, new)
    assert result["throughput"] == rows(
        ("b", "embedded", "real", 2), ("b", "kafka", "real", 1), ("a", "kafka", "real", 1), ("b", "kafka", "skewed", 2)
    )
    assert list(result["taken"].values()) == ["then", "now", "now"]
    assert sources("throughput", new["throughput"]) == list(new["taken"])
    assert sources("users", []) == ["users"]


def test_a_model_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    published(tmp_path / "m", untrained())
    assert is_readable(tmp_path / "m")
    manifest = tmp_path / "m" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"epochs": 0', '"epochs": 1'))
    assert not is_readable(tmp_path / "m")
    assert not is_readable(tmp_path / "nothing")
