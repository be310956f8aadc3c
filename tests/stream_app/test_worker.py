"""A worker's parts: what is told to the operator before it starts, and what it forgets when partitions move."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import faust
import pytest
from faust.types import TP
from prometheus_client import generate_latest

from model.engine import Engine
from model.hiding import Hidden
from model.slots import Kept
from stream_app import web
from stream_app.agent import PredictionAgent
from stream_app.intake import Chunk, ChunkLimits, ChunkScheduler
from stream_app.metrics import WorkerMetrics
from stream_app.observations import BatchReport
from stream_app.settings import Settings
from stream_app.tables import HistoryTable
from stream_app.worker import Worker
from tests.artefacts import untrained
from tests.stream_app.records import NOW_MS, FakeRecord, event_record
from tests.stream_app.test_pipeline import pipeline, run

PLACE = TP("user-events", 0)


def parts(settings: Settings) -> tuple[faust.App, Worker]:
    app = faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable)
    table: HistoryTable = app.Table("histories", key_type=bytes, value_type=bytes, partitions=4)
    return app, Worker(app, settings, table)


@pytest.fixture
def worker() -> Worker:
    """As `prepare` leaves it, but for broker and model."""
    settings = Settings()
    app, worker = parts(settings)
    app.consumer = SimpleNamespace(  # type: ignore[assignment]
        scheduler=ChunkScheduler.for_topics("user-events", "histories", ChunkLimits())(),
        assignment=lambda: {PLACE},
        highwater=lambda tp: 10,
        _committed_offset={PLACE: 4},
    )
    worker.pipeline = pipeline()
    worker.metrics = WorkerMetrics(model_version="echo-1", device="cpu", chunk_records=8)
    worker.agent = PredictionAgent(app, settings, worker.pipeline, worker._table, worker.observe)
    at_work = SimpleNamespace(version="echo-1", device="cpu", kept=Kept(hits=7))
    worker.watch = SimpleNamespace(at_work=at_work)  # type: ignore[assignment]
    return worker


def sample(worker: Worker, line: str) -> float:
    text = generate_latest(worker.metrics.registry).decode()
    return float(next(found for found in text.splitlines() if found.startswith(f"{line} ")).split()[-1])


def test_a_chunk_that_is_done_shows_in_the_metrics(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "time", lambda: NOW_MS / 1000 + 3)
    records = [event_record("u", 3, surprise=1)]
    batch, outputs = run(worker.pipeline, records)
    worker.observe(BatchReport(0, 1).done(batch, outputs, records))
    worker.refresh_metrics()
    assert sample(worker, "nextmove_records_total") == 1
    assert sample(worker, "nextmove_state_hits_total") == 7
    assert sample(worker, "nextmove_records_with_unknown_fields") == 1
    assert sample(worker, 'nextmove_input_lag_records{partition="0"}') == 10 - 4
    assert sample(worker, 'nextmove_input_lag_seconds{partition="0"}') == pytest.approx(3)


async def test_partitions_that_move_leave_nothing_behind(worker: Worker) -> None:
    run(worker.pipeline, [event_record("u", 3)])
    scheduler: Any = worker._app.consumer.scheduler  # type: ignore[attr-defined]
    list(scheduler.iterate({PLACE: [FakeRecord(offset=3, value=b"1")]}))
    worker.agent._order.take(PLACE, Chunk([FakeRecord(offset=3)]))
    worker._last_ms[0] = NOW_MS
    before = worker.agent._assignment

    await worker.forget_partitions()

    assert worker.pipeline.cache.get("u", 0).last_offset == -1, "it is read from the table again"
    assert worker.agent._assignment != before, "what is prepared will not leave"
    ((_, carrier),) = scheduler.iterate({PLACE: [FakeRecord(offset=9, value=b"1")]})
    worker.agent._order.take(PLACE, carrier.value)
    worker.refresh_metrics()
    assert sample(worker, 'nextmove_input_lag_seconds{partition="0"}') == 0


def test_a_taken_port_is_said_before_anything_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, worker = parts(Settings(web_port=port, broker="127.0.0.1:1"))
        with pytest.raises(click.ClickException, match=f"cannot listen on 127.0.0.1:{port}: .*; set --port"):
            worker.prepare()


def test_an_address_that_is_no_host_is_one_line_too() -> None:
    _, worker = parts(Settings(web_host="no such host", broker="127.0.0.1:1"))
    with pytest.raises(click.ClickException, match="cannot listen on no such host:8090: "):
        worker.prepare()


async def test_a_list_of_banned_items_goes_from_model_to_model(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "nextmove")
    worker._settings = Settings(banned_items=tmp_path / "banned")
    rule = worker.pipeline.rule.window
    first, second = (Engine(untrained(seed, window=rule), device="cpu") for seed in (0, 1))
    worker.watch.at_work = first
    worker.ban(frozenset({"i0", "elsewhere"}))
    assert first.hidden.banned == {"i0", "elsewhere"}
    assert "2 banned items, 1 of them unknown to the model" in caplog.text
    hidden_as_it_began = []

    async def swap(engine: Engine) -> None:
        hidden_as_it_began.append(engine.hidden.banned)
        worker.ban(frozenset({"i1"}))  # while the one before is at work still

    monkeypatch.setattr(worker.agent, "swap", swap)
    await worker._take(second)
    assert hidden_as_it_began == [{"i0", "elsewhere"}]
    assert second.hidden == first.hidden == Hidden(frozenset({"i1"}))
