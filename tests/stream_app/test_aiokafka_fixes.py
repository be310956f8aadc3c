"""The worker asks for committed offsets in a version whose errors aiokafka sees."""

from aiokafka.consumer import group_coordinator
from aiokafka.protocol.commit import OffsetFetchRequest_v1

import stream_app.faust_options  # noqa: F401  # what a worker imports

OFFSET_FETCH = 9  # Kafka's number of this request


def test_committed_offsets_are_asked_for_in_version_1_whatever_the_broker_speaks() -> None:
    for newest in (1, 3, 8):
        request = group_coordinator.OffsetFetchRequest("group", [("topic", [0])]).prepare({OFFSET_FETCH: (0, newest)})
        assert type(request) is OffsetFetchRequest_v1
        assert request.API_VERSION == 1
