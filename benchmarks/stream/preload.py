"""Histories on the changelog before a worker starts: as many users as wanted, each with a full ring.

A few hundred rings are folded from synthetic events as the worker would; users share their bytes. A ring says that it
comes from another partition's past (no offset in it counts), so that every new event is new to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.stream.loads import START_MS, frame, partition_of, user_id
from benchmarks.stream.topics import Names, delivering
from model.window import WindowRule
from stream_app.events import Event
from stream_app.history import HistoryRule, fold, on_partition
from stream_app.history_layout import History

TEMPLATES = 250
DAY_MS = 24 * 3600 * 1000


def preload(bootstrap: str, names: Names, users: int, rule: WindowRule) -> float:
    """Write a full ring for each user; the mean bytes of a changelog record, key and value."""
    rings = templates(rule, names.partitions)
    size = 0
    with delivering(bootstrap) as produce:
        for key, partition, value in histories(users, rings):
            produce(names.changelog, value, key, partition)
            size += len(key) + len(value)
    return size / users


def histories(users: int, rings: list[list[bytes]]) -> Iterator[tuple[bytes, int, bytes]]:
    """User, partition and stored history; `rings` holds each template once for every partition."""
    partitions = len(rings[0])
    for number in range(users):
        key = user_id(number).encode()
        partition = partition_of(key, partitions)
        yield key, partition, rings[number % len(rings)][partition]


def templates(rule: WindowRule, partitions: int) -> list[list[bytes]]:
    """Full rings as stored; of each, one for every partition."""
    full = HistoryRule(rule)
    return [_ring(number, full, partitions) for number in range(TEMPLATES)]


def _ring(seed: int, rule: HistoryRule, partitions: int) -> list[bytes]:
    events = rule.window.events + seed % rule.slack  # as long as they are found to be, between two drops of the oldest
    rows = frame(np.random.default_rng(seed), np.full(events, seed), START_MS - DAY_MS)
    elsewhere = History.empty(partitions)  # one behind the last
    for offset, row in enumerate(rows.iter_rows(named=True)):
        event = Event(
            row["user_id"], row["behavior"], row["timestamp"], row["item_id"], row["category"], row["event_id"]
        )
        elsewhere, _ = fold(elsewhere, event, offset, rule, offset)
    return [on_partition(elsewhere, partition).stored for partition in range(partitions)]
