"""What a worker says while it starts, at each level and in each format."""

import json
from pathlib import Path

import pytest

from stream_app.broker import EmbeddedBroker
from tests.checker import Names
from tests.integration.conftest import PARTITIONS, deployment
from tests.processes import WorkerProcess

WHAT_FAUST_PRINTS = ("┌", "│", "└")  # its banner, which is no log line


@pytest.mark.parametrize(
    ("level", "form"), [("debug", "json"), ("info", "console"), ("warning", "console"), ("error", "json")]
)
def test_lines_below_the_level_are_not_written(
    level: str, form: str, names: Names, shop_model: Path, tmp_path: Path
) -> None:
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), PARTITIONS)
    with EmbeddedBroker(topics) as broker:
        settings = {**deployment(broker.bootstrap, names, shop_model), "log_level": level, "log_format": form}
        with WorkerProcess(
            tmp_path / "worker.log", **settings
        ) as worker:  # which asks /readyz from the first moment on
            pass
    lines = [line for line in worker.log().splitlines() if line and not line.startswith(WHAT_FAUST_PRINTS)]
    assert "Traceback" not in worker.log()
    if form == "json":
        lines = [line for line in lines if line.startswith("{")]
        assert all(json.loads(line)["event"] for line in lines)
    assert any("Worker ready" in line for line in lines) == (level in ("debug", "info"))
    assert any('"level": "debug"' in line or "DEBUG" in line for line in lines) == (level == "debug")
