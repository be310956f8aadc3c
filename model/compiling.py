"""Whether a machine can compile, and programs compiled when they are called (torch.compile), as a GPU's are.

Compiled code is cached on disk (torch's own cache; `TORCHINDUCTOR_CACHE_DIR` moves it), but traced again by each process; what
is for a CPU is therefore compiled ahead of time, see `model.ahead_of_time`.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
from torch._dynamo.exc import TorchDynamoException
from torch.utils._pytree import tree_leaves

log = logging.getLogger("nextmove")

P = ParamSpec("P")
R = TypeVar("R")

# Compiling traces, and older versions of torch let nobody call what is compiled while any thread traces: a model that is being
# loaded must not disturb the one at work.
ONE_AT_A_TIME = threading.RLock()

LIMIT = 256  # programs of one function, of all models; torch gives up beyond


def can_compile(device: str = "cpu") -> bool:
    """Whether this machine can compile for a device, and nobody has switched that off (`TORCH_COMPILE_DISABLE=1`)."""
    if torch._dynamo.config.disable:  # noqa: SLF001  # public by its documentation
        return False
    if device.startswith("cuda"):
        # triton brings the compiler for the device, and needs one for C for what starts its kernels
        return torch.cuda.is_available() and any(map(shutil.which, ("cc", "gcc", "clang")))
    from torch._inductor import config  # a heavy import: only where somebody asks

    candidates = config.cpp.cxx if isinstance(config.cpp.cxx, tuple | list) else (config.cpp.cxx,)
    return any(name and shutil.which(name) for name in candidates)


def compiled(
    program: Callable[P, R],
    *,
    dynamic: bool = False,
    one_for_all_batches: bool = False,
    or_plain: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Callable[P, R]:
    """One program per shape of its inputs; with `dynamic` one for all, with `one_for_all_batches` one for all sizes of a batch.

    A batch is the first dimension of what is given in the last two arguments, and more than one. Compiled when first called; where
    that fails it raises, or with `or_plain` goes on with the program as it is, and says so. May be called from several threads, one of
    which works.
    """
    plain = False
    found = torch.compile(
        program,
        dynamic=dynamic or (None if one_for_all_batches else False),
        fullgraph=True,
        options=None if options is None else dict(options),
    )

    @wraps(program)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        """What the program says to the same arguments."""
        nonlocal plain
        if plain:
            return program(*args, **kwargs)
        if one_for_all_batches:
            for batch in tree_leaves(args[-2:]):
                torch._dynamo.maybe_mark_dynamic(batch, 0)  # noqa: SLF001  # public by its documentation
        with ONE_AT_A_TIME:
            # Public by its documentation, and in newer versions of each thread; one compilation per bucket and model
            torch._dynamo.config.recompile_limit = LIMIT  # noqa: SLF001
            try:
                return found(*args, **kwargs)
            except TorchDynamoException as error:
                if not or_plain:
                    raise
                plain, words = True, " ".join(str(error).split())[:200]
        log.warning("%s is not compiled: %s", program.__name__, words)
        return program(*args, **kwargs)

    return run
