"""How far a run has come, and how fast it learns there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """How much of the schedule is over: by steps, or by time where there is a budget."""

    steps: int
    budget_s: float | None = None
    step: int = 0
    begun: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """0 … 1."""
        done = self.step / max(1, self.steps)
        if self.budget_s is not None:
            done = max(done, (time.monotonic() - self.begun) / self.budget_s)
        return min(done, 1.0)


@dataclass(slots=True)
class Course:
    """How far a run has come."""

    epoch: int = 0  # epochs that are over
    batch: int = 0  # batches of the next one that are over
    loss: float = math.inf  # of the last batch
    best_loss: float = math.inf
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": math.nan})
    ended: bool = False


def schedule(share: float, warmup: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine down to 2 %."""
    if share < warmup:
        return max(0.01, share / warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
