"""What chunks are between the steps of the agent: decoded and folded, on the device, answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from faust.types import TP, EventT

from stream_app.events import Record, Rejected
from stream_app.intake import Chunk
from stream_app.observations import BatchReport
from stream_app.outgoing import Outgoing
from stream_app.pipeline import Batch
from stream_app.predictions import Forecast


class Prepared(NamedTuple):
    """A chunk that is decoded and folded, on its way to the device."""

    event: EventT[list[Record]]
    records: Chunk
    batch: Batch
    report: BatchReport
    assignment: int  # which one it was folded under

    @property
    def tp(self) -> TP:
        """The partition that all its records are of."""
        tp: TP = self.event.message.tp
        return tp

    def may_follow(self, last: Prepared) -> bool:
        """Whether it may become durable while the one before it is not committed: both may come again, and be cut otherwise.

        A history keeps what may come again, and a whole window before it; who was erased or has expired keeps nothing.
        """
        return not (self.removes_users or last.removes_users)

    @property
    def removes_users(self) -> bool:
        """Whether histories go with it."""
        return self.records.is_erasure or bool(self.batch.expired)


@dataclass(eq=False, slots=True)
class TakenUp:
    """That chunks are on the device or further."""

    at_s: float  # monotonic: since when
    chunks: int  # that are not acknowledged
    leaving: bool = False  # they are being delivered, or are


class Inferred(NamedTuple):
    """Chunks of different partitions that were on the device together, and what the model says of their windows, in order."""

    chunks: list[Prepared]
    forecasts: list[Forecast | Rejected]
    taken_up: TakenUp


class Answered(NamedTuple):
    """Chunks of different partitions that were on the device together, and what is to leave because of them."""

    chunks: list[Prepared]
    outgoing: list[Outgoing]
    taken_up: TakenUp

    @classmethod
    def none(cls) -> Answered:
        """No chunks at all."""
        return cls([], [], TakenUp(0.0, 0))

    def may_follow(self, others: Answered) -> bool:
        """Whether each of these chunks may become durable while those are not committed."""
        before = {chunk.tp: chunk for chunk in others.chunks}
        return all(chunk.may_follow(before[chunk.tp]) for chunk in self.chunks if chunk.tp in before)
