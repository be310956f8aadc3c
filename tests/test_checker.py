"""The checker can fail: topics with one thing wrong each, built by hand, and the violation named."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from model.window import WindowRule
from stream_app import history
from stream_app.dead_letters import dead_letter
from stream_app.events import Event, Reason, Rejected
from stream_app.history import HistoryRule
from tests import checker
from tests.checker import Topics

NOW_MS = 1_750_000_000_000
RULE = WindowRule(events=3, age_ms=86_400_000)
KEPT = HistoryRule(RULE, margin=4)


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
    kept = history.History(partition)
    for seen in events:
        body = json.loads(seen.value)
        folded = Event(user, body["behavior"], body["timestamp"], body.get("item_id"))
        kept, _ = history.fold(kept, folded, seen.offset, KEPT)
    return record("changelog", partition, offset, user.encode(), history.encode(kept))


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
