"""The demo: a shop's log, a small model, an embedded broker and a real worker, watched while they work.

The model is trained on the first part of the log; the rest is played into the topic, through the worker, and read back
by a reader of its own, which also keeps the books: every event must come out as a prediction or as a dead letter.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import monotonic
from typing import Any

import aiohttp
import orjson
import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stream_app.behaviors import Behaviors
from stream_app.broker import EmbeddedBroker
from stream_app.event_logs import read_log
from stream_app.learning import learn, training_bar
from stream_app.predictions import prediction_id
from stream_app.replay import to_kafka
from stream_app.settings import Settings
from stream_app.simulation import ShopConfig, simulate

TRAIN_SHARE = 0.7  # of the events, by time
TRAIN_S = 60.0
READY_LIMIT_S = 60.0
STALL_LIMIT_S = 30.0  # no answer for so long while some are missing: something is wrong
MOST_AHEAD = 2000  # events sent and not yet answered; the embedded broker keeps only 5 MiB a partition
REFRESH_S = 0.5
LATENCIES = 2000  # the last so many are shown

DONE = {
    "view": "viewed {}", "search": "searched", "favorite": "marked {}", "add_to_cart": "put {} into the cart",
    "remove_from_cart": "took {} out of the cart", "checkout": "went to the checkout", "purchase": "bought {}",
    "rate": "rated {}", "play": "played {}", "complete": "finished {}", "share": "shared {}", "login": "logged in",
    "logout": "logged out",
}  # fmt: skip


class DemoError(Exception):
    """The demo cannot go on; one line for a person."""


@dataclass(slots=True)
class Books:
    """What went in and what came out, by the id of the record that caused it."""

    sent: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # id → (produced, ms; the event)
    answered: dict[str, int] = field(default_factory=dict)  # id → predictions and dead letters with it
    dead_letters: Counter[str] = field(default_factory=Counter)
    latencies_ms: deque[int] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=4))

    @property
    def missing(self) -> int:
        """Events read back from the input topic without an answer."""
        return sum(id_ not in self.answered for id_ in self.sent)

    @property
    def repeated(self) -> int:
        """Answers beyond the first for the same event."""
        return sum(self.answered.values()) - len(self.answered)

    def note_event(self, id_: str, timestamp_ms: int, value: bytes) -> None:
        """An event on the input topic."""
        self.sent[id_] = (timestamp_ms, orjson.loads(value))

    def note_prediction(self, id_: str, timestamp_ms: int, value: bytes) -> None:
        """A prediction on the output topic."""
        self.answered[id_] = self.answered.get(id_, 0) + 1
        self.last.append(orjson.loads(value))
        if id_ in self.sent:
            self.latencies_ms.append(timestamp_ms - self.sent[id_][0])

    def note_dead_letter(self, headers: Mapping[str, bytes]) -> None:
        """A dead letter."""
        partition = int.from_bytes(headers["kafka_dlt-original-partition"], "big")
        offset = int.from_bytes(headers["kafka_dlt-original-offset"], "big")
        id_ = prediction_id(headers["kafka_dlt-original-topic"].decode(), partition, offset)
        self.answered[id_] = self.answered.get(id_, 0) + 1
        self.dead_letters[headers["dlq-reason"].decode()] += 1


@dataclass(slots=True)
class Show:
    """What the live view shows beside the books."""

    events: int
    start: float = field(default_factory=monotonic)
    figures: dict[str, float] = field(default_factory=dict)  # from the worker's /metrics
    rates: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=10))  # (monotonic s, answers)


def run(log: Path | None, *, seconds: float, seed: int, behaviors: Behaviors, console: Console) -> int:
    """The whole demo; the exit code is 1 if any event was left without an answer.

    Raises LogError, TrainingError, BrokerError, DemoError or ReplayError.
    """
    frame = read_log(log, behaviors=behaviors).frame if log else simulate(ShopConfig(seed=seed))
    cut = int(len(frame) * TRAIN_SHARE)
    if cut < 1 or cut == len(frame):
        raise DemoError(f"{log}: {len(frame)} events are too few to train on some and play the rest")
    folder = Path(mkdtemp(prefix="nextmove-demo-"))
    console.print(
        f"{'Log ' + str(log) if log else 'A simulated shop'}: {len(frame):,} events of {frame['user_id'].n_unique():,} "
        f"users. Learning from the first {cut:,}, then playing the other {len(frame) - cut:,}."
    )
    with training_bar(console) as bar:
        learn(
            frame, behaviors, folder / "model",
            seed=seed, train_until=TRAIN_SHARE, time_budget_s=TRAIN_S, callbacks=[bar],
        )  # fmt: skip
    console.print(f"Model and worker log: {folder}")
    rest = frame.slice(cut)
    return play(rest, folder / "model", seconds=seconds, console=console, log_path=folder / "worker.log")


def play(frame: pl.DataFrame, model: Path, *, seconds: float, console: Console, log_path: Path) -> int:
    """Play `frame` through a broker and a worker in about `seconds`; the exit code. Raises DemoError."""
    settings = Settings(model=model, broker_timeout_s=30, web_port=_free_port())
    with EmbeddedBroker(dict.fromkeys(settings.topics, settings.partitions)) as broker:
        settings = settings.model_copy(update={"broker": broker.bootstrap})
        books = asyncio.run(_play(frame, settings, seconds, console, log_path))
    return verdict(books, len(frame))


def verdict(books: Books, events: int) -> int:
    """The exit code: 0 if all `events` were sent and have an answer each, else 1."""
    return 0 if len(books.sent) == events and books.missing == 0 else 1


async def _play(frame: pl.DataFrame, settings: Settings, seconds: float, console: Console, log_path: Path) -> Books:
    books, show = Books(), Show(events=len(frame))
    async with _worker(settings, log_path) as worker, _reader(settings, books):
        console.print("The worker is ready; events flow.")
        show.start = monotonic()
        feeding = asyncio.create_task(_feed(frame, settings, seconds, books))
        with Live(console=console, refresh_per_second=4, get_renderable=lambda: _view(books, show)) as live:
            await _watch(feeding, worker, settings, books, show)
            live.refresh()
        await feeding
        show.figures.update(await _figures(settings))
        console.print()
        console.print(_summary(books, show))
    return books


async def _feed(frame: pl.DataFrame, settings: Settings, seconds: float, books: Books) -> None:
    span_s = (frame["timestamp"][-1] - frame["timestamp"][0]) / 1000
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.broker,
        enable_idempotence=True,
        linger_ms=200,  # the embedded broker answers a fetch with one produced batch: let it hold more than one event
    )
    await producer.start()

    async def throttle(sent: int) -> None:
        while sent - len(books.answered) > MOST_AHEAD:
            await asyncio.sleep(0.05)

    try:
        await to_kafka(frame, producer, settings.input_topic, speed=max(span_s / seconds, 1e-9), throttle=throttle)
    finally:
        await producer.stop()


async def _watch(
    feeding: asyncio.Task[None], worker: subprocess.Popen[bytes], settings: Settings, books: Books, show: Show
) -> None:
    """Until every event is answered, or nothing comes any more. Raises DemoError."""
    progress_at, answered = monotonic(), 0
    while not (feeding.done() and len(books.answered) >= show.events):
        await asyncio.sleep(REFRESH_S)
        if worker.poll() is not None:
            raise DemoError(f"the worker ended by itself with code {worker.returncode}")
        if feeding.done() and feeding.exception() is not None:
            return
        show.figures.update(await _figures(settings))
        now = monotonic()
        show.rates.append((now, len(books.answered)))
        if len(books.answered) > answered or not feeding.done():
            progress_at, answered = now, len(books.answered)
        elif now - progress_at > STALL_LIMIT_S:
            return


@asynccontextmanager
async def _worker(settings: Settings, log_path: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, ready; stopped at the end."""
    given = settings.model_dump(mode="json", include={"model", "broker", "broker_timeout_s", "web_port"})
    environment = {**os.environ, **{f"NEXTMOVE_{name.upper()}": str(value) for name, value in given.items()}}
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "stream_app.cli", "worker"], env=environment, stdout=log, stderr=log
        )
    try:
        await _until_ready(worker, settings, log_path)
        yield worker
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(worker.wait, 30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


async def _until_ready(worker: subprocess.Popen[bytes], settings: Settings, log_path: Path) -> None:
    deadline = monotonic() + READY_LIMIT_S
    async with aiohttp.ClientSession() as session:
        while monotonic() < deadline:
            if worker.poll() is not None:
                raise DemoError(f"the worker did not start; see {log_path}")
            with suppress(aiohttp.ClientError):
                async with session.get(f"http://{settings.web_host}:{settings.web_port}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise DemoError(f"the worker was not ready after {READY_LIMIT_S:.0f} s; see {log_path}")


@asynccontextmanager
async def _reader(settings: Settings, books: Books) -> AsyncIterator[None]:
    """Reads the topics from their beginning into the books, in the background."""
    topics = (settings.input_topic, settings.output_topic, settings.dead_letter_topic)
    consumer = AIOKafkaConsumer(
        *topics, bootstrap_servers=settings.broker, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    reading = asyncio.create_task(_read(consumer, settings, books))
    try:
        yield
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer, settings: Settings, books: Books) -> None:
    async for record in consumer:
        headers = dict(record.headers)
        if record.topic == settings.input_topic:
            id_ = prediction_id(record.topic, record.partition, record.offset)
            books.note_event(id_, record.timestamp, record.value)
        elif record.topic == settings.output_topic:
            books.note_prediction(headers["prediction_id"].decode(), record.timestamp, record.value)
        else:
            books.note_dead_letter(headers)


async def _figures(settings: Settings) -> dict[str, float]:
    """Lag and live quality from the worker's /metrics; empty while it does not answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get(f"http://{settings.web_host}:{settings.web_port}/metrics") as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return {}
    figures: dict[str, float] = {"lag": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "nextmove_input_lag_records":
                figures["lag"] += sample.value
            elif sample.name in ("nextmove_live_hit_rate", "nextmove_live_mrr"):
                figures[f"{sample.name.removeprefix('nextmove_live_')} {sample.labels['predictor']}"] = sample.value
            elif sample.name == "nextmove_live_behavior_accuracy_ratio":
                figures["behavior accuracy"] = sample.value
    return figures


def _view(books: Books, show: Show) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    seconds = monotonic() - show.start
    table.add_row("time", f"{seconds:5.0f} s", "events/s", f"{_rate(show):7.0f}", "latency", _latency(books))
    done = f"{len(books.answered):,} of {show.events:,}"
    lag, letters = f"{show.figures.get('lag', 0):7.0f}", f"{books.dead_letters.total():,}"
    table.add_row("answered", done, "lag", lag, "dead letters", letters)
    return Group(table, _quality(show), *(Text(in_words(p, books)) for p in books.last))


def _quality(show: Show) -> Table:
    table = Table(title="Next item, scored live on the event that came", title_justify="left")
    for name in ("", "model", "repeat", "popularity"):
        table.add_column(name, justify="left" if not name else "right")
    for label, key in (("hit rate @10", "hit_rate"), ("MRR @10", "mrr")):
        cells = [show.figures.get(f"{key} {who}") for who in ("model", "repeat", "popularity")]
        table.add_row(label, *("–" if cell is None else f"{cell:.3f}" for cell in cells))
    return table


def _summary(books: Books, show: Show) -> Table:
    seconds = monotonic() - show.start
    table = Table(title="Summary", title_justify="left", show_header=False)
    rows = {
        "events sent": f"{len(books.sent):,} in {seconds:.1f} s",
        "predictions": f"{sum(books.answered.values()) - books.dead_letters.total():,}",
        "dead letters": ", ".join(f"{n} {reason}" for reason, n in books.dead_letters.items()) or "none",
        "events without an answer": f"{books.missing + show.events - len(books.sent):,}",
        "answers repeated": f"{books.repeated:,}",
        "latency, median / p99": f"{_latency(books)} (embedded broker: not a benchmark)",
    }
    for key, label in (("hit_rate", "live hit rate @10"), ("mrr", "live MRR @10")):
        parts = [
            f"{who} {show.figures.get(f'{key} {who}', float('nan')):.3f}" for who in ("model", "repeat", "popularity")
        ]
        rows[label] = ", ".join(parts)
    rows["behaviour predicted right"] = f"{show.figures.get('behavior accuracy', float('nan')):.1%}"
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def in_words(prediction: Mapping[str, Any], books: Books) -> str:
    """One prediction as a sentence."""
    event = books.sent.get(prediction["prediction_id"], (0, {}))[1]
    did = DONE.get(event.get("behavior", ""), "did something").format(event.get("item_id", "something"))
    likely = sorted(prediction["next_behaviors"].items(), key=lambda pair: -pair[1])[:2]
    behaviors = ", ".join(f"{name} {probability:.0%}" for name, probability in likely)
    items = ", ".join(f"{item['item_id']} ({item['probability']:.0%})" for item in prediction["next_items"][:3])
    buys = f"{prediction['purchase_probability']:.0%}"
    return f"{prediction['user_id']} {did} → next: {behaviors}; items {items}; buys soon: {buys}"


def _rate(show: Show) -> float:
    if len(show.rates) < 2:
        return 0.0
    (start, before), (end, after) = show.rates[0], show.rates[-1]
    return (after - before) / (end - start)


def _latency(books: Books) -> str:
    if not books.latencies_ms:
        return "–"
    ordered = sorted(books.latencies_ms)
    return f"{median(ordered):.0f} ms / {ordered[int(0.99 * (len(ordered) - 1))]:.0f} ms"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
