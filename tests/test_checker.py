"""The checker can fail: topics with one thing wrong each, built by hand, and the violation named."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from model.window import WindowRule
from stream_app import history, history_codec
from stream_app.dead_letters import dead_letter
from stream_app.events import Event, Reason, Rejected
from stream_app.history import HistoryRule
from stream_app.history_layout import History
from tests import checker
from tests.checker import Topics

NOW_MS = 1_750_000_000_000
RULE = WindowRule(events=3, age_ms=86_400_000)
KEPT = HistoryRule(RULE)


def record(topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None, *headers: Any) -> Any:
    return ConsumerRecord(
        topic=topic, partition=partition, offset=offset, timestamp=NOW_MS, timestamp_type=0, key=key, value=value,
        checksum=None, serialized_key_size=0, serialized_value_size=0, headers=headers,
    )  # fmt: skip


def event(partition: int, offset: int, user: str, **fields: Any) -> Any:
    body = {"user_id": user, "behavior": "view", "item_id": f"i{offset}", "timestamp": NOW_MS + offset, **fields}
    return record("events", partition, offset, user.encode(), json.dumps(body).encode())


def prediction(of: Any, offset: int, **fields: Any) -> Any:
    """An answer to the event `of`, at `offset` of its partition."""
    id_ = f"events-{of.partition}-{of.offset}"
    body = {
        "prediction_id": id_,
        "next_behaviors": {"view": 0.75, "purchase": 0.25},
        "next_items": [{"item_id": "a", "probability": 0.5}, {"item_id": "b", "probability": 0.25}],
        **fields,
    }
    value = None if of.value is None else json.dumps(body).encode()
    return record("predictions", of.partition, offset, of.key, value, ("prediction_id", id_.encode()))


def letter(of: Any, offset: int) -> Any:
    message = dead_letter(of, Rejected(Reason.UNDECODABLE, "no JSON"))
    return record("dlq", of.partition, offset, message.key, message.value, *message.headers)


def state(user: str, offset: int, *events: Any, partition: int = 0) -> Any:
    """The changelog record of a user who did `events`."""
    kept = History.empty(partition)
    for seen in events:
        body = json.loads(seen.value)
        ids = (body.get("item_id"), body.get("category"), body.get("event_id"))
        folded = Event(user, body["behavior"], body["timestamp"], *ids)
        kept, _ = history.fold(kept, folded, seen.offset, KEPT, seen.offset)
    return record("changelog", partition, offset, user.encode(), kept.stored)


ANNA = [event(0, offset, "anna") for offset in range(3)]
BEN = [event(1, 0, "ben"), event(1, 2, "ben")]
BROKEN = record("events", 1, 1, b"ben", b"\xff")
GONE = [event(0, 3, "carl"), record("events", 0, 4, b"carl", None)]


def good() -> Topics:
    """Two users, one record that is no event, and a third user who was erased."""
    return Topics(
        events=[*ANNA, *BEN, BROKEN, *GONE],
        predictions=[prediction(of, n) for n, of in enumerate([*ANNA, *GONE])] + [prediction(of, 9) for of in BEN],
        dead_letters=[letter(BROKEN, 0)],
        changelog=[
            state("anna", 0, *ANNA),
            state("ben", 0, *BEN, partition=1),
            state("carl", 1, GONE[0]),
            record("changelog", 0, 2, b"carl", None),
        ],
        committed={0: 5, 1: 3},
    )


def violations(found: Topics) -> list[str]:
    return checker.violations(found, RULE)


def test_nothing_is_wrong_with_good_topics() -> None:
    assert violations(good()) == []
    assert checker.repeats(good()) == 0


def without_the_answer(found: Topics) -> None:
    found.predictions = [p for p in found.predictions if checker.cause(p) != (0, 2)]
    found.committed = {}


def without_the_dead_letter(found: Topics) -> None:
    found.dead_letters = []
    found.committed = {}


def with_both(found: Topics) -> None:
    found.dead_letters.append(letter(ANNA[1], 1))


def with_an_answer_to_nothing(found: Topics) -> None:
    found.predictions.append(prediction(event(0, 77, "anna"), 99))


def with_another_answer(found: Topics) -> None:
    found.predictions.append(prediction(ANNA[1], 99, next_behaviors={"view": 0.5, "purchase": 0.5}))


def with_another_ranking(found: Topics) -> None:
    items = [{"item_id": "c", "probability": 0.5}, {"item_id": "b", "probability": 0.25}]
    found.predictions.append(prediction(ANNA[1], 99, next_items=items))


def with_an_erasure_where_there_was_an_answer(found: Topics) -> None:
    found.predictions.append(replace(prediction(ANNA[1], 99), value=None))


def in_another_partition(found: Topics) -> None:
    found.predictions[1] = replace(found.predictions[1], partition=3)


def in_another_order(found: Topics) -> None:
    found.predictions[0], found.predictions[2] = found.predictions[2], found.predictions[0]


def with_a_state_that_lacks_an_event(found: Topics) -> None:
    found.changelog[0] = state("anna", 0, *ANNA[:2])


def with_a_state_of_another_order(found: Topics) -> None:
    late = [event(0, 0, "anna", timestamp=NOW_MS + 5), *ANNA[1:]]
    found.changelog[0] = state("anna", 0, *late)


def with_an_older_state_behind(found: Topics) -> None:
    found.changelog.append(state("anna", 9, ANNA[0]))


def without_a_state(found: Topics) -> None:
    del found.changelog[0]


def with_a_history_of_an_erased_user(found: Topics) -> None:
    found.changelog.pop()


def with_a_history_of_nobody(found: Topics) -> None:
    found.changelog.append(state("dora", 9, ANNA[0]))


def committed_before_it_was_answered(found: Topics) -> None:
    found.predictions = [p for p in found.predictions if checker.cause(p) != (1, 2)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without_the_answer, ["no output for (0, 2)"]),
        (without_the_dead_letter, ["no output for (1, 1)"]),
        (with_both, ["both a prediction and a dead letter for (0, 1)"]),
        (with_an_answer_to_nothing, ["an output for (0, 77), which is no event"]),
        (with_another_answer, ["two different predictions for (0, 1): offsets 1 and 99, {'next_behaviors'"]),
        (with_another_ranking, ["two different predictions for (0, 1): offsets 1 and 99, {'next_items'"]),
        (with_an_erasure_where_there_was_an_answer, ["two different predictions for (0, 1): one is an erasure"]),
        (in_another_partition, ["the prediction for (0, 1) lies in partition 3"]),
        (in_another_order, ["predictions of b'anna' out of order"]),
        (with_a_state_that_lacks_an_event, ["the history of user b'anna' is not the fold of the records"]),
        (with_a_state_of_another_order, ["the history of user b'anna' is not the fold of the records"]),
        (with_an_older_state_behind, ["the history of user b'anna' is not the fold of the records"]),
        (without_a_state, ["user b'anna' has no history"]),
        (with_a_history_of_an_erased_user, ["user b'carl' was erased, and still has a history"]),
        (with_a_history_of_nobody, ["a history of b'dora', who did nothing"]),
        (committed_before_it_was_answered, ["no output for (1, 2)", "1-2 is committed and has no output"]),
    ],
)
def test_what_is_wrong_is_named_and_nothing_else(spoil: Callable[[Topics], None], expected: list[str]) -> None:
    found = good()
    spoil(found)
    lines = violations(found)
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


def test_the_same_answer_again_is_a_repeat_and_no_violation() -> None:
    found = good()
    again = prediction(ANNA[1], 99, next_behaviors={"view": 0.75 + 1e-7, "purchase": 0.25})
    swapped = [{"item_id": "b", "probability": 0.5}, {"item_id": "a", "probability": 0.5 - 1e-7}]
    equal = [{"item_id": "a", "probability": 0.5}, {"item_id": "b", "probability": 0.5}]
    found.predictions[2] = prediction(ANNA[2], 2, next_items=equal)
    found.predictions += [again, prediction(ANNA[2], 100, next_items=swapped)]
    assert violations(found) == []
    assert checker.repeats(found) == 2


def test_an_answer_again_after_later_ones_is_in_order() -> None:
    found = good()
    found.predictions.append(prediction(ANNA[0], 99))
    assert violations(found) == []


def test_a_user_who_comes_back_after_an_erasure_has_the_new_events_only() -> None:
    found = good()
    back = event(0, 5, "carl")
    found.events.append(back)
    found.predictions.append(prediction(back, 99))
    found.changelog.append(state("carl", 3, back))
    assert violations(found) == []
    found.changelog[-1] = state("carl", 3, GONE[0], back)
    assert violations(found) == ["the history of user b'carl' is not the fold of the records"]


def test_the_columns_of_a_history_are_looked_at_one_by_one() -> None:
    """A state that differs in one column of one event is not the fold."""
    full = {"item_id": "a", "category": "c", "behavior": "purchase", "timestamp": NOW_MS}
    found = Topics(events=[event(0, 0, "u", **full)], changelog=[state("u", 0, event(0, 0, "u", **full))])
    assert checker.wrong_states(found, RULE, 3_600_000) == []
    for other in ({"item_id": "b"}, {"category": "d"}, {"behavior": "view"}, {"timestamp": NOW_MS + 1}):
        found.changelog = [state("u", 0, event(0, 0, "u", **{**full, **other}))]
        assert len(checker.wrong_states(found, RULE, 3_600_000)) == 1


@pytest.mark.parametrize("field", ["item_id", "category"])
def test_an_event_with_a_nul_where_a_history_keeps_none_is_no_event(field: str) -> None:
    bad = event(0, 3, "anna", **{field: "a\0b"})
    assert checker.folded([*ANNA, bad], RULE, 3_600_000) == checker.folded(ANNA, RULE, 3_600_000)


# Users who are dropped because they are idle

IDLE_MS = 10_000


def moment(offset: int, user: str, ms: int, *, produced: int | None = None, partition: int = 0, **fields: Any) -> Any:
    """An event at `ms` after the start, whose record was produced then, or at `produced`."""
    found = event(partition, offset, user, timestamp=NOW_MS + ms, **fields)
    return replace(found, timestamp=NOW_MS + (ms if produced is None else produced))


def idle_lines(events: Sequence[Any], *states: Any, idle_ms: int | None = IDLE_MS) -> list[str]:
    """What is wrong with the states after `events`, where only those of anna are looked at."""
    found = Topics(events=list(events), changelog=list(states))
    lines = checker.wrong_states(found, RULE, 3_600_000, idle_ms)
    return [line for line in lines if "anna" in line]


TOMBSTONE = record("changelog", 0, 99, b"anna", None)
NO_HISTORY = ["user b'anna' has no history"]
NOT_THE_FOLD = ["the history of user b'anna' is not the fold of the records"]


@pytest.mark.parametrize(
    ("others", "may_be_gone"),
    [
        ([], False),
        ([moment(1, "ben", IDLE_MS)], False),
        ([moment(1, "ben", IDLE_MS + 1)], True),
        ([moment(1, "ben", IDLE_MS + 1), moment(2, "ben", 5)], True),
        ([moment(1, "ben", IDLE_MS + 1, produced=IDLE_MS)], False),
        ([moment(1, "ben", IDLE_MS + 9, produced=IDLE_MS + 1)], True),
        ([moment(1, "ben", IDLE_MS + 1, behavior="teleport")], False),
        ([moment(1, "ben", IDLE_MS + 3_600_001, produced=0)], False),
        ([replace(moment(1, "ben", IDLE_MS + 1), value=None)], False),
        ([moment(1, "ben", IDLE_MS + 1, event_id="e"), moment(2, "carl", IDLE_MS + 1, event_id="e")], True),
    ],
)
def test_a_history_may_be_gone_once_the_partition_is_far_enough_ahead(others: list[Any], may_be_gone: bool) -> None:
    anna = moment(0, "anna", 0)
    expected = [] if may_be_gone else NO_HISTORY
    for states in ([], [state("anna", 0, anna), TOMBSTONE]):
        assert idle_lines([anna, *others], *states) == expected
        assert idle_lines([anna, *others], *states, idle_ms=None) == NO_HISTORY
    assert idle_lines([anna, *others], state("anna", 0, anna)) == []
    assert idle_lines([anna, *others], state("anna", 0, moment(0, "anna", 0, item_id="other"))) == NOT_THE_FOLD


@pytest.mark.parametrize(("home", "elsewhere"), [(0, 1), (1, 0)])
def test_another_partition_drops_nobody(home: int, elsewhere: int) -> None:
    first, other = moment(0, "anna", 0, partition=home), moment(0, "ben", IDLE_MS + 1, partition=elsewhere)
    back = moment(1, "anna", 1, partition=home)
    assert idle_lines([first, other]) == NO_HISTORY
    assert idle_lines([first, other, back], state("anna", 0, back, partition=home)) == NOT_THE_FOLD


def test_a_dropped_history_is_a_violation_only_where_nobody_may_be_dropped() -> None:
    found = good()
    ahead = moment(5, "dora", IDLE_MS + 3)
    found.events.append(ahead)
    found.predictions.append(prediction(ahead, 9))
    found.changelog += [state("dora", 3, ahead), TOMBSTONE]
    assert checker.violations(found, RULE, idle_ms=IDLE_MS) == []
    assert checker.violations(found, RULE) == NO_HISTORY
    assert checker.violations(found, RULE, idle_ms=IDLE_MS + 1) == NO_HISTORY


def test_the_idle_time_of_a_user_is_that_since_the_newest_event_and_not_since_the_last_one() -> None:
    anna = [moment(0, "anna", 10), moment(1, "anna", 0)]
    assert idle_lines([*anna, moment(2, "ben", 10 + IDLE_MS)]) == NO_HISTORY
    assert idle_lines([*anna, moment(2, "ben", 10 + IDLE_MS + 1)]) == []


def test_who_comes_back_has_all_events_or_those_since_the_gap() -> None:
    old = [moment(0, "anna", 0)]
    ben = moment(1, "ben", IDLE_MS + 1)
    new = [moment(2, "anna", IDLE_MS + 2), moment(3, "anna", IDLE_MS + 3)]
    events = [*old, ben, *new]
    assert idle_lines(events, state("anna", 0, *old, *new)) == []
    assert idle_lines(events, state("anna", 0, *new)) == []
    assert idle_lines(events, state("anna", 0, *new), idle_ms=None) == NOT_THE_FOLD
    for wrong in (old, new[:1], new[1:], [*old, new[1]]):
        assert idle_lines(events, state("anna", 0, *wrong)) == NOT_THE_FOLD
    assert idle_lines(events) == idle_lines(events, TOMBSTONE) == NO_HISTORY


@pytest.mark.parametrize(("gap", "right"), [(IDLE_MS, NOT_THE_FOLD), (IDLE_MS + 1, [])])
def test_the_gap_is_longer_than_the_idle_time(gap: int, right: list[str]) -> None:
    old, new = moment(0, "anna", 0), moment(1, "anna", gap)
    assert idle_lines([old, new], state("anna", 0, new)) == right
    assert idle_lines([old, new], state("anna", 0, old, new)) == []


def test_of_several_gaps_any_may_have_been_the_last_one_that_counted() -> None:
    life = [moment(offset, "anna", offset * (IDLE_MS + 1)) for offset in range(3)]
    for kept in (life, life[1:], life[2:]):
        assert idle_lines(life, state("anna", 0, *kept)) == []
    assert idle_lines(life, state("anna", 0, life[0], life[2])) == NOT_THE_FOLD


def test_a_late_event_after_the_gap_may_find_nothing() -> None:
    old, ben, late = moment(0, "anna", 0), moment(1, "ben", IDLE_MS + 1), moment(2, "anna", -5)
    for kept in ([old, late], [late]):
        assert idle_lines([old, ben, late], state("anna", 0, *kept)) == []
    before_the_gap = [old, moment(1, "anna", -5), moment(2, "ben", IDLE_MS + 1)]
    assert idle_lines(before_the_gap, state("anna", 0, before_the_gap[1])) == NOT_THE_FOLD
    assert idle_lines(before_the_gap) == []


def test_a_history_that_is_gone_remembers_no_event_id() -> None:
    old, ben = moment(0, "anna", 0, event_id="e"), moment(1, "ben", IDLE_MS + 1)
    again = moment(2, "anna", IDLE_MS + 2, event_id="e")
    assert idle_lines([old, ben, again], state("anna", 0, old)) == []
    assert idle_lines([old, ben, again], state("anna", 0, again)) == []
    assert idle_lines([old, ben, again], state("anna", 0, old, replace(again, value=ben.value))) == NOT_THE_FOLD


def test_an_erased_user_has_no_history_however_idle() -> None:
    erased = [moment(0, "anna", 0), record("events", 0, 1, b"anna", None), moment(2, "ben", IDLE_MS + 1)]
    gone = "user b'anna' was erased, and still has a history"
    assert idle_lines(erased) == []
    assert idle_lines(erased, state("anna", 0, erased[0])) == [gone]
    back = moment(3, "anna", IDLE_MS + 2)
    assert idle_lines([*erased, back], state("anna", 0, back)) == []
    assert idle_lines([*erased, back], state("anna", 0, erased[0], back)) == NOT_THE_FOLD
    assert idle_lines([*erased, back]) == NO_HISTORY


lives = st.lists(
    st.tuples(st.sampled_from(["anna", "ben", "carl"]), st.sampled_from([-IDLE_MS, -3, 0, 3, IDLE_MS, 2 * IDLE_MS])),
    max_size=25,
)


@given(st.integers(1, 3), st.sampled_from([1, 20_000_000, 86_400_000]), st.lists(st.integers(-3, 9), max_size=20))
def test_histories_under_a_rule_with_strides_are_right(stride: int, age_stride_ms: int, jumps: list[int]) -> None:
    rule = WindowRule(events=3, age_ms=86_400_000, stride=stride, age_stride_ms=age_stride_ms)
    events, kept, ms = [], History.empty(0), 0
    for offset, jump in enumerate(jumps):
        ms += jump * 1_000_000
        events.append(moment(offset, "anna", ms))
        folded = Event("anna", "view", NOW_MS + ms, f"i{offset}")
        kept = history.fold(kept, folded, offset, HistoryRule(rule, slack=1), offset)[0]
        found = Topics(events=events, changelog=[record("changelog", 0, 0, b"anna", kept.stored)])
        assert checker.wrong_states(found, rule, 3_600_000) == []


@given(lives, st.sets(st.integers(0, 24)))
def test_a_worker_that_drops_idle_users_at_any_moments_is_right(life: list[tuple[str, int]], sweeps: set[int]) -> None:
    events, kept, ms, newest_ms = [], dict[str, history.History](), 0, 0
    for offset, (user, step) in enumerate(life):
        ms = max(0, ms + step)
        newest_ms = max(newest_ms, NOW_MS + ms)
        events.append(moment(offset, user, ms))
        folded = Event(user, "view", NOW_MS + ms, f"i{offset}")
        kept[user] = history.fold(kept.get(user, History.empty(0)), folded, offset, KEPT, offset)[0]
        if offset in sweeps:
            kept = {user: past for user, past in kept.items() if newest_ms - (past.watermark_ms or 0) <= IDLE_MS}
    states = [record("changelog", 0, 0, user.encode(), past.stored) for user, past in kept.items()]
    found = Topics(events=events, changelog=states)
    assert checker.wrong_states(found, RULE, 3_600_000, IDLE_MS) == []
    for lost in states:
        found.changelog = [state for state in states if state is not lost]
        may_be_gone = newest_ms - history_codec.last_event_ms(lost.value) > IDLE_MS
        assert checker.wrong_states(found, RULE, 3_600_000, IDLE_MS) == (
            [] if may_be_gone else [f"user {lost.key!r} has no history"]
        )
