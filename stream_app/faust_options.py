"""What Faust is told, and why. Each line is there because its default loses records, costs speed or opens a door."""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir
from typing import Any

import faust

from stream_app import aiokafka_fixes, consumer  # noqa: F401  # mend aiokafka and Faust for this process
from stream_app.connection import ssl_context
from stream_app.intake import ChunkLimits, ChunkScheduler
from stream_app.logs import PlainWorker, logging_config
from stream_app.settings import Settings
from stream_app.tables import HistoryTable

ROCKSDB = {  # per partition; Faust's own defaults are 2 GiB of cache and 3 × 64 MiB of buffers
    "driver": "rocksdict",
    "block_cache_size": 16 * 1024**2,
    "write_buffer_size": 8 * 1024**2,
    "max_write_buffer_number": 2,
    "max_open_files": 128,
}


def app_options(settings: Settings) -> dict[str, Any]:
    """Arguments of `faust.App`."""
    return {
        "broker": ";".join(f"kafka://{address.strip()}" for address in settings.broker.split(",")),
        "broker_credentials": _credentials(settings),
        "store": settings.store,
        "datadir": str(_data_dir(settings)),
        "logging_config": logging_config(settings),
        "Worker": PlainWorker,
        # Chunks instead of records, and a table whose changelog is awaited
        "ConsumerScheduler": ChunkScheduler.for_topics(
            settings.input_topic, settings.changelog_topic, _limits(settings)
        ),
        "Table": HistoryTable,
        # A memory store drops its standby copies at every rebalance and yet goes on reading behind them: promoted, it
        # would miss users. Without standbys each partition is read from its beginning by whoever gets it.
        "table_standby_replicas": 0,
        "stream_buffer_maxsize": settings.chunks_queued,  # chunks, not records; dropped when partitions move
        "stream_wait_empty": True,  # finish the chunk in work before partitions move
        # A failure ends the worker: restarted in place, the agent would go on after the failed chunk
        "agent_supervisor": "mode.CrashingSupervisor",
        # Topics are made by `nextmove topics`, not by a worker; nobody asks for a leader election
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": settings.fetch_bytes,
        "broker_session_timeout": settings.session_timeout_s,
        "broker_heartbeat_interval": min(3.0, settings.session_timeout_s / 3),
        "consumer_group_instance_id": settings.instance_id,
        # The agent commits each chunk, and nobody else does: what a commit answers is then what became of that chunk
        "broker_commit_interval": 365 * 24 * 3600.0,
        "broker_commit_every": 2**31,
        "broker_max_poll_interval": 1000.0,
        # Faust's own producer sends nothing: `producing.py` has ours
        # Faust's web server carries our three pages; what it would serve itself includes everyone's table data
        "web_bind": settings.web_host,
        "web_port": settings.web_port,
        "web_host": settings.web_host,
        "web_tables_enabled": False,
        "web_stats_enabled": False,
        "web_graph_enabled": False,
        "web_router_enabled": False,
        "web_metrics_enabled": False,
    }


def _data_dir(settings: Settings) -> Path:
    """Faust makes its directory even where the store needs none, and makes no parents."""
    directory = settings.data_dir if settings.store == "rocksdb://" else Path(gettempdir()) / "nextmove"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _limits(settings: Settings) -> ChunkLimits:
    return ChunkLimits(settings.chunk_records, settings.chunk_bytes, settings.chunk_records_per_user)


def _credentials(settings: Settings) -> Any:
    context = ssl_context(settings)
    if settings.sasl_mechanism is None:
        return faust.SSLCredentials(context=context) if context else None
    return faust.SASLCredentials(
        username=settings.sasl_username,
        password=settings.sasl_password.get_secret_value() if settings.sasl_password else None,
        mechanism=settings.sasl_mechanism,
        ssl_context=context,
    )
