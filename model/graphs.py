"""Programs that a CUDA device runs as one: recorded once (a CUDA graph), then started with one call.

A pass of the engine is some hundred small kernels; launching each from Python takes longer than running it. What a recorded program
reads and writes stays where it was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.compiling import ONE_AT_A_TIME

WARM_UPS = 3  # libraries choose their kernels, and code is compiled, before anything is recorded
WAYS = 2  # answers that may be on their way at the same time

Numbers = npt.NDArray[np.int64]


def records(device: torch.device) -> bool:
    """Whether programs can be recorded there."""
    return device.type == "cuda"


class Memory(NamedTuple):
    """Room for what programs need between, which those share that are started one after the other; and where they are recorded."""

    pool: Any
    stream: torch.cuda.Stream


def new_memory() -> Memory:
    """For programs of the current device."""
    return Memory(torch.cuda.graph_pool_handle(), torch.cuda.Stream())  # type: ignore[no-untyped-call]  # torch leaves it untyped


class Way(NamedTuple):
    """Places on the host that the device reads and writes by itself."""

    given: Tensor  # int64 [C, rows], pinned
    found: Tensor  # int64 [rows, A], pinned
    done: torch.cuda.Event


class Graph:
    """A program of whole numbers, [C, rows] → [rows, A]; at most `WAYS` starts may be unanswered. Use it from one thread."""

    def __init__(self, program: Callable[[Tensor], Tensor], nothing: Tensor, memory: Memory) -> None:
        """`nothing` [C, rows] on the device: what may be given at any time.

        Raises whatever the program may raise, and RuntimeError where it waits for the device. Only one program is recorded, or compiled,
        at a time: torch can do no more.
        """
        self._given = nothing.clone()
        self._filling = nothing.cpu().numpy()
        self._graph = torch.cuda.CUDAGraph()
        with ONE_AT_A_TIME:
            memory.stream.wait_stream(torch.cuda.current_stream(nothing.device))
            with torch.cuda.stream(memory.stream):
                for _ in range(WARM_UPS):
                    program(self._given)
                with torch.cuda.graph(
                    self._graph, pool=memory.pool, stream=memory.stream, capture_error_mode="thread_local"
                ):  # other threads go on
                    self._found = program(self._given)
            torch.cuda.current_stream(nothing.device).wait_stream(memory.stream)
        self._ways = [
            Way(
                torch.empty(self._given.shape, dtype=torch.int64, pin_memory=True),
                torch.empty(self._found.shape, dtype=torch.int64, pin_memory=True),
                torch.cuda.Event(),  # type: ignore[no-untyped-call]  # likewise
            )
            for _ in range(WAYS)
        ]
        self._starts = 0

    def start(self, columns: Numbers) -> Callable[[], Tensor]:
        """Answers [B, A] to B of the rows, for whoever waits for them; columns [C, B]."""
        way, count = self._ways[self._starts % WAYS], columns.shape[1]
        self._starts += 1
        way.done.synchronize()  # of a start whose answers nobody waited for
        given = way.given.numpy()
        given[:, :count], given[:, count:] = columns, self._filling[:, count:]
        self._given.copy_(way.given, non_blocking=True)
        self._graph.replay()
        way.found.copy_(self._found, non_blocking=True)
        way.done.record()

        def answers() -> Tensor:
            way.done.synchronize()
            return way.found[:count].clone()

        return answers
