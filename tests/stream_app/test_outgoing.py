"""What a chunk leaves behind: packed in order, part by part, and what becomes of a prediction that the broker refuses."""

from collections import Counter

from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from stream_app.dead_letters import dead_letter
from stream_app.events import Reason, Rejected
from stream_app.outgoing import Outgoing
from stream_app.pipeline import Outputs
from stream_app.predictions import Message
from stream_app.producing import Parcel, unpacked
from tests.stream_app.records import FakeRecord

sizes = st.lists(st.lists(st.integers(0, 900), max_size=5), max_size=6)  # of the predictions of each part


def part(number: int, sizes: list[int]) -> Outputs:
    """One prediction of each size, and a state, a letter and a fallback for each of them."""
    records = [FakeRecord(offset=10 * number + place) for place in range(len(sizes))]
    names = [b"%d" % record.offset for record in records]
    return Outputs(
        [
            (record, Message(name, b"p" * size, [("prediction_id", name)]))
            for record, name, size in zip(records, names, sizes, strict=True)
        ],
        [(Message(name, b"rejected", []), Reason.INVALID) for name in names],
        [(name, b"state" if size % 2 else None) for name, size in zip(names, sizes, strict=True)],
        Counter(["popularity"] * len(sizes)),
    )


def empty() -> Parcel:
    return Parcel(lambda: BatchBuilder(1024, 0), lingers=False)


@given(sizes)
def test_what_is_packed_is_what_the_parts_left_in_order(sizes: list[list[int]]) -> None:
    parts = [part(number, those) for number, those in enumerate(sizes)]

    outgoing = Outgoing(empty(), empty())
    for one in parts:
        outgoing.add(one)
    sent = [message for batch in outgoing.packed_predictions.batches() for message in unpacked(batch)]
    assert sent == [tuple(message) for one in parts for _, message in one.predictions]
    assert outgoing.predictions == [record for one in parts for record, _ in one.predictions]
    changes = [message for batch in outgoing.packed_states.batches() for message in unpacked(batch)]
    assert changes == [(user, state, []) for user, state in outgoing.states]
    assert outgoing.states == [state for one in parts for state in one.states]
    assert outgoing.dead_letters == [letter for one in parts for letter in one.dead_letters]
    assert outgoing.fallbacks == Counter({"popularity": sum(map(len, sizes))} if any(sizes) else {})


def test_a_letter_stands_for_each_prediction_that_is_refused() -> None:
    records = [FakeRecord(offset=offset, key=b"u%d" % offset, value=b"{}") for offset in range(4)]
    earlier = (Message(None, b"rejected", []), Reason.INVALID)
    outgoing = Outgoing(empty(), empty(), predictions=list(records), dead_letters=[earlier])
    outgoing.refuse([7, None, 8, None])
    assert outgoing.predictions == [records[0], records[2]]
    rejected = Rejected(Reason.EMIT, "the prediction is larger than the broker takes")
    assert outgoing.dead_letters == [earlier, *((dead_letter(records[n], rejected), Reason.EMIT) for n in (1, 3))]
