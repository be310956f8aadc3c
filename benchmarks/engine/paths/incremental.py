"""NextMove's engine when it keeps what it computed for a user: one step per event instead of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.engine.setting import Setting

if TYPE_CHECKING:
    from model.forecast import Forecast

USER_BYTES = 400_000  # more than any user's states take in the settings here, float32


def build(setting: Setting, *, copy: bool, dtype: str = "float32") -> Callable[[Any], Sequence[Forecast]]:
    """A function of `model.window.Steps` that answers each with a forecast; compiled where a compiler is.

    It is called from one thread, with polls of any size. All users are asked about once before anything is timed, so
    there is room for the states of `setting.users` users.
    """
    import torch

    from benchmarks.engine.paths.nextmove import artifact
    from model.compiling import can_compile
    from model.engine import Engine

    compiled = can_compile(setting.device)
    engine = Engine(
        artifact(setting, copy=copy),
        device=setting.device,
        top_k=setting.top_k,
        threads=setting.threads,
        compiled=compiled,
    )
    engine.keep_states(max(256, setting.users) * USER_BYTES, dtype=getattr(torch, dtype))
    return engine.predict
