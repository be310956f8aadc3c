"""Transformers' GPT-2 as it is used: eager PyTorch, each window computed in full."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.paths import gpt2
from benchmarks.engine.paths.sessions import Session, Sessions
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import Ints


def build(setting: Setting, **options: Any) -> Sessions:
    """Options: `dtype`, the name of one of torch's. Sessions are threads that share the weights."""
    network = gpt2.build(setting).to(device=setting.device, dtype=getattr(torch, options["dtype"]))

    def load(threads: int) -> Session:
        @torch.inference_mode()
        def run(rows: Ints, last: Ints) -> tuple[Tensor, Tensor]:
            torch.set_num_threads(threads)  # of the thread that calls
            values, best = network(*(torch.from_numpy(each).to(setting.device) for each in (rows, last)))
            return values, best

        return run

    return Sessions(setting, load)
