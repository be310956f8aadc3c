"""The independent checker: it only reads topics, and confirms the five invariants of the delivery contract.

1. every input offset below the end has a prediction or a dead letter
2. one distinct `prediction_id` each; what came twice is equal
3. each user's changelog value equals a plain fold of that user's records
4. the first predictions of a user come in the order of the user's events
5. nothing below a committed offset lacks a durable output

It shares no code with the worker but the decoding of a stored history; the fold here is written anew, the slow way. Where
the worker drops histories of users who are idle, it may do so late or never: then more than one state of a user is right.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from model.window import WindowRule
from stream_app import history, history_codec

TOLERANCE = 1e-5  # of probabilities; the model is a float32 network, and batches differ


@dataclass
class Names:
    """The topics and the group of one deployment."""

    events: str
    predictions: str
    dead_letters: str
    changelog: str
    group: str


@dataclass
class Topics:
    """Everything that the topics hold, read from their beginnings to their ends."""

    events: list[ConsumerRecord] = field(default_factory=list)
    predictions: list[ConsumerRecord] = field(default_factory=list)
    dead_letters: list[ConsumerRecord] = field(default_factory=list)
    changelog: list[ConsumerRecord] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)  # by partition of the events


async def read(bootstrap: str, names: Names) -> Topics:
    """Committed offsets first, then all records: what is committed must be durable by then."""
    found = Topics(committed=await _committed(bootstrap, names))
    for kind in ("events", "predictions", "dead_letters", "changelog"):
        setattr(found, kind, await read_topic(bootstrap, getattr(names, kind)))
    return found


async def read_topic(bootstrap: str, topic: str) -> list[ConsumerRecord]:
    """All records of a topic up to its ends as of now, in offset order per partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, max_partition_fetch_bytes=8 << 20
    )
    await consumer.start()
    try:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        if not partitions:
            partitions = [TopicPartition(topic, number) for number in await _partitions(consumer, topic)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[ConsumerRecord] = []
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                records.extend(batch)
        return [r for r in records if r.offset < ends[TopicPartition(topic, r.partition)]]
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[int]:
    consumer._client.add_topic(topic)
    while not consumer.partitions_for_topic(topic):
        await consumer._client.force_metadata_update()
        await asyncio.sleep(0.05)
    return sorted(consumer.partitions_for_topic(topic))


async def _committed(bootstrap: str, names: Names) -> dict[int, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(names.group)
    finally:
        await admin.close()
    return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == names.events}


def wait_for_answers(bootstrap: str, names: Names, at_least: int, limit_s: float = 300) -> None:
    """Until so many events have an output."""
    deadline = time.monotonic() + limit_s
    while True:
        outputs = [
            *asyncio.run(read_topic(bootstrap, names.predictions)),
            *asyncio.run(read_topic(bootstrap, names.dead_letters)),
        ]
        answered = len({cause(record) for record in outputs})
        if answered >= at_least:
            return
        assert time.monotonic() < deadline, f"{answered} of {at_least} events answered"
        time.sleep(0.2)


def wait_for_outputs(bootstrap: str, names: Names, at_least: int, limit_s: float = 300) -> None:
    """Until there are so many outputs, twins counted as two; seen within some hundredths of a second, since none is read."""
    asyncio.run(asyncio.wait_for(_wait_for_outputs(bootstrap, names, at_least), limit_s))


async def _wait_for_outputs(bootstrap: str, names: Names, at_least: int) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        topics = (names.predictions, names.dead_letters)
        places = [TopicPartition(topic, number) for topic in topics for number in await _partitions(consumer, topic)]
        while sum((await consumer.end_offsets(places)).values()) < at_least:
            await asyncio.sleep(0.02)
    finally:
        await consumer.stop()


def headers(record: ConsumerRecord) -> dict[str, bytes]:
    """The headers by name."""
    return dict(record.headers)


def cause(record: ConsumerRecord) -> tuple[int, int]:
    """The partition and offset of the event behind a prediction or a dead letter."""
    own = headers(record)
    if "prediction_id" in own:
        partition, offset = own["prediction_id"].decode().rsplit("-", 2)[1:]
        return int(partition), int(offset)
    return (
        int.from_bytes(own["kafka_dlt-original-partition"], "big"),
        int.from_bytes(own["kafka_dlt-original-offset"], "big"),
    )


def violations(found: Topics, rule: WindowRule, lateness_ms: int = 3_600_000, idle_ms: int | None = None) -> list[str]:
    """What is wrong, one line each; with `found` read after the log was drained.

    `idle_ms`: how far a user must be behind the newest event of the partition for the history to be dropped; None: never.
    """
    return [
        *missing(found),
        *unequal(found),
        *wrong_states(found, rule, lateness_ms, idle_ms),
        *out_of_order(found),
        *committed_too_early(found),
    ]


def missing(found: Topics) -> list[str]:
    """Invariant 1, and that no output has two kinds or an event that never was."""
    wanted = {(record.partition, record.offset) for record in found.events}
    predicted = {cause(record) for record in found.predictions}
    rejected = {cause(record) for record in found.dead_letters}
    return [
        *(f"no output for {place}" for place in sorted(wanted - predicted - rejected)),
        *(f"an output for {place}, which is no event" for place in sorted((predicted | rejected) - wanted)),
        *(f"both a prediction and a dead letter for {place}" for place in sorted(predicted & rejected)),
    ]


def unequal(found: Topics) -> list[str]:
    """Invariant 2."""
    first: dict[tuple[int, int], ConsumerRecord] = {}
    wrong = []
    for record in found.predictions:
        place = cause(record)
        if place[0] != record.partition:
            wrong.append(f"the prediction for {place} lies in partition {record.partition}")
        before = first.setdefault(place, record)
        if before is not record and not same_value(before.value, record.value):
            wrong.append(f"two different predictions for {place}: {_difference(before, record)}")
    return wrong


def _difference(one: ConsumerRecord, other: ConsumerRecord) -> str:
    """Where two predictions differ, and when they were written."""
    if one.value is None or other.value is None:
        return "one is an erasure"
    return f"offsets {one.offset} and {other.offset}, {difference(json.loads(one.value), json.loads(other.value))}"


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The fields in which two predictions differ, with both values."""
    return {name: (one[name], other.get(name)) for name in one if not same({name: one[name]}, {name: other.get(name)})}


def repeats(found: Topics) -> int:
    """Outputs beyond the first for the same event; allowed, but worth reporting."""
    causes = Counter(cause(record) for record in [*found.predictions, *found.dead_letters])
    return sum(causes.values()) - len(causes)


def same_value(one: bytes | None, other: bytes | None) -> bool:
    """Two predictions are the same, but for the last digits of probabilities."""
    if one is None or other is None:
        return one is other
    return same(json.loads(one), json.loads(other))


def same(one: Any, other: Any) -> bool:
    """Equal, with numbers within the tolerance; lists of candidates may swap neighbours that are equally likely."""
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same_ranking(one[k], other[k]) if k in ("next_items", "next_categories") else same(one[k], other[k])
            for k in one
        )
    return bool(one == other)


def _same_ranking(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Equal probabilities in order; a name may differ only where another stands within the tolerance."""
    name = "item_id" if one and "item_id" in one[0] else "category"
    if len(one) != len(other) or not all(
        same(a["probability"], b["probability"]) for a, b in zip(one, other, strict=True)
    ):
        return False
    there = {entry[name]: entry["probability"] for entry in other}
    last = other[-1]["probability"] if other else 0.0
    return all(same(entry["probability"], there.get(entry[name], last)) for entry in one)


def wrong_states(found: Topics, rule: WindowRule, lateness_ms: int, idle_ms: int | None = None) -> list[str]:
    """Invariant 3."""
    stored: dict[bytes, bytes | None] = {}
    for record in found.changelog:
        stored[record.key] = record.value
    wrong = []
    expected = folded(found.events, rule, lateness_ms, idle_ms)
    for user, right in expected.items():
        value = stored.get(user)
        if value is None:
            if None not in right:
                wrong.append(f"user {user!r} has no history")
        elif right == [None]:
            wrong.append(f"user {user!r} was erased, and still has a history")
        elif stored_window(value, rule) not in right:
            wrong.append(f"the history of user {user!r} is not the fold of the records")
    wrong.extend(f"a history of {user!r}, who did nothing" for user in stored.keys() - expected.keys())
    return wrong


Columns = tuple[tuple[Any, ...], ...]  # items, behaviours, categories, times; oldest event first
Past = list[tuple[int, int, dict[str, Any]]]  # (ms, offset, event) in the order of folding; empty: no history


def stored_window(value: bytes, rule: WindowRule) -> Columns:
    """The window in a stored history."""
    kept = history_codec.decode(value)
    return tuple(tuple(column) for column in history.window(kept, kept.last_offset, rule))


def folded(
    events: list[ConsumerRecord], rule: WindowRule, lateness_ms: int, idle_ms: int | None = None
) -> dict[bytes, list[Columns | None]]:
    """Each user's right windows after all records, computed the slow way; None is no history.

    Without `idle_ms` there is one for each user, None for an erased one. With it, a history may be gone as soon as its
    newest event is more than that behind the newest event of the partition; when it goes is for the worker to choose, so
    both ways are followed at every event. An event is no newer than its record: a clock that is ahead drops nobody.

    It knows the behaviours by their names, not by aliases, and the default limits; other records change nothing.
    """
    pasts: dict[bytes, list[Past]] = {}  # by user; those that are possible
    partitions: dict[bytes, int] = {}  # by user
    newest_ms: dict[int, int] = {}  # by partition
    for record in sorted(events, key=lambda r: (r.partition, r.offset)):
        if record.value is None:
            if record.key:
                pasts[record.key] = [[]]
            continue
        event = _event(record)
        if event is None:
            continue
        partition = partitions[record.key] = record.partition
        newest_ms[partition] = max(newest_ms.get(partition, 0), min(event["timestamp"], record.timestamp))
        possible = _perhaps_dropped(pasts.get(record.key, [[]]), newest_ms[partition], idle_ms)
        pasts[record.key] = _distinct([_fold(past, record.offset, event, lateness_ms) for past in possible])
    windows = {}
    for user, possible in pasts.items():
        possible = _perhaps_dropped(possible, newest_ms.get(partitions.get(user, -1), 0), idle_ms)
        windows[user] = [_window(past, rule) if past else None for past in possible]
    return windows


def _perhaps_dropped(possible: list[Past], newest_ms: int, idle_ms: int | None) -> list[Past]:
    """What the user's past may be, where it may have been dropped for idleness by now."""
    if idle_ms is None or not any(past and newest_ms - _newest_ms(past) > idle_ms for past in possible):
        return possible
    return _distinct([*possible, []])


def _fold(past: Past, offset: int, event: dict[str, Any], lateness_ms: int) -> Past:
    if past and event["timestamp"] < _newest_ms(past) - lateness_ms:
        return past
    if event.get("event_id") and any(e.get("event_id") == event["event_id"] for _, _, e in past):
        return past
    return [*past, (event["timestamp"], offset, event)]


def _newest_ms(past: Past) -> int:
    return max(time_ms for time_ms, _, _ in past)


def _distinct(pasts: list[Past]) -> list[Past]:
    return list({tuple(entry[:2] for entry in past): past for past in pasts}.values())


ABOUT_ITEMS = {
    "view", "favorite", "add_to_cart", "remove_from_cart", "purchase", "rate", "play", "complete", "share"
}  # fmt: skip
ABOUT_NOTHING = {"search", "checkout", "login", "logout"}


def _event(record: ConsumerRecord) -> dict[str, Any] | None:
    try:
        event = json.loads(record.value)
        if isinstance(event["timestamp"], str):
            event["timestamp"] = int(datetime.fromisoformat(event["timestamp"]).timestamp() * 1000)
        good = (
            len(record.value) <= 1_000_000
            and event["user_id"].encode() == record.key
            and isinstance(event["timestamp"], int)
            and 631_152_000_000 <= event["timestamp"] <= record.timestamp + 3_600_000
            and (event["behavior"] in ABOUT_NOTHING or (event["behavior"] in ABOUT_ITEMS and event.get("item_id")))
            and isinstance(event.get("item_id", ""), str)
            and "\0" not in f"{event['user_id']}{event.get('item_id')}{event.get('category')}"
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return event if good else None


def _window(past: Past, rule: WindowRule) -> Columns:
    ordered = sorted(past, key=lambda entry: entry[:2])
    start = 0
    while len(ordered) - start > rule.events:
        start += rule.stride
    oldest_ms = ordered[-1][0] - rule.age_ms
    oldest_ms += -oldest_ms % rule.age_stride_ms
    last = [entry for entry in ordered[start:] if entry[0] >= oldest_ms]
    return (
        tuple(event.get("item_id") for _, _, event in last),
        tuple(event["behavior"] for _, _, event in last),
        tuple(event.get("category") for _, _, event in last),
        tuple(time for time, _, _ in last),
    )


def out_of_order(found: Topics) -> list[str]:
    """Invariant 4."""
    order: dict[bytes, list[int]] = defaultdict(list)
    seen = set()
    for record in found.predictions:
        place = cause(record)
        if place not in seen:
            seen.add(place)
            order[record.key].append(place[1])
    return [f"predictions of {user!r} out of order" for user, offsets in order.items() if offsets != sorted(offsets)]


def committed_too_early(found: Topics) -> list[str]:
    """Invariant 5; true at any time, not only once the log is drained."""
    answered = {cause(record) for record in [*found.predictions, *found.dead_letters]}
    return [
        f"{record.partition}-{record.offset} is committed and has no output"
        for record in found.events
        if record.offset < found.committed.get(record.partition, 0)
        and (record.partition, record.offset) not in answered
    ]
