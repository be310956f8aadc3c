"""Compiled programs where a C++ compiler is on the machine, and the plain ones where there is none.

Compiled code is cached on disk (torch's own cache; `TORCHINDUCTOR_CACHE_DIR` moves it), so that a restart is fast.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo

P = ParamSpec("P")
R = TypeVar("R")

# Compiling traces, and older versions of torch let nobody call what is compiled while any thread traces: a model that is being
# loaded must not disturb the one at work.
ONE_AT_A_TIME = threading.RLock()

LIMIT = 256  # programs of one function, of all models; torch gives up beyond


def can_compile(device: str = "cpu") -> bool:
    """Whether this machine can compile for a device."""
    if device.startswith("cuda"):
        return torch.cuda.is_available()  # triton brings its own compiler
    from torch._inductor import config  # a heavy import: only where somebody asks

    candidates = config.cpp.cxx if isinstance(config.cpp.cxx, tuple | list) else (config.cpp.cxx,)
    return any(name and shutil.which(name) for name in candidates)


def compiled(
    program: Callable[P, R], *, dynamic: bool = False, options: Mapping[str, Any] | None = None
) -> Callable[P, R]:
    """One program per shape of its inputs, or with `dynamic` one for all; compiled when first called with it.

    May be called from several threads, one of which works.
    """
    found = torch.compile(program, dynamic=dynamic, fullgraph=True, options=None if options is None else dict(options))

    @wraps(program)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ONE_AT_A_TIME:
            # Public by its documentation, and in newer versions of each thread; one compilation per bucket and model
            torch._dynamo.config.recompile_limit = LIMIT  # noqa: SLF001
            return found(*args, **kwargs)

    return run
