"""The average of a network's weights over the last steps, which is judged and kept in the place of the last ones.

An exponential moving average (Polyak and Juditsky, 1992), which cannot lie far from where steps that are still large happen to
end. It knows nothing of losses or data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of some weights; of a `decay` of 0 there is none, and the weights stand for themselves."""

    def __init__(self, weights: Iterable[nn.Parameter], decay: float) -> None:
        """The weight of a step falls by `decay` with each later one."""
        self._decay = decay
        self._weights = [weight for weight in weights if decay]
        self.means = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the `step`-th step, counted from 1: of the first ones the average is shorter, so that it forgets the start."""
        if self._weights:
            decay = min(self._decay, step / (step + 9))
            get_ema_multi_avg_fn(decay)(self.means, list(self._weights), step)  # type: ignore[no-untyped-call]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile the network has the average for its weights; nothing is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def restore(self, means: list[Tensor]) -> None:
        """Goes on from `means`."""
        for mean, kept in zip(self.means, means, strict=True):
            mean.copy_(kept)

    def _exchange(self) -> None:
        for number, weight in enumerate(self._weights):
            weight.data, self.means[number] = self.means[number], weight.data
