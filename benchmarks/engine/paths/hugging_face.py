"""Transformers' GPT-2 as it is used: eager PyTorch, each window computed in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.engine.batches import Rectangle, rectangles
from benchmarks.engine.paths import gpt2
from benchmarks.engine.paths.contract import BATCHES, STEPS, Listed
from benchmarks.engine.paths.rows import Answered, in_order
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import Poll


class HuggingFace:
    """See the module's docstring."""

    def __init__(self, setting: Setting, dtype: torch.dtype) -> None:
        torch.set_num_threads(setting.threads)
        self._window, self._device = setting.window, setting.device
        self._network = gpt2.build(setting).to(device=setting.device, dtype=dtype)
        self._turned = {"batch": 32, "step": 1}
        self.dials = {"batch": BATCHES if setting.device == "cpu" else (32, 128, 256, 1024), "step": STEPS}

    def turn(self, dial: str, value: int) -> None:
        """Of `dials`."""
        self._turned[dial] = value

    def prepare(self, poll: Poll) -> list[Rectangle]:
        """Rows instead of names, sorted by length."""
        return rectangles(poll, **self._turned, window=self._window)

    @torch.inference_mode()
    def answer(self, prepared: Sequence[Rectangle]) -> list[Answered]:
        """One entry per rectangle."""
        answers = []
        for one in prepared:
            rows, last = (torch.from_numpy(each).to(self._device) for each in (one.rows, one.last))
            values, best = self._network(rows, last)
            answers.append((values.tolist(), best.tolist()))
        return answers

    def listed(self, answers: Sequence[Answered], prepared: Sequence[Rectangle]) -> list[Listed]:
        """In the order of the poll."""
        return in_order(answers, prepared)


def build(setting: Setting, **options: Any) -> HuggingFace:
    """Options: `dtype`, the name of one of torch's."""
    return HuggingFace(setting, getattr(torch, options["dtype"]))
