"""What holds for all tests.

Hypothesis: few examples and no time limit for one, since the machines that run these tests are small and shared.
"""

import atexit
import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "small", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("small")


def pytest_collection_modifyitems(config, items):
    """Tests of a GPU are for machines that have one."""
    if torch.cuda.is_available():
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(autouse=True)
def python_collects_garbage() -> Iterator[None]:
    """A worker that was prepared in this process has switched that off (`stream_app/garbage.py`)."""
    thresholds = gc.get_threshold()
    yield
    if not gc.isenabled() or gc.get_freeze_count():
        gc.unfreeze()
        gc.enable()
        gc.set_threshold(*thresholds)
        atexit.unregister(gc.unfreeze)


@pytest.fixture(autouse=True, scope="module")
def what_a_file_leaves_is_collected_with_it() -> Iterator[None]:
    """A future whose error nobody asked for says so when it is collected, with a traceback. For that Python 3.11 parses.

    If that happens while somebody else parses, this fails: "AST constructor recursion depth mismatch".
    """
    yield
    gc.collect()
