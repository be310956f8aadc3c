"""How many threads torch computes with. Small matrices gain little from a second one, and lose tenfold where it waits for a busy core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.ahead_of_time import works_on


def half_the_cores() -> int:
    """What a command takes that nobody told otherwise."""
    return max(1, (os.cpu_count() or 1) // 2)


def shared(count: int, *, compiled: bool) -> tuple[int, bool]:
    """Of so many threads for a model on a CPU: those of torch's, and whether a helper has as many (`model.helper`)."""
    helped = count > 1 and (works_on("cpu") or not compiled)  # other compiled code is for one thread
    return (count // 2 if helped else count), helped


@contextmanager
def threads(count: int) -> Iterator[None]:
    """With this many threads for torch, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
