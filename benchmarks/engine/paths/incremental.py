"""NextMove's engine when it keeps what it computed for a user: one step per event instead of a window.

Nothing here until the engine can do that: `build` is the one function to fill in, and `MISSING` becomes None then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.engine.paths.contract import Missing
from benchmarks.engine.setting import Setting

if TYPE_CHECKING:
    from model.forecast import Forecast
    from model.window import Steps

MISSING: str | None = "the engine keeps no states yet"


def build(setting: Setting, **options: Any) -> Callable[[Steps], Sequence[Forecast]]:
    """A function of `Steps` that answers each with a forecast; options as those of `paths.nextmove.artifact`.

    It is called from one thread, with polls of the sizes in `SIZES`. All users are asked about once before anything is
    timed, so there must be room for the states of `setting.users` users.
    """
    raise Missing(MISSING)
