"""Metrics as Prometheus reads them: the exposition text is parsed, and the numbers looked up."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from model.slots import Kept
from stream_app.events import Event, Reason
from stream_app.history import Outcome
from stream_app.metrics import AGES, SECONDS, BulkHistogram, WorkerMetrics
from stream_app.observations import STAGES, BatchReport, Swap
from stream_app.scoring import LiveScores
from tests.stream_app.test_scoring import expectation

ENDINGS = (
    "_users",
    "_bytes",
    "_seconds",
    "_ratio",
    "_records",
    "_events",
    "_nats",
    "_total",
    "_info",
    "_rate",
    "_mrr",
    "_fields",
    "_created",
)
LABELS = {
    "reason": {reason.value for reason in Reason} | {"no_known_items"},
    "outcome": {outcome.name.lower() for outcome in Outcome},
    "stage": set(STAGES),
    "predictor": {"model", "popularity", "repeat"},
    "partition": {str(n) for n in range(10)},
    "version": {"abc"},
    "result": {"swapped", "refused"},
    "device": {"cpu"},
}


def new_metrics() -> WorkerMetrics:
    return WorkerMetrics(model_version="abc", device="cpu", chunk_records=8)


def families(metrics: WorkerMetrics) -> dict[str, Metric]:
    """Our own families, by name as exposed."""
    text = generate_latest(metrics.registry).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in found.items() if not name.startswith(("process_", "python_"))}


def value(metrics: WorkerMetrics, sample: str, **labels: str) -> float | None:
    values = [
        found.value
        for family in families(metrics).values()
        for found in family.samples
        if found.name == sample and found.labels == labels
    ]
    return values[0] if values else None


def full_report() -> BatchReport:
    report = BatchReport(partition=2, records=6)
    report.seconds = {stage: 0.25 * (n + 1) for n, stage in enumerate(STAGES)}
    report.predictions, report.erasures, report.histories = 3, 1, 2
    report.outcomes.update({"folded": 3, "too_late": 1})
    report.dead_letters.update({"too_late": 1, "invalid": 1})
    report.fallbacks.update({"no_known_items": 2})
    report.latencies_s = np.array([0.5, 1.5, 2.0])
    report.freshness_s = np.array([60.0, 30.0])
    return report


def observed() -> WorkerMetrics:
    metrics = new_metrics()
    metrics.observe(full_report())
    metrics.observe(full_report())
    metrics.refresh(scores=scored(), unknown_fields=5, lags={2: (7, 1.5), 3: (0, 0.0)})
    return metrics


def scored() -> LiveScores:
    scores = LiveScores(("view", "purchase"))
    for item, repeat_rank, probability in [("b", 1, 0.5), ("z", None, 0.75)]:
        scores.expect("u", 0, expectation(["a", "b"], [probability, 1 - probability]))
        scores.observe(Event("u", "view", 0, item), 0, repeat_rank, lambda _, rank: rank)
    return scores


@pytest.mark.parametrize(
    ("sample", "labels", "expected"),
    [
        ("nextmove_records_total", {}, 2 * 6),
        ("nextmove_predictions_total", {}, 2 * 3),
        ("nextmove_erasures_total", {}, 2 * 1),
        ("nextmove_histories_written_total", {}, 2 * 2),
        ("nextmove_dead_letters_total", {"reason": "too_late"}, 2 * 1),
        ("nextmove_dead_letters_total", {"reason": "invalid"}, 2 * 1),
        ("nextmove_dead_letters_total", {"reason": "emit"}, 0),
        ("nextmove_events_total", {"outcome": "folded"}, 2 * 3),
        ("nextmove_events_total", {"outcome": "too_late"}, 2 * 1),
        ("nextmove_events_total", {"outcome": "seen"}, 0),
        ("nextmove_fallbacks_total", {"reason": "no_known_items"}, 2 * 2),
        ("nextmove_records_with_unknown_fields", {}, 5),
        ("nextmove_batch_records_count", {}, 2),
        ("nextmove_batch_records_sum", {}, 2 * 6),
        ("nextmove_batch_records_bucket", {"le": "4.0"}, 0),
        ("nextmove_batch_records_bucket", {"le": "8.0"}, 2),
        ("nextmove_batch_fill_ratio", {}, 6 / 8),
        ("nextmove_input_lag_records", {"partition": "2"}, 7),
        ("nextmove_input_lag_seconds", {"partition": "2"}, 1.5),
        ("nextmove_input_lag_records", {"partition": "3"}, 0),
        ("nextmove_stage_seconds_sum", {"stage": "decode"}, 2 * 0.25),
        ("nextmove_stage_seconds_sum", {"stage": "ack"}, 2 * 0.25 * 6),
        ("nextmove_stage_seconds_count", {"stage": "infer"}, 2),
        ("nextmove_latency_seconds_sum", {}, 2 * (0.5 + 1.5 + 2.0)),
        ("nextmove_latency_seconds_count", {}, 2 * 3),
        ("nextmove_latency_seconds_bucket", {"le": "0.5"}, 2),
        ("nextmove_event_freshness_seconds_sum", {}, 2 * (60 + 30)),
        ("nextmove_live_scored_events", {"predictor": "model"}, 2),
        ("nextmove_live_hit_rate", {"predictor": "model"}, 1 / 2),
        ("nextmove_live_mrr", {"predictor": "model"}, (1 / 2 + 0) / 2),
        ("nextmove_live_mrr", {"predictor": "repeat"}, (1 / 1 + 0) / 2),
        ("nextmove_live_behavior_log_loss_nats", {}, (-math.log(0.5) - math.log(0.75)) / 2),
        ("nextmove_live_behavior_accuracy_ratio", {}, 1.0),
        ("nextmove_live_behavior_calibration_error_ratio", {}, (abs(0.5 - 1) + abs(0.75 - 1)) / 2),
        ("nextmove_model_info", {"version": "abc", "device": "cpu"}, 1),
    ],
)
def test_a_number_on_the_page(sample: str, labels: dict[str, str], expected: float) -> None:
    assert value(observed(), sample, **labels) == pytest.approx(expected)


def test_another_model_shows_and_is_counted() -> None:
    metrics = new_metrics()
    results = [{"result": result} for result in ("swapped", "refused")]
    assert [value(metrics, "nextmove_model_swaps_total", **result) for result in results] == [0, 0]
    metrics.observe_swap(Swap.SWAPPED, "def", "cpu")
    metrics.observe_swap(Swap.REFUSED, "def", "cpu")
    assert [value(metrics, "nextmove_model_swaps_total", **result) for result in results] == [1, 1]
    assert value(metrics, "nextmove_model_info", version="def", device="cpu") == 1
    assert value(metrics, "nextmove_model_info", version="abc", device="cpu") is None


def test_names_and_units() -> None:
    for name, family in families(observed()).items():
        exposed = name + ("_total" if family.type == "counter" else "")
        assert exposed.startswith("nextmove_")
        assert re.fullmatch(r"[a-z_]+", exposed)
        assert exposed.endswith(ENDINGS), exposed
        assert "milli" not in exposed
        assert not exposed.endswith(("_ms", "_total_total"))
        assert family.documentation
        if family.type == "counter":
            assert all(found.name.endswith(("_total", "_created")) for found in family.samples)


def test_labels_come_from_closed_sets() -> None:
    for family in families(observed()).values():
        for found in family.samples:
            for label, text in found.labels.items():
                assert label == "le" or text in LABELS[label], (found.name, label, text)


def test_before_the_first_batch_closed_labels_are_there_and_zero() -> None:
    metrics = new_metrics()
    for reason in Reason:
        assert value(metrics, "nextmove_dead_letters_total", reason=reason.value) == 0
    for outcome in Outcome:
        assert value(metrics, "nextmove_events_total", outcome=outcome.name.lower()) == 0
    for stage in STAGES:
        assert value(metrics, "nextmove_stage_seconds_count", stage=stage) == 0


def test_a_figure_of_nothing_is_not_shown() -> None:
    metrics = new_metrics()
    metrics.refresh(scores=LiveScores(("view",)), unknown_fields=0, lags={})
    assert value(metrics, "nextmove_live_hit_rate", predictor="model") is None
    assert not any(math.isnan(found.value) for family in families(metrics).values() for found in family.samples)


def test_a_partition_that_went_elsewhere_leaves_no_lag_behind() -> None:
    metrics = observed()
    metrics.refresh(scores=LiveScores(("view",)), unknown_fields=5, lags={4: (1, 2.0)})
    assert value(metrics, "nextmove_input_lag_records", partition="2") is None
    assert value(metrics, "nextmove_input_lag_seconds", partition="2") is None
    assert value(metrics, "nextmove_input_lag_records", partition="4") == 1


def test_two_workers_in_one_process_do_not_share_numbers() -> None:
    one, other = observed(), new_metrics()
    assert value(one, "nextmove_records_total") == 12
    assert value(other, "nextmove_records_total") == 0


# The histogram that counts an array at a time

bounds = st.sampled_from([SECONDS, AGES, (1.0,), (0.1, 0.2, 0.30000000000000004, 1e9)])
observed_values = st.lists(
    st.floats(-1e6, 1e6) | st.sampled_from([*SECONDS, *AGES, 0.0, -0.0, 0.2, 1e300]), max_size=30
)


@given(bounds, st.lists(observed_values, max_size=4))
def test_a_bulk_histogram_is_one_of_prometheus_own(bounds: tuple[float, ...], batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("h_seconds", "Of a test", bounds, ours)
    plain = Histogram("h_seconds", "Of a test", buckets=bounds, registry=theirs)
    for batch in batches:
        bulk.observe_all(np.array(batch, dtype=np.float64))
        for number in batch:
            plain.observe(number)
    assert exposed(ours) == exposed(theirs)
    (own,), (other,) = ours.collect(), theirs.collect()
    assert (own.name, own.type, own.documentation, own.unit) == (
        other.name,
        other.type,
        other.documentation,
        other.unit,
    )


def exposed(registry: CollectorRegistry) -> list[str | tuple[str, object]]:
    """The lines as scraped, without the time of creation; of sums, whose order of adding differs, the first digits."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    return [
        (name, pytest.approx(float(number), rel=1e-9, abs=1e-6)) if (name := line.split()[0]).endswith("_sum") else line
        for line in lines
        for number in [line.split()[-1]]
    ]


def test_a_name_cannot_be_taken_twice() -> None:
    registry = CollectorRegistry()
    BulkHistogram("h_seconds", "Of a test", SECONDS, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        BulkHistogram("h_seconds", "Of a test", SECONDS, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("h_seconds", "Of a test", registry=registry)


def test_before_the_first_value_all_buckets_are_there_and_zero() -> None:
    metrics = new_metrics()
    assert value(metrics, "nextmove_latency_seconds_bucket", le="+Inf") == 0
    assert value(metrics, "nextmove_latency_seconds_sum") == 0
    found = [sample for sample in families(metrics)["nextmove_latency_seconds"].samples if "le" in sample.labels]
    assert len(found) == len(SECONDS) + 1


def test_states_that_are_kept_are_counted_across_models() -> None:
    metrics = WorkerMetrics(model_version="v", device="cpu", chunk_records=1)
    for hits, refills in ((5, 2), (9, 2), (3, 1)):  # the last ones are another model's
        kept = Kept(hits, refills, evictions=1, users=4, bytes=1000, compiled=True)
        metrics.refresh(scores=LiveScores(("view",)), unknown_fields=0, lags={}, kept=kept)
    value = metrics.registry.get_sample_value
    assert value("nextmove_state_hits_total") == 9 + 3
    assert value("nextmove_state_refills_total") == 2 + 1
    assert value("nextmove_state_evictions_total") == 1 + 1
    assert (value("nextmove_state_users"), value("nextmove_state_bytes")) == (4, 1000)
    assert value("nextmove_state_compiled_ratio") == 1
