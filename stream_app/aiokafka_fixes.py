"""What the worker mends in aiokafka 0.14; importing this module is enough.

OffsetFetch. While a group's coordinator moves or loads, Kafka answers versions 2 and 3 of this request with no partitions
and an error beside them. aiokafka does not look there: it takes "no answer" for "nothing committed", and the consumer
starts over from the beginning of its topics. Version 1 carries the error with each partition, which aiokafka retries.

Produce. aiokafka copies a batch into each structure around it, six times over, and two megabytes at a time are in no cache. Put
together at once it is copied once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import group_coordinator
from aiokafka.protocol.api import RequestStruct
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchRequest_v1
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.types import Array, Bytes, Int32, Schema


class OffsetFetchWithErrors(OffsetFetchRequest):  # type: ignore[misc]  # aiokafka is untyped
    """OffsetFetch in version 1 only."""


OffsetFetchWithErrors._CLASSES = (OffsetFetchRequest_v1,)  # noqa: SLF001  # where aiokafka keeps the versions it speaks
group_coordinator.OffsetFetchRequest = OffsetFetchWithErrors


def encode_at_once(request: RequestStruct) -> bytes:
    """What aiokafka's own `encode` gives."""
    return b"".join(_pieces(request.SCHEMA, [request.get_item(name) for name in request.SCHEMA.names]))


def _pieces(kind: Any, value: Any) -> Iterator[bytes]:
    """`value` encoded as `kind`, with large bytes as they are."""
    if type(kind) is Schema:
        for field, item in zip(kind.fields, value, strict=True):
            yield from _pieces(field, item)
    elif type(kind) is Array and value is not None:
        yield Int32.encode(len(value))
        for item in value:
            yield from _pieces(kind.array_of, item)
    elif kind is Bytes and value is not None:
        yield Int32.encode(len(value))
        yield value
    else:
        yield kind.encode(value)


for version in ProduceRequest._CLASSES:  # noqa: SLF001
    version.encode = encode_at_once
