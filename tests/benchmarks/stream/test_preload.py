"""Histories for users who were never seen."""

from benchmarks.stream.loads import START_MS, partition_of
from benchmarks.stream.preload import histories, templates
from model.window import WindowRule
from stream_app.history_codec import decode

RULE = WindowRule(events=4)


def test_rings_are_full_and_no_offset_in_them_counts() -> None:
    for partition, stored in enumerate(templates(RULE, partitions=2)[7]):
        history = decode(stored)
        assert (history.partition, history.last_offset) == (partition, -1)
        assert history.length == 4 + 7 % 16
        assert history.watermark_ms < START_MS


def test_every_user_has_a_ring_of_the_own_partition() -> None:
    written = list(histories(300, templates(RULE, partitions=4)))
    assert len({key for key, _, _ in written}) == 300
    for key, partition, stored in written:
        assert partition == partition_of(key, 4) == decode(stored).partition
