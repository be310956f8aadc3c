"""Compiled programs where a C++ compiler is on the machine, and the plain ones where there is none.

Compiled code is cached on disk (torch's own cache; `TORCHINDUCTOR_CACHE_DIR` moves it), so that a restart is fast.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch._dynamo

log = logging.getLogger("nextmove")

P = ParamSpec("P")
R = TypeVar("R")


def can_compile(device: str = "cpu") -> bool:
    """Whether this machine can compile for a device."""
    if device.startswith("cuda"):
        return torch.cuda.is_available()  # triton brings its own compiler
    from torch._inductor import config  # a heavy import: only where somebody asks

    candidates = config.cpp.cxx if isinstance(config.cpp.cxx, tuple | list) else (config.cpp.cxx,)
    return any(name and shutil.which(name) for name in candidates)


def compiled(program: Callable[P, R]) -> Callable[P, R]:
    """One program per shape of its inputs; compiled when first called with it."""
    torch._dynamo.config.recompile_limit = 256  # noqa: SLF001  # public by its documentation; one compilation per bucket and model
    return torch.compile(program, dynamic=False, fullgraph=True)
