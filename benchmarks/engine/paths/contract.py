"""What every path offers to the program that drives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from benchmarks.engine.stream import Poll

BATCHES = (1, 8, 32, 128, 256)
GPU_BATCHES = (1, 32, 128, 256, 1_024)
STEPS = (1, 10, 100)  # widths of batches are multiples of it

Listed = Sequence[tuple[str | int, float]]  # top-k of one event, best first; names, or rows counted from 0


class Missing(Exception):
    """A path that cannot run here; the message is one line that says why."""


class Path(Protocol):
    """One way to answer events."""

    dials: Mapping[str, Sequence[int]]  # what is tried, one after the other; "poll" is the size of polls

    def turn(self, dial: str, value: int) -> None:
        """Set a dial other than "poll"."""

    def prepare(self, poll: Poll) -> Any:
        """What is not timed: whatever a system in production would have at hand."""

    def answer(self, prepared: Any) -> Sequence[Any]:
        """What is timed: one answer per event of the poll, as Python objects."""

    def listed(self, answers: Sequence[Any], prepared: Any) -> list[Listed]:
        """The items of the answers in the order of the poll; not timed."""
