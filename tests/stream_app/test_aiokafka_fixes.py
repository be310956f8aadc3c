"""What the worker mends in aiokafka: which version it asks for offsets in, and how often a batch is copied."""

import tracemalloc

from aiokafka.consumer import group_coordinator
from aiokafka.producer.sender import ProduceRequest
from aiokafka.protocol.commit import OffsetFetchRequest_v1
from aiokafka.protocol.struct import Struct
from hypothesis import given
from hypothesis import strategies as st

import stream_app.faust_options  # noqa: F401  # what a worker imports

OFFSET_FETCH = 9  # Kafka's number of this request


def test_committed_offsets_are_asked_for_in_version_1_whatever_the_broker_speaks() -> None:
    for newest in (1, 3, 8):
        request = group_coordinator.OffsetFetchRequest("group", [("topic", [0])]).prepare({OFFSET_FETCH: (0, newest)})
        assert type(request) is OffsetFetchRequest_v1
        assert request.API_VERSION == 1


partitions = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.none() | st.binary() | st.binary().map(bytearray)), max_size=4
)


@given(
    st.sampled_from([0, 2, 3, 7]),
    st.sampled_from([-1, 0, 1]),
    st.lists(st.tuples(st.text(max_size=9), partitions), max_size=4),
)
def test_what_is_produced_is_encoded_as_aiokafka_would(
    version: int, acks: int, topics: list[tuple[str, list[tuple[int, bytes | None]]]]
) -> None:
    request = ProduceRequest(None, acks, 60_000, topics).prepare({ProduceRequest.API_KEY: (0, version)})
    assert version == request.API_VERSION
    assert request.encode() == Struct.encode(request)
    assert request.decode(request.encode()).encode() == request.encode()


def test_a_batch_is_copied_once() -> None:
    batch = bytes(1_000_000)
    request = ProduceRequest(None, -1, 60_000, [("topic", [(0, batch)])]).prepare({ProduceRequest.API_KEY: (0, 7)})
    tracemalloc.start()
    encoded = request.encode()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batch) < len(encoded) < most < 1.01 * len(batch)
