"""What the worker must mend in aiokafka 0.14; importing this module is enough.

OffsetFetch. While a group's coordinator moves or loads, Kafka answers versions 2 and 3 of this request with no partitions
and an error beside them. aiokafka does not look there: it takes "no answer" for "nothing committed", and the consumer
starts over from the beginning of its topics. Version 1 carries the error with each partition, which aiokafka retries.
"""

from __future__ import annotations

from aiokafka.consumer import group_coordinator
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchRequest_v1


class OffsetFetchWithErrors(OffsetFetchRequest):  # type: ignore[misc]  # aiokafka is untyped
    """OffsetFetch in version 1 only."""


OffsetFetchWithErrors._CLASSES = (OffsetFetchRequest_v1,)  # noqa: SLF001  # where aiokafka keeps the versions it speaks
group_coordinator.OffsetFetchRequest = OffsetFetchWithErrors
