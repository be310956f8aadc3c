"""A replay as the command line runs it, with a real broker and a predictor of a few lines."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from stream_app import behaviors, serving
from stream_app.broker import EmbeddedBroker
from stream_app.player import play_inline, play_to_kafka
from stream_app.replay import ReplayError
from stream_app.settings import Settings
from tests.processes import free_port
from tests.stream_app.records import NOW_MS
from tests.stream_app.test_pipeline import Echo
from tests.stream_app.test_replay import frame_of

QUIET: dict[str, Any] = {"console": Console(file=io.StringIO()), "quiet": True}
LOG = frame_of(("u", 0), ("v", 1), ("u", 2))


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"user-events": 1}) as running:
        yield running


def test_a_replay_into_kafka_says_how_much_was_sent(broker: EmbeddedBroker) -> None:
    done = play_to_kafka(LOG, Settings(broker=broker.bootstrap), None, dry_run=False, **QUIET)
    assert (done["sent"], done["topic"]) == (3, "user-events")


def test_a_topic_that_is_missing_is_not_made_by_accident(broker: EmbeddedBroker) -> None:
    settings = Settings(broker=broker.bootstrap, input_topic="misspelt")
    for _ in range(2):  # a broker makes a topic that a client asks for by name
        with pytest.raises(ReplayError, match="no topic misspelt at .*; `nextmove topics` creates it"):
            play_to_kafka(LOG, settings, None, dry_run=False, **QUIET)


def test_no_broker_is_one_line() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ReplayError, match=f"no Kafka broker answers at {address}"):
        play_to_kafka(LOG, Settings(broker=address, broker_timeout_s=2), None, dry_run=False, **QUIET)


def inline(out: Path | None, monkeypatch: pytest.MonkeyPatch, log: pl.DataFrame = LOG) -> dict[str, Any]:
    monkeypatch.setattr(serving, "load_engine", lambda settings: Echo())
    return play_inline(log, Settings(), behaviors.load(), out, now_ms=NOW_MS, **QUIET)


def test_an_inline_replay_says_what_it_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "predictions.jsonl"
    done = inline(out, monkeypatch, frame_of(("u", 0), ("u", 10_000_000), ("u", 1)))
    assert (done["events"], done["predictions"], done["dead_letters"]) == (3, 2, {"from_the_future": 1})
    assert len(out.read_bytes().splitlines()) == 2


def test_predictions_may_go_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    inline(Path("-"), monkeypatch)
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line)["user_id"] for line in lines] == ["u", "v", "u"]


def test_a_file_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=f"^{tmp_path}: Is a directory$"):
        inline(tmp_path, monkeypatch)
