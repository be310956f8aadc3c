"""The events that are played: a real log, or a synthetic one over many users of very different zeal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from aiokafka.partitioner import murmur2

from stream_app.event_logs import read_log, to_records

START_MS = 1_704_067_200_000  # 2024-01-01
DAY_MS = 24 * 3600 * 1000
EVENTS_PER_S = 1000  # of the synthetic shop, in event time
BEHAVIORS = ("view", "add_to_cart", "favorite", "purchase")
BEHAVIOR_SHARES = (0.895, 0.055, 0.03, 0.02)  # about those of the Taobao log
ITEMS, CATEGORIES = 100_000, 1_000
ITEM_SKEW = 1.0  # Zipf's exponent
RECORD_OVERHEAD = 24  # bytes of a record beside key and value, at most, in a batch without headers


@dataclass(frozen=True)
class Load:
    """Records in event-time order: user id and event in JSON."""

    name: str
    description: str
    records: list[tuple[bytes, bytes]]

    def head(self, events: int) -> Load:
        """The first so many."""
        return self if events >= len(self.records) else Load(self.name, self.description, self.records[:events])

    def figures(self) -> dict[str, object]:
        """What a reader wants to know of it."""
        users = Counter(key for key, _ in self.records)
        return {
            "description": self.description,
            "events": len(self.records),
            "users": len(users),
            "events_of_busiest_user": max(users.values()),
            "mean_event_bytes": round(sum(len(value) for _, value in self.records) / len(self.records), 1),
        }

    def fitting(self, partitions: int, most_bytes: int) -> Load:
        """As many of the first events as keep every partition below `most_bytes`."""
        sizes = [0] * partitions
        for position, (key, value) in enumerate(self.records):
            partition = partition_of(key, partitions)
            sizes[partition] += len(key) + len(value) + RECORD_OVERHEAD
            if sizes[partition] > most_bytes:
                return self.head(position)
        return self


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's producers put a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def real(path: Path, days: int = 1) -> Load:
    """A log in any of the formats that NextMove reads, played on so many days, one after the other, by the same users."""
    log = read_log(path)
    description = f"{path.name}, read as {log.report.format}" + (f", on {days} days" if days > 1 else "")
    later = [log.frame.with_columns(pl.col("timestamp") + day * DAY_MS) for day in range(days)]
    return Load("real", description, list(to_records(pl.concat(later))))


def skewed(events: int, *, users: int = 1_000_000, skew: float = 0.9, seed: int = 0) -> Load:
    """A shop in which the k-th busiest of `users` does k^-skew as much as the busiest."""
    random = np.random.default_rng(seed)
    description = f"synthetic: {users:,} users by Zipf {skew:g}, {ITEMS:,} items by Zipf {ITEM_SKEW:g}, seed {seed}"
    return Load("skewed", description, _records(random, zipf(random, events, users, skew)))


def uniform(events: int, *, users: int, seed: int = 0) -> Load:
    """A shop in which all users are equally busy."""
    random = np.random.default_rng(seed)
    description = f"synthetic: {users:,} users, all alike, {ITEMS:,} items by Zipf {ITEM_SKEW:g}, seed {seed}"
    return Load("uniform", description, _records(random, random.integers(users, size=events)))


def user_id(number: int) -> str:
    """The id of the user of that rank."""
    return f"u{number:07d}"


def item_id(number: int) -> str:
    """The id of the item of that rank."""
    return f"i{number:06d}"


def category_id(number: int) -> str:
    """The category of the item of that rank."""
    return f"c{number % CATEGORIES:04d}"


def zipf(random: np.random.Generator, count: int, ranks: int, skew: float) -> np.ndarray:
    """`count` ranks from 0, with probability proportional to (rank + 1)^-skew."""
    weights = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -skew)
    return np.asarray(np.searchsorted(weights, random.random(count) * weights[-1]))


def frame(random: np.random.Generator, users: np.ndarray, start_ms: int = START_MS) -> pl.DataFrame:
    """One event for each of `users`, in the columns of a table of events."""
    count = len(users)
    items = zipf(random, count, ITEMS, ITEM_SKEW)
    prices = np.round(5 + (items * 7919 % 20_000) / 100, 2)  # the same item has the same price
    times = start_ms + np.cumsum(random.exponential(1000 / EVENTS_PER_S, count)).astype(np.int64)
    return pl.DataFrame(
        {
            "user_id": [user_id(number) for number in users.tolist()],
            "timestamp": times,
            "behavior": random.choice(BEHAVIORS, count, p=BEHAVIOR_SHARES).tolist(),
            "item_id": [item_id(number) for number in items.tolist()],
            "category": [category_id(number) for number in items.tolist()],
            "price": prices,
            "event_id": [text.hex() for text in np.frombuffer(random.bytes(16 * count), "V16").tolist()],
        }
    )


def _records(random: np.random.Generator, users: np.ndarray) -> list[tuple[bytes, bytes]]:
    return list(to_records(frame(random, users)))
