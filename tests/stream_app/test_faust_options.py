"""What Faust makes of the settings; a real app is built from each."""

from pathlib import Path
from typing import Any

import faust
import pytest

from stream_app.faust_options import app_options
from stream_app.intake import ChunkLimits, ChunkScheduler
from stream_app.settings import Settings
from stream_app.tables import HistoryTable


def app(**given: Any) -> faust.App:
    settings = Settings(**given)
    return faust.App(settings.app_id, **app_options(settings))


def test_several_addresses_of_a_broker() -> None:
    assert [str(url) for url in app(broker="one:1, two:2").conf.broker] == ["kafka://one:1", "kafka://two:2"]


def test_chunks_as_the_settings_say() -> None:
    given = {"chunk_records": 8, "chunk_bytes": 9, "chunk_records_per_user": 7, "chunks_queued": 6}
    conf = app(input_topic="events", **given).conf
    assert issubclass(conf.ConsumerScheduler, ChunkScheduler)
    assert conf.ConsumerScheduler.input_topic == "events"
    assert conf.ConsumerScheduler.changelog_topic == Settings().changelog_topic
    assert conf.ConsumerScheduler.limits == ChunkLimits(records=8, bytes=9, per_user=7)
    assert (conf.Table, conf.stream_buffer_maxsize) == (HistoryTable, 6)


def test_everything_is_written_by_all_replicas_before_it_counts() -> None:
    conf = app().conf
    assert conf.producer_acks == -1
    assert conf.stream_wait_empty
    assert conf.consumer_auto_offset_reset == "earliest"


def test_a_failure_ends_the_worker() -> None:
    assert app().conf.agent_supervisor.__name__ == "CrashingSupervisor"


def test_no_topic_is_made_by_accident() -> None:
    conf = app().conf
    assert (conf.topic_allow_declare, conf.topic_disable_leader) == (False, True)


def test_no_page_of_faust_shows_data() -> None:
    """The integration tests ask for the pages; here stands which switches that needs."""
    conf = app().conf
    switches = ("tables", "stats", "graph", "router", "metrics")
    assert [getattr(conf, f"web_{name}_enabled") for name in switches] == [False] * len(switches)
    assert (conf.web_bind, conf.web_port) == ("127.0.0.1", 8090)


@pytest.mark.parametrize(("timeout_s", "heartbeat_s"), [("6", 2.0), ("9", 3.0), ("60", 3.0)])
def test_the_session_timeout_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, timeout_s: str, heartbeat_s: float
) -> None:
    monkeypatch.setenv("NEXTMOVE_SESSION_TIMEOUT_S", timeout_s)
    conf = app().conf
    assert (conf.broker_session_timeout, conf.broker_heartbeat_interval) == (float(timeout_s), heartbeat_s)


def test_a_static_member_of_the_group() -> None:
    assert app().conf.consumer_group_instance_id is None
    assert app(instance_id="worker-1").conf.consumer_group_instance_id == "worker-1"


def test_how_much_is_fetched_of_a_partition() -> None:
    assert app().conf.consumer_max_fetch_size == 2**20
    assert app(fetch_bytes=2**22).conf.consumer_max_fetch_size == 2**22


@pytest.mark.parametrize(("store", "has_data"), [("memory://", False), ("rocksdb://", True)])
def test_only_a_store_on_disk_needs_the_data_directory(tmp_path: Path, store: str, has_data: bool) -> None:
    directory = tmp_path / "a" / "b"
    conf = app(store=store, data_dir=directory).conf
    assert conf.store.scheme == store.removesuffix("://")
    assert directory.exists() == has_data
    assert (Path(conf.datadir) == directory) == has_data
