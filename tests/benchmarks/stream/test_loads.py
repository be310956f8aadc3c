"""The events that are played."""

from collections import Counter

import orjson
from aiokafka.partitioner import DefaultPartitioner

from benchmarks.stream.loads import partition_of, skewed, uniform


def test_the_same_seed_gives_the_same_events() -> None:
    assert skewed(500).records == skewed(500).records
    assert skewed(500).records != skewed(500, seed=1).records


def test_events_are_of_the_contract_and_in_order() -> None:
    events = [orjson.loads(value) for _, value in skewed(500).records]
    assert all(event.keys() >= {"user_id", "behavior", "timestamp", "item_id", "event_id"} for event in events)
    times = [event["timestamp"] for event in events]
    assert times == sorted(times)
    assert len({event["event_id"] for event in events}) == len(events)
    assert [key.decode() for key, _ in skewed(500).records] == [event["user_id"] for event in events]


def test_skewed_users_differ_in_zeal_and_uniform_ones_do_not() -> None:
    busiest = {load.name: max(Counter(key for key, _ in load.records).values()) for load in _loads(20_000, users=1000)}
    assert busiest["skewed"] > 10 * 20
    assert busiest["uniform"] < 3 * 20


def test_what_fits_is_the_longest_beginning_within_the_limit() -> None:
    load = uniform(1000, users=100)
    few = load.fitting(partitions=4, most_bytes=20_000)
    assert 0 < len(few.records) < 1000
    assert few.records == load.records[: len(few.records)]
    assert load.fitting(partitions=4, most_bytes=10**9) is load


def test_keys_go_where_producers_put_them() -> None:
    choose, numbers = DefaultPartitioner(), list(range(7))
    for key, _ in uniform(50, users=50).records:
        assert partition_of(key, 7) == choose(key, numbers, numbers)


def _loads(events: int, users: int) -> tuple:
    return skewed(events, users=users), uniform(events, users=users)
