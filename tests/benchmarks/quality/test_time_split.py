import gzip
import json

import pytest

from benchmarks.quality.rows import ROWS
from benchmarks.quality.time_split import FILES, measure
from stream_app.event_logs import LogError


@pytest.fixture
def folder(tmp_path):
    """A tiny log in the place of the ML-100K file: users go round three items each."""
    rows = [
        f"{user}\t{10 * user + step % 3}\t5\t{880_000_000 + 3600 * step + user}\n"
        for step in range(20)
        for user in range(12)
    ]
    path = tmp_path / FILES["ml-100k"]
    path.parent.mkdir()
    path.write_bytes(gzip.compress("".join(rows).encode()))
    return tmp_path


def test_a_row_holds_its_figures_and_all_that_they_depend_on(folder):
    found = measure(folder, log="ml-100k", budget_s=1.0, seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    value, low, high = found["metrics"]["item NDCG@10"]
    assert 0 <= low <= value <= high <= 1
    assert {"popularity", "weekly popularity", "repeat", "frequency", "markov", "majority"} == found["baselines"].keys()
    assert found["against_best"]["item NDCG@10"]["verdict"] in ("ahead", "level", "behind")
    assert (found["file"], found["seed"], found["preset"], found["time_budget_s"]) == (
        FILES["ml-100k"],
        3,
        "small",
        1.0,
    )
    assert (found["users"], found["events"]) == (12, 240 - 192)
    for word in ("by global time", "80 %", "left out: nothing", "ties", "3 of the training"):
        assert word in found["protocol"]


def test_every_log_has_a_row_and_a_missing_one_is_named(tmp_path):
    assert {"ml-1m-time" if log == "ml-1m" else log for log in FILES} <= set(ROWS)
    with pytest.raises(LogError, match="u.data.gz"):
        ROWS["ml-100k"].measure(tmp_path)
