"""The step of one more event as compiled code, for passes of all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.ahead_of_time import AheadOfTime, works_on
from model.building import Size
from model.compiling import compiled
from model.config import NextMoveConfig
from model.incremental import Step
from model.pool import Event, Pool, Stepped

LENGTHS = ("item_rows", "category_rows", "texts")  # of a configuration: nothing in the step is as long as a catalogue


def compiled_step(step: Step, device: torch.device) -> Callable[[Pool, Event, Tensor], Stepped]:
    """The same step; compiled when it is first called, which raises where that fails."""
    if not works_on(device.type):
        return compiled(step, one_for_all_batches=True)
    return AheadOfTime(step, _sizes, about=described(step))


def described(step: Step) -> str:
    """What a program of the step depends on besides its arguments."""
    names = vars(NextMoveConfig)["__annotations__"]
    sizes = {name: getattr(step.model.config, name) for name in names if name not in LENGTHS}
    return f"{sizes} {step.narrow}"


def _sizes(pool: Pool, event: Event, _: Tensor) -> tuple[Any, ...]:
    """Any number of slots and of events."""
    rows = {0: Size("rows", least=1)}
    return pool_sizes(pool), tuple(rows for _ in event), rows


def pool_sizes(pool: Pool) -> Any:
    """Any number of slots."""

    def of(part: Any) -> Any:
        return tuple(map(of, part)) if isinstance(part, tuple) else {0: Size("slots")} if len(part) else {}

    return of(tuple(pool))
