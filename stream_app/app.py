"""The worker on one screen: settings → topics → table → agent → web.

Run it with `nextmove worker --model DIR`, or with Faust's own command: `faust -A stream_app.app worker`.
The steps of the agent are in `agent.py`, what Faust is told and why in `faust_options.py`.
"""

from __future__ import annotations

from faust.types import StreamT

from stream_app import garbage, web
from stream_app.events import Record
from stream_app.faust_options import ROCKSDB, app_options
from stream_app.settings import Settings
from stream_app.tables import HistoryTable
from stream_app.worker import App, Worker

settings = Settings()
app = App(settings.app_id, **app_options(settings))
app.shutdown_s = settings.shutdown_s
app.fetch_interval_s = settings.fetch_interval_ms / 1000

events = app.topic(settings.input_topic, key_serializer="raw", value_serializer="raw")
histories: HistoryTable = app.Table(  # type: ignore[assignment]  # the class that `Table` in the options names
    "histories",
    key_type=bytes,
    value_type=bytes,
    partitions=settings.partitions,
    recovery_buffer_size=2,  # carriers of many records, held until then; with 1 Faust would go on reading the changelog
    options=dict(ROCKSDB) if settings.store == "rocksdb://" else None,
)
worker = Worker(app, settings, histories)

app.on_worker_init.connect(worker.prepare)  # model loaded, topics checked: before anything consumes
app.on_partitions_revoked.connect(worker.forget_partitions)
app.on_partitions_assigned.connect(worker.meet_partitions)  # type: ignore[arg-type]  # called with what was assigned
app.timer(garbage.INTERVAL_S, name="garbage")(worker.collect_garbage)
app.task(worker.watch_model)
app.task(worker.watch_banned_items)


@app.agent(events, name="predict")
async def predict(stream: StreamT[list[Record]]) -> None:
    """Chunks of user events in, predictions out; see the seven steps in `agent.py`."""
    await worker.agent.run(stream)


web.add_pages(app, settings, worker)
