"""The report of a batch: each figure from the batch itself."""

import time
from collections import Counter

import numpy as np
import pytest

from stream_app import observations
from stream_app.events import Reason
from stream_app.history import Outcome
from stream_app.observations import STAGES, BatchReport
from stream_app.pipeline import Batch, Outputs
from stream_app.predictions import Message
from tests.stream_app.records import NOW_MS, FakeRecord, event_record
from tests.stream_app.test_pipeline import pipeline, run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands ten seconds behind `NOW_MS`."""
    monkeypatch.setattr(observations, "time", lambda: NOW_MS / 1000 + 10)


def test_a_stage_is_measured_in_seconds_even_when_it_fails() -> None:
    report = BatchReport(0, 1)
    with report.stage("fold"):
        time.sleep(0.02)
    with pytest.raises(KeyError), report.stage("infer"):
        raise KeyError
    assert 0.02 <= report.seconds["fold"] < 5
    assert 0 <= report.seconds["infer"] < 5
    assert set(report.seconds) < set(STAGES)


@pytest.mark.usefixtures("now")
def test_a_report_of_every_kind_of_record() -> None:
    steps = pipeline()
    run(steps, [event_record("u", 0)])
    records = [
        event_record("u", 1, NOW_MS + 4000, item_id="unknown"),
        event_record("u", 2, NOW_MS + 4000, event_id="e"),
        event_record("u", 3, NOW_MS + 5000, event_id="e"),
        event_record("u", 4, NOW_MS - 1),
        event_record("w", 5, item_id="boom"),
        FakeRecord(offset=6, value=b"", timestamp=NOW_MS + 1000),
        FakeRecord(offset=7, key=b"v", timestamp=NOW_MS + 3000),
    ]
    batch, outputs = run(steps, records)
    report = BatchReport(3, len(records)).done(batch, outputs, records)
    assert (report.partition, report.records, report.last_timestamp_ms) == (3, 7, NOW_MS + 3000)
    assert (report.predictions, report.erasures, report.histories) == (3, 1, 3)
    assert report.outcomes == {"folded": 3, "repeat": 1, "too_late": 1}
    assert report.dead_letters == {"too_late": 1, "undecodable": 1, "inference": 1}
    assert report.fallbacks == {"no_known_items": 1}
    assert isinstance(report.latencies_s, np.ndarray)
    assert isinstance(report.freshness_s, np.ndarray)
    assert report.latencies_s == pytest.approx([10, 10, 10, 10, 10, 9, 7])
    assert report.freshness_s == pytest.approx([6, 6, 5, 10])
    assert report.predictions + report.erasures + sum(report.dead_letters.values()) == report.records


def test_labels_are_plain_texts() -> None:
    """Prometheus would show an enum member by another name."""
    batch = Batch(outcomes=Counter({Outcome.SEEN: 2}))
    outputs = Outputs([], [(Message(b"u", b"{}", []), Reason.EMIT)], [])
    report = BatchReport(0, 1).done(batch, outputs, [FakeRecord()])
    assert (report.outcomes, report.dead_letters) == ({"seen": 2}, {"emit": 1})
    assert [str(label) for label in (*report.outcomes, *report.dead_letters)] == ["seen", "emit"]


@pytest.mark.usefixtures("now")
def test_a_chunk_without_an_event_has_nothing_fresh() -> None:
    records = [FakeRecord(offset=6, value=b"", timestamp=NOW_MS + 1000)]
    batch, outputs = run(pipeline(), records)
    report = BatchReport(3, 1).done(batch, outputs, records)
    assert report.latencies_s == pytest.approx([9])
    assert (report.freshness_s.shape, report.freshness_s.dtype) == ((0,), np.float64)
