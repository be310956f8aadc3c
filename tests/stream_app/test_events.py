"""The event contract: each reason, each form of an event, and that no bytes whatever raise anything but Rejected."""

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.v1.http import CloudEvent
from cloudevents.v1.kafka import KafkaMessage, to_binary, to_structured
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_app import behaviors
from stream_app.events import (
    EARLIEST_MS,
    LATEST_MS,
    Erasure,
    Event,
    EventDecoder,
    EventMessage,
    Reason,
    Rejected,
)
from tests.stream_app.records import NOW_MS, FakeRecord, json_record

BEHAVIORS = behaviors.load()
HOUR_MS = 3_600_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VIEW = {"user_id": "u", "behavior": "view", "item_id": "i", "timestamp": NOW_MS}


def decoder(**limits: int) -> EventDecoder:
    return EventDecoder(BEHAVIORS, **limits)


def decode(record: FakeRecord) -> Event | Erasure:
    return decoder().decode(record)


def decode_fields(**fields: Any) -> Event | Erasure:
    return decode(json_record({**VIEW, **fields}))


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in VIEW.items() if name != field}


def rejection(record: FakeRecord, **limits: int) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decoder(**limits).decode(record)
    rejected = caught.value
    assert len(rejected.detail.splitlines()) == 1
    assert len(rejected.detail) < 700
    return rejected


def reason(record: FakeRecord, **limits: int) -> Reason:
    return rejection(record, **limits).reason


# What an event is


def test_a_full_event() -> None:
    fields = {
        "user_id": "u1",
        "behavior": "add_to_cart",
        "timestamp": NOW_MS,
        "item_id": "i1",
        "event_id": "e1",
        "session_id": "s1",
        "category": "c1",
        "price": 9.5,
        "currency": "EUR",
        "quantity": 2,
        "text": "blue shoes",
        "context": {"page": {"depth": [1, None, True]}},
    }
    assert set(fields) == set(EventMessage.__struct_fields__)
    decoding = decoder()
    assert decoding.decode(json_record(fields, key=b"u1")) == Event("u1", "add_to_cart", NOW_MS, "i1", "c1", "e1")
    assert decoding.unknown_fields == 0


def test_the_least_event() -> None:
    record = json_record({"user_id": "u", "behavior": "login", "timestamp": NOW_MS})
    assert decode(record) == Event("u", "login", NOW_MS, None, None, None)


def test_optional_fields_may_be_null() -> None:
    nulls = dict.fromkeys(set(EventMessage.__struct_fields__) - set(VIEW))
    assert decode_fields(**nulls) == Event("u", "view", NOW_MS, "i")


LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
USERS = st.text(LETTERS, min_size=1, max_size=64)
IDS = st.text(LETTERS, min_size=1, max_size=512)


def test_a_nul_is_in_no_user_id() -> None:
    """A store keeps its own bookkeeping under such a key: `__faust\\0offset__`."""
    user = "__faust\0offset__"
    for key in (user.encode(), None):
        rejected = rejection(json_record({**VIEW, "user_id": user}, key=key))
        assert (rejected.reason, rejected.detail) == (
            Reason.INVALID,
            "user_id holds a NUL, which stores keep for themselves",
        )
    assert reason(FakeRecord(key=user.encode())) is Reason.INVALID


@pytest.mark.parametrize("field", ["item_id", "category"])
@given(st.text(LETTERS, max_size=9), st.text(LETTERS, max_size=9))
def test_a_nul_is_in_no_text_that_a_history_keeps(field: str, before: str, after: str) -> None:
    """A history puts one behind each text."""
    for fields in ({}, {"unknown": 1}, {"behavior": "search"}):
        rejected = rejection(json_record({**VIEW, **fields, field: f"{before}\0{after}"}))
        assert (rejected.reason, rejected.detail) == (
            Reason.INVALID,
            f"{field} holds a NUL, which histories keep for themselves",
        )


def test_a_nul_anywhere_else_is_a_letter_like_any_other() -> None:
    nul = "a\0b"
    fields = {"event_id": nul, "session_id": nul, "currency": nul, "text": nul, "context": {nul: nul}}
    assert decode_fields(**fields) == Event("u", "view", NOW_MS, "i", None, nul)


@given(USERS, IDS, IDS, st.text(min_size=1, max_size=512))
def test_any_text_is_an_id(user: str, item: str, category: str, event_id: str) -> None:
    fields = {**VIEW, "user_id": user, "item_id": item, "category": category, "event_id": event_id}
    for key in (user.encode(), None):
        assert decode(json_record(fields, key=key)) == Event(user, "view", NOW_MS, item, category, event_id)


@given(st.data())
def test_a_behavior_may_be_any_alias_in_any_case(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BEHAVIORS.canonical)))
    event = decode_fields(behavior=data.draw(st.sampled_from([name, name.upper(), name.title()])))
    assert isinstance(event, Event)
    assert event.behavior == BEHAVIORS.canonical[name]


@pytest.mark.parametrize("behavior", BEHAVIORS.names)
def test_an_item_is_required_exactly_where_the_vocabulary_says_so(behavior: str) -> None:
    record = json_record({**without("item_id"), "behavior": behavior})
    if behavior in BEHAVIORS.about_item:
        assert reason(record) is Reason.INVALID
    else:
        assert decode(record) == Event("u", behavior, NOW_MS)


def test_of_a_name_written_twice_the_last_one_counts() -> None:
    value = b'{"user_id":"a","user_id":"u","behavior":"login","timestamp":0,"timestamp":%d}' % NOW_MS
    assert decode(FakeRecord(value=value, key=b"u")) == Event("u", "login", NOW_MS)


# Unknown fields


def test_unknown_fields_are_left_out_and_counted_once_per_record() -> None:
    decoding = decoder()
    assert decoding.decode(json_record({**VIEW, "colour": "red", "size": 3})) == Event("u", "view", NOW_MS, "i")
    assert decoding.unknown_fields == 1
    decoding.decode(json_record(VIEW))
    assert decoding.unknown_fields == 1
    decoding.decode(json_record({**VIEW, "": None}))
    assert decoding.unknown_fields == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
near_values = st.sampled_from(
    [
        "view",
        "u",
        "",
        "i",
        NOW_MS,
        NOW_MS / 1000,
        NOW_MS // 1000,
        True,
        None,
        10**19,
        10**400,
        -1,
        1.5,
        [],
        {},
        "é" * 300,
        "a\0b",
    ]
) | st.just("2025-06-15T15:06:40Z")
field_names = st.sampled_from([*EventMessage.__struct_fields__, "specversion", "data", "id", "time", "x"])
near_events = st.dictionaries(field_names, near_values | json_values, max_size=6).map(lambda some: {**VIEW, **some})


def outcome(record: FakeRecord) -> Event | Erasure | Reason:
    """What becomes of a record; anything raised but Rejected is a failed test."""
    try:
        return decode(record)
    except Rejected as caught:
        rejected = caught
    assert len(rejected.detail.splitlines()) == 1
    return rejected.reason


odd_records = st.builds(
    FakeRecord,
    value=near_events.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=20) | st.none(),
    key=st.sampled_from([b"u", b"v", None, b"\xff", b"u\0", b"u" * 257]),
    timestamp=st.sampled_from([NOW_MS, 0, -1, NOW_MS - 7_200_000]),
    headers=st.sampled_from([[], [("x", b"y")], [("ce_specversion", b"1.0"), ("ce_id", b"e1")]]),
)
few_odd_events = st.sampled_from(
    [{}, {"user_id": "u" * 257}, {"user_id": "u\0"}, {"behavior": "Page_View"}, {"behavior": "nothing"}, {"item_id": None},
     {"item_id": "i\0"}, {"category": "c\0"}, {"category": "c"}, {"timestamp": 0}, {"timestamp": NOW_MS + 7_200_000},
     {"timestamp": LATEST_MS + 1}, {"timestamp": "2025-06-15T15:06:40Z"}, {"event_id": "e"}, {"x": 1}]
)  # fmt: skip
usual_records = st.builds(
    lambda fields, key, time_ms: json_record({**VIEW, **fields})._replace(key=key, timestamp=time_ms),
    few_odd_events, st.sampled_from([b"u", b"v", None, b"u" * 257, b"u\0"]), st.sampled_from([NOW_MS, 0]),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(odd_records | usual_records, max_size=6))
def test_a_chunk_is_decoded_as_its_records_are(records: list[FakeRecord]) -> None:
    one_by_one: list[tuple[FakeRecord, Any]] = []
    single, together = decoder(max_bytes=300), decoder(max_bytes=300)
    for record in records:
        try:
            one_by_one.append((record, single.decode(record)))
        except Rejected as rejected:
            one_by_one.append((record, (rejected.reason, rejected.detail)))
    events, rejects = together.decode_all(records)
    found = [*events, *((record, (rejected.reason, rejected.detail)) for record, rejected in rejects)]
    assert sorted(map(repr, found)) == sorted(map(repr, one_by_one))
    assert [event for _, event in events] == [event for _, event in one_by_one if isinstance(event, Event | Erasure)]
    assert together.unknown_fields == single.unknown_fields


@given(USERS, USERS | st.just(""), st.integers(0, 3))
def test_a_user_is_who_the_key_says_or_nobody(user: str, other: str, letters: int) -> None:
    """The user_id and the key are the same bytes, of which there are at most 256."""
    user *= 1 + 64 * letters
    record = json_record({**VIEW, "user_id": user}, key=(user + other).encode())
    assert (outcome(record) == Event(user, "view", NOW_MS, "i")) == (not other and len(user.encode()) <= 256)
    assert outcome(record._replace(key=None)) == outcome(record._replace(key=user.encode()))


@given(near_events)
def test_an_unknown_field_never_changes_what_becomes_of_a_record(fields: dict[str, Any]) -> None:
    """Plain events take a fast way through the decoder, others a slow one: both must agree."""
    plain = {name: value for name, value in fields.items() if name in EventMessage.__struct_fields__}
    assert outcome(json_record({**plain, "unknown": 1})) == outcome(json_record(plain))


# The user and the key


def test_the_key_must_be_the_user() -> None:
    assert decode(json_record(VIEW, key=b"u")) == decode(json_record(VIEW, key=None))
    assert reason(json_record(VIEW, key=b"v")) is Reason.INVALID
    assert reason(json_record(VIEW, key=b"")) is Reason.INVALID
    assert reason(json_record(VIEW, key=b"\xff")) is Reason.INVALID


@pytest.mark.parametrize("letter", ["a", "é", "語", "😀"])
def test_a_user_id_is_measured_in_bytes(letter: str) -> None:
    most = 256 // len(letter.encode())
    user = letter * most + "a" * (256 - most * len(letter.encode()))
    assert len(user.encode()) == 256
    event = decode(json_record({**VIEW, "user_id": user}, key=user.encode()))
    assert isinstance(event, Event)
    assert event.user_id == user
    longer = user + "a"
    assert reason(json_record({**VIEW, "user_id": longer}, key=longer.encode())) is Reason.INVALID


@pytest.mark.parametrize(
    "wrong",
    [
        {"user_id": ""},
        {"user_id": 7},
        {"user_id": None},
        {"behavior": ""},
        {"behavior": "teleport"},
        {"behavior": ["view"]},
        {"item_id": ""},
        {"item_id": 42},
        {"item_id": "i" * 513},
        {"item_id": None},
        {"event_id": ""},
        {"event_id": "e" * 513},
        {"category": ""},
        {"price": "9.50"},
        {"price": True},
        {"context": [1]},
        {"quantity": {}},
    ],
)
def test_a_field_of_the_wrong_kind_is_invalid(wrong: dict[str, Any]) -> None:
    assert reason(json_record({**VIEW, **wrong})) is Reason.INVALID
    assert reason(json_record({**VIEW, **wrong, "unknown": 1})) is Reason.INVALID


@pytest.mark.parametrize("field", ["user_id", "behavior", "timestamp"])
def test_a_missing_field_is_named(field: str) -> None:
    rejected = rejection(json_record(without(field)))
    assert rejected.reason is Reason.INVALID
    assert field in rejected.detail


@pytest.mark.parametrize("value", [b"1", b"[]", b'"u"', b"null", b"true", json.dumps([VIEW]).encode()])
def test_json_that_is_no_object_is_invalid(value: bytes) -> None:
    assert reason(FakeRecord(value=value)) is Reason.INVALID


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"{",
        b"not json",
        b'{"user_id": "u"',
        b"\xff\xfe\x00",
        b'{"user_id": "\xff", "behavior": "login", "timestamp": 1700000000000}',
        b'{"user_id": "\\ud800", "behavior": "login", "timestamp": 1700000000000}',
        b'{"user_id": "u", "behavior": "login", "timestamp": NaN}',
        b'{"user_id": "u", "behavior": "login", "timestamp": 1700000000000, "price": Infinity}',
        b'{"user_id": "u", "behavior": "login", "timestamp": 1700000000000, "price": 1e999}',
        b'{"user_id": "u", "behavior": "login", "timestamp": 1700000000000} {}',
        b'\xef\xbb\xbf{"user_id": "u", "behavior": "login", "timestamp": 1700000000000}',
        b"1" * 100_000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"user_id": "u", "context": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_is_no_json_is_undecodable(value: bytes) -> None:
    assert reason(FakeRecord(value=value)) is Reason.UNDECODABLE


def test_a_record_may_be_as_large_as_the_limit() -> None:
    record = json_record({**VIEW, "text": "x" * 2_000_000})
    assert record.value is not None
    assert reason(record) is Reason.TOO_LARGE
    size = len(record.value)
    assert decoder(max_bytes=size).decode(record) == Event("u", "view", NOW_MS, "i")
    assert reason(record, max_bytes=size - 1) is Reason.TOO_LARGE


# Time


def test_the_unit_is_milliseconds_between_1990_and_2100() -> None:
    assert datetime.fromtimestamp(EARLIEST_MS / 1000, UTC) == datetime(1990, 1, 1, tzinfo=UTC)
    assert datetime.fromtimestamp(LATEST_MS / 1000, UTC) == datetime(2100, 1, 1, tzinfo=UTC)
    for time_ms in (EARLIEST_MS, LATEST_MS):
        event = decode(json_record({**VIEW, "timestamp": time_ms}, timestamp=LATEST_MS))
        assert isinstance(event, Event)
        assert event.time_ms == time_ms


@pytest.mark.parametrize(
    "timestamp",
    [
        NOW_MS // 1000,  # seconds
        NOW_MS * 1000,  # microseconds
        0,
        -1,
        EARLIEST_MS - 1,
        LATEST_MS + 1,
        10**30,
        float(NOW_MS),
        1.75e12,
        True,
        False,
        None,
        str(NOW_MS),
        "1970-01-01T00:00:00Z",
        "2200-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2025-06-15T15:06:40",  # no zone
        "2025-06-15",
        "2025-02-30T00:00:00Z",
        "2025-06-15T15:06:61Z",
        "yesterday",
        "",
        [],
    ],
)
def test_any_other_timestamp_is_invalid(timestamp: Any) -> None:
    assert reason(json_record({**VIEW, "timestamp": timestamp})) is Reason.INVALID


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.integers(EARLIEST_MS, LATEST_MS), zones)
@example(1_074_000_000_001, UTC)
@example(1_090_000_000_009, UTC)  # between 2³⁰ s and 2⁴⁰ ms: seconds as a float times 1000 fall short of this
@example(2_150_000_000_057, UTC)
def test_rfc_3339_keeps_every_millisecond_in_any_zone(time_ms: int, zone: timezone) -> None:
    written = (EPOCH + timedelta(milliseconds=time_ms)).astimezone(zone).isoformat(timespec="milliseconds")
    event = decode(json_record({**VIEW, "timestamp": written}, timestamp=LATEST_MS))
    assert isinstance(event, Event)
    assert event.time_ms == time_ms


@pytest.mark.parametrize("start_ms", [1_090_000_000_000, 2_150_000_000_000, NOW_MS])
def test_rfc_3339_keeps_every_millisecond_of_a_second(start_ms: int) -> None:
    for time_ms in range(start_ms, start_ms + 1000):
        written = f"{EPOCH + timedelta(milliseconds=start_ms):%Y-%m-%dT%H:%M:%S}.{time_ms - start_ms:03}Z"
        event = decode(json_record({**VIEW, "timestamp": written}, timestamp=LATEST_MS))
        assert isinstance(event, Event)
        assert event.time_ms == time_ms


def test_finer_than_a_millisecond_is_cut() -> None:
    for digits in ("123", "1239", "123999"):
        event = decode_fields(timestamp=f"2025-06-15T15:06:39.{digits}Z")
        assert isinstance(event, Event)
        assert event.time_ms == NOW_MS - 1000 + 123


def test_an_event_may_lie_a_little_ahead_of_its_record() -> None:
    ahead = {**VIEW, "timestamp": NOW_MS + HOUR_MS}
    assert isinstance(decode(json_record(ahead, timestamp=NOW_MS)), Event)
    assert reason(json_record(ahead, timestamp=NOW_MS - 1)) is Reason.FROM_THE_FUTURE
    assert reason(json_record(ahead, timestamp=NOW_MS), max_future_ms=HOUR_MS - 1) is Reason.FROM_THE_FUTURE


@pytest.mark.parametrize("produced", [-1, 0])
def test_a_record_without_a_time_has_no_future(produced: int) -> None:
    assert isinstance(decode(json_record(VIEW, timestamp=produced)), Event)


def test_an_event_may_lie_any_time_before_its_record() -> None:
    assert isinstance(decode(json_record({**VIEW, "timestamp": EARLIEST_MS}, timestamp=NOW_MS)), Event)


# Erasure


def test_a_null_value_erases_the_user_of_the_key() -> None:
    assert decode(FakeRecord(key="用户".encode())) == Erasure("用户")
    assert decode(FakeRecord(key=b"u" * 256)) == Erasure("u" * 256)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, Reason.INVALID),
        (b"", Reason.INVALID),
        (b"u" * 257, Reason.INVALID),
        (b"\xff", Reason.UNDECODABLE),
        ("é".encode()[:1], Reason.UNDECODABLE),
    ],
)
def test_a_null_value_without_a_user_erases_nobody(key: bytes | None, why: Reason) -> None:
    assert reason(FakeRecord(key=key)) is why


def test_an_empty_value_is_no_erasure() -> None:
    assert reason(FakeRecord(key=b"u", value=b"")) is Reason.UNDECODABLE


# CloudEvents 1.0, written by the reference implementation


def cloud_event(data: dict[str, Any], **attributes: str) -> CloudEvent:
    about = {"type": "shop.event", "source": "/shop/eu", "subject": "s", "datacontenttype": "application/json"}
    return CloudEvent({**about, **attributes}, data)


def kafka_record(message: KafkaMessage) -> FakeRecord:
    value = message.value if isinstance(message.value, bytes) else message.value.encode()
    return FakeRecord(value=value, headers=tuple(message.headers.items()))


MODES = pytest.mark.parametrize("mode", [to_binary, to_structured], ids=["binary", "structured"])


@MODES
def test_cloud_events(mode: Any) -> None:
    decoding = decoder()
    cloud = cloud_event({**VIEW, "event_id": "own"}, id="outer", time="2020-01-01T00:00:00Z")
    assert decoding.decode(kafka_record(mode(cloud))) == Event("u", "view", NOW_MS, "i", None, "own")
    assert decoding.unknown_fields == 0


@MODES
@pytest.mark.parametrize("missing", [("event_id",), ("timestamp",), ("event_id", "timestamp")])
def test_id_and_time_of_a_cloud_event_stand_in_for_what_is_missing(mode: Any, missing: tuple[str, ...]) -> None:
    full = {**VIEW, "event_id": "own"}
    data = {name: value for name, value in full.items() if name not in missing}
    record = kafka_record(mode(cloud_event(data, id="outer", time="2025-06-15T17:06:41.5+02:00")))
    event = decode(record)
    assert isinstance(event, Event)
    assert event.event_id == ("outer" if "event_id" in missing else "own")
    assert event.time_ms == (NOW_MS + 1500 if "timestamp" in missing else NOW_MS)


@MODES
def test_a_null_id_in_the_data_of_a_cloud_event_is_a_missing_one(mode: Any) -> None:
    event = decode(kafka_record(mode(cloud_event({**VIEW, "event_id": None}, id="outer"))))
    assert isinstance(event, Event)
    assert event.event_id == "outer"


@MODES
def test_unknown_fields_in_a_cloud_event_are_counted(mode: Any) -> None:
    decoding = decoder()
    decoding.decode(kafka_record(mode(cloud_event({**VIEW, "colour": "red"}, id="x", traceparent="00-1"))))
    assert decoding.unknown_fields == 1


@MODES
@pytest.mark.parametrize("wrong", [{"behavior": "teleport"}, {"timestamp": 5}, {"user_id": 1}])
def test_a_cloud_event_is_validated_like_any_other(mode: Any, wrong: dict[str, Any]) -> None:
    assert reason(kafka_record(mode(cloud_event({**VIEW, **wrong})))) is Reason.INVALID


def test_an_envelope_without_an_object_in_it_is_invalid() -> None:
    for data in ("text", 1, None, [VIEW]):
        assert reason(json_record({"specversion": "1.0", "id": "x", "data": data})) is Reason.INVALID


@pytest.mark.parametrize(
    "headers",
    [
        (("ce_specversion", b"\xff"), ("ce_id", b"\xff\xff"), ("ce_time", b"\xff")),
        (("ce_specversion", b"1.0"), ("ce_id", None)),
        (("ce_specversion", b"1.0"),),
        (("ce_specversion", b"1.0"), ("ce_id", b"x" * 10_000)),
        (("ce_", b""), ("", b""), ("\ud800", b"")),
    ],
)
def test_damaged_headers_raise_nothing_but_rejected(headers: Any) -> None:
    for fields in (VIEW, {**VIEW, "x": 1}, without("timestamp")):
        outcome(json_record(fields, headers=headers))


# Any bytes at all

headers = st.lists(
    st.tuples(
        st.sampled_from(["ce_specversion", "ce_id", "ce_time", "ce_x", "dlq-attempt"]) | st.text(max_size=8),
        st.binary(max_size=12) | st.sampled_from([b"1.0", b"2025-06-15T15:06:40Z"]),
    ),
    max_size=4,
).map(tuple)
keys = st.none() | st.binary(max_size=8) | st.just(b"u")
values = (
    st.none()
    | st.binary(max_size=60)
    | near_events.map(lambda fields: json.dumps(fields).encode())
    | json_values.map(lambda value: json.dumps(value).encode())
    | near_events.map(lambda fields: json.dumps({"specversion": "1.0", "id": "x", "data": fields}).encode())
    | near_events.map(lambda fields: json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass"))
)
records = st.builds(
    FakeRecord, key=keys, value=values, headers=headers, timestamp=st.sampled_from([-1, 0, NOW_MS, 2**63 - 1])
)


@settings(max_examples=400)
@given(records)
def test_no_record_raises_anything_but_rejected(record: FakeRecord) -> None:
    event = outcome(record)
    if isinstance(event, Event):
        assert 1 <= len(event.user_id.encode()) <= 256
        assert record.key in (None, event.user_id.encode())
        assert event.behavior in BEHAVIORS.names
        assert EARLIEST_MS <= event.time_ms <= LATEST_MS
        assert event.item_id is not None or event.behavior not in BEHAVIORS.about_item
        for text in (event.item_id, event.category, event.event_id):
            assert text is None or 1 <= len(text) <= 512
        assert "\0" not in f"{event.user_id}{event.item_id}{event.category}"


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_no_damage_to_a_good_record_raises_anything_but_rejected(chance: random.Random, damages: int) -> None:
    value = bytearray(json.dumps({**VIEW, "event_id": "é\\u0000", "context": {"a": [1.5, None]}, "x": 0}).encode())
    for _ in range(damages):
        place = chance.randrange(len(value))
        value[place : place + chance.choice((0, 1, 1, 4))] = chance.choice(
            (
                b"",
                b"\x00",
                b"\xff",
                b'"',
                b"\\",
                b"{",
                b"}",
                b"9" * 30,
                b"e9",
                b"-",
                b"\\ud800",
                bytes([chance.randrange(256)]),
            )
        )
    outcome(FakeRecord(key=b"u", value=bytes(value)))


@given(st.lists(records, max_size=5), records)
def test_what_becomes_of_a_record_depends_on_nothing_else(before: list[FakeRecord], record: FakeRecord) -> None:
    used = decoder()
    for other in before:
        try:
            used.decode(other)
        except Rejected:
            continue
    try:
        again: Event | Erasure | Reason = used.decode(record)
    except Rejected as rejected:
        again = rejected.reason
    elsewhere = record._replace(offset=record.offset + 1, partition=3, topic="other")
    assert again == outcome(record) == outcome(elsewhere)
