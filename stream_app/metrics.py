"""Prometheus metrics of a worker. Base units; labels come from closed sets, never from users or items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from model.slots import Kept
from stream_app.events import Reason
from stream_app.history import Outcome
from stream_app.observations import STAGES, BatchReport, Swap
from stream_app.scoring import K, LiveScores, Score

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
AGES = (0.1, 0.5, 1, 5, 15, 60, 300, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class BulkHistogram(Collector):
    """A histogram that counts an array at a time; prometheus_client's own takes a microsecond for each value."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.array(buckets)  # upper ones, included
        self._counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """Count `values`."""
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """The histogram, for a scrape."""
        bounds = [*map(floatToGoString, self._bounds.tolist()), "+Inf"]
        buckets = list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)

    def describe(self) -> Iterable[Metric]:
        """Its name, for the registry to find names taken twice."""
        yield HistogramMetricFamily(self._name, self._documentation)


class WorkerMetrics:
    """Everything that `/metrics` shows; `observe` is the worker's observer."""

    def __init__(self, *, model_version: str, device: str, chunk_records: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._chunk_records = chunk_records
        self._model = Info("nextmove_model", "The model that predicts", registry=self.registry)
        self._model.info({"version": model_version, "device": device})
        self._swaps = Counter("nextmove_model_swaps", "Other models found", ["result"], registry=self.registry)
        for swap in Swap:
            self._swaps.labels(swap.value)
        self._flow()
        self._states()
        self._times()
        self._quality()

    def _flow(self) -> None:
        registry = self.registry
        self._records = Counter("nextmove_records", "Records read from the input topic", registry=registry)
        self._predictions = Counter("nextmove_predictions", "Predictions delivered", registry=registry)
        self._erasures = Counter("nextmove_erasures", "Users erased", registry=registry)
        self._histories = Counter("nextmove_histories_written", "Histories written to the changelog", registry=registry)
        self._expired = Counter("nextmove_histories_expired", "Histories of idle users removed", registry=registry)
        self._letters = Counter("nextmove_dead_letters", "Dead letters by reason", ["reason"], registry=registry)
        self._outcomes = Counter("nextmove_events", "Events by what the fold did", ["outcome"], registry=registry)
        self._fallbacks = Counter("nextmove_fallbacks", "Answers of a baseline, by why", ["reason"], registry=registry)
        self._unknown = Gauge("nextmove_records_with_unknown_fields", "Since the start", registry=registry)
        self._sizes = Histogram("nextmove_batch_records", "Records of a batch", buckets=SIZES, registry=registry)
        self._fill = Gauge("nextmove_batch_fill_ratio", "Records of the last batch / the limit", registry=registry)
        self._lag = Gauge("nextmove_input_lag_records", "Records not yet committed", ["partition"], registry=registry)
        self._lag_s = Gauge(
            "nextmove_input_lag_seconds", "Age of the newest committed record while there is lag", ["partition"],
            registry=registry,
        )  # fmt: skip
        for reason in Reason:
            self._letters.labels(reason.value)
        for outcome in Outcome:
            self._outcomes.labels(outcome.value)

    def _states(self) -> None:
        registry = self.registry
        self._hits = Counter("nextmove_state_hits", "Events answered from states that were kept", registry=registry)
        self._refills = Counter("nextmove_state_refills", "States computed from whole windows", registry=registry)
        self._restored = Counter(
            "nextmove_state_restored", "States computed in idle time, after another model took over", registry=registry
        )
        self._evictions = Counter("nextmove_state_evictions", "Users whose states gave way", registry=registry)
        self._state_users = Gauge("nextmove_state_users", "Users whose states are kept", registry=registry)
        self._state_bytes = Gauge("nextmove_state_bytes", "Memory set aside for states", registry=registry)
        self._compiled = Gauge(
            "nextmove_state_compiled_ratio", "Steps that run compiled / all, by their sizes", registry=registry
        )
        self._device_fallbacks = Counter("nextmove_device_fallbacks", "Devices given up for the CPU", registry=registry)
        self._kept = Kept()

    def _times(self) -> None:
        registry = self.registry
        self._stages = Histogram(
            "nextmove_stage_seconds", "Time of a batch in each stage", ["stage"], buckets=SECONDS, registry=registry
        )
        self._latency = BulkHistogram(
            "nextmove_latency_seconds", "From record produced to outputs delivered", SECONDS, registry
        )
        self._freshness = BulkHistogram(
            "nextmove_event_freshness_seconds", "From event to outputs delivered", AGES, registry
        )
        for stage in STAGES:
            self._stages.labels(stage)

    def _quality(self) -> None:
        registry, who = self.registry, ["predictor"]
        self._scored = Gauge("nextmove_live_scored_events", "Events scored since the start", who, registry=registry)
        self._hit_rate = Gauge("nextmove_live_hit_rate", f"hit@{K} of the next item", who, registry=registry)
        self._mrr = Gauge("nextmove_live_mrr", f"Mean reciprocal rank@{K} of the next item", who, registry=registry)
        self._log_loss = Gauge("nextmove_live_behavior_log_loss_nats", "Of the next behaviour", registry=registry)
        self._accuracy = Gauge("nextmove_live_behavior_accuracy_ratio", "Of the next behaviour", registry=registry)
        self._ece = Gauge(
            "nextmove_live_behavior_calibration_error_ratio", "Expected, of the favourite", registry=registry
        )

    def observe(self, report: BatchReport) -> None:
        """Count one batch."""
        self._records.inc(report.records)
        self._predictions.inc(report.predictions)
        self._erasures.inc(report.erasures)
        self._histories.inc(report.histories)
        self._expired.inc(report.expired)
        self._sizes.observe(report.records)
        self._fill.set(report.records / self._chunk_records)
        _add(self._letters, report.dead_letters)
        _add(self._outcomes, report.outcomes)
        _add(self._fallbacks, report.fallbacks)
        for stage, seconds in report.seconds.items():
            self._stages.labels(stage).observe(seconds)
        self._latency.observe_all(report.latencies_s)
        self._freshness.observe_all(report.freshness_s)

    def observe_swap(self, result: Swap, model_version: str, device: str) -> None:
        """Count a model that was found in the place of the one at work; and say which one is at work now."""
        self._swaps.labels(result.value).inc()
        self.show_model(model_version, device)

    def show_model(self, model_version: str, device: str) -> None:
        """Say which model is at work, and where."""
        self._model.info({"version": model_version, "device": device})

    def refresh(
        self,
        *,
        scores: LiveScores,
        unknown_fields: int,
        lags: Mapping[int, tuple[int, float]],
        kept: Kept = Kept(),  # noqa: B008  # a value
    ) -> None:
        """Set what is read off at a scrape: live quality, per partition the lag in records and in seconds, kept states."""
        self._refresh_states(kept)
        self._unknown.set(unknown_fields)
        for name, score in (("model", scores.model), ("popularity", scores.popularity), ("repeat", scores.repeat)):
            self._set_score(name, score)
        behavior = scores.behavior
        if behavior.events:
            self._log_loss.set(behavior.log_loss / behavior.events)
            self._accuracy.set(behavior.correct / behavior.events)
            self._ece.set(behavior.calibration_error)
        self._lag.clear()
        self._lag_s.clear()
        for partition, (records, seconds) in lags.items():
            self._lag.labels(partition).set(records)
            self._lag_s.labels(partition).set(seconds)

    def _refresh_states(self, kept: Kept) -> None:
        """Counts of another model begin at 0 again, and are added to those before."""
        before = self._kept if kept.hits >= self._kept.hits and kept.refills >= self._kept.refills else Kept()
        self._hits.inc(kept.hits - before.hits)
        self._refills.inc(kept.refills - before.refills)
        self._evictions.inc(max(0, kept.evictions - before.evictions))
        self._restored.inc(max(0, kept.restored - before.restored))
        self._device_fallbacks.inc(max(0, kept.device_fallbacks - before.device_fallbacks))
        self._state_users.set(kept.users)
        self._state_bytes.set(kept.bytes)
        self._compiled.set(kept.compiled)
        self._kept = kept

    def _set_score(self, name: str, score: Score) -> None:
        self._scored.labels(name).set(score.events)
        if not math.isnan(score.hit_rate):
            self._hit_rate.labels(name).set(score.hit_rate)
            self._mrr.labels(name).set(score.mrr)


def _add(counter: Counter, counts: Mapping[str, int]) -> None:
    for label, count in counts.items():
        counter.labels(label).inc(count)
