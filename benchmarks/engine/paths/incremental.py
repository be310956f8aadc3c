"""NextMove's engine when it keeps what it computed for a user: one step per event instead of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.engine.setting import Setting

if TYPE_CHECKING:
    from model.forecast import Forecast

MOST = 2048  # users at once, on a GPU


def build(setting: Setting, *, copy: bool, dtype: str = "float32") -> Callable[[Any], Sequence[Forecast]]:
    """A function of `model.window.Steps` that answers each with a forecast; compiled where a compiler is.

    It is called from one thread, with polls of any size. All users are asked about once before anything is timed, so
    there is room for the states of `setting.users` users.
    """
    import torch

    from benchmarks.engine.paths.nextmove import artifact
    from model.compiling import can_compile
    from model.engine import Engine
    from model.pool import slot_bytes
    from model.threads import shared

    compiled = can_compile(setting.device)
    parts = artifact(setting, copy=copy)
    threads, helped = shared(setting.threads, compiled=compiled)  # as in the worker
    engine = Engine(
        parts,
        device=setting.device,
        top_k=setting.top_k,
        threads=threads,
        compiled=compiled,
        helped=helped,
    )
    kind = getattr(torch, dtype)
    engine.keep_states((max(MOST, setting.users) + 1) * slot_bytes(parts.model, setting.window, kind), dtype=kind)
    return engine.predict
