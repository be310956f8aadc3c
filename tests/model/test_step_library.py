"""What a library of the step is for."""

import pytest
import torch
from torch.torch_version import TorchVersion

from model.ahead_of_time import AheadOfTime
from model.config import NextMoveConfig
from model.incremental import Step
from model.network import NextMoveModel
from model.scoring_library import compiled_reduce
from model.step_library import compiled_step


def about(narrow=None, **sizes):
    model = NextMoveModel(NextMoveConfig(**{"width": 32, "item_rows": 10, "category_rows": 8, **sizes}))
    return compiled_step(Step(model, narrow), torch.device("cpu"))._about


def test_a_model_that_knows_more_names_needs_no_new_code():
    assert about() == about(item_rows=5000, category_rows=900)


@pytest.mark.parametrize("sizes", [{"width": 64}, {"copy": False}, {"session_gap_ms": 1}, {"layers": 3}, {"heads": 4}])
def test_another_network_does(sizes):
    assert about() != about(**sizes)


def test_so_do_products_of_another_type():
    assert about() != about(torch.bfloat16)


def test_versions_of_torch_that_do_it_wrongly_compile_when_called(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    step = Step(NextMoveModel(NextMoveConfig(width=32)))
    assert not isinstance(compiled_step(step, torch.device("cpu")), AheadOfTime)
    assert not isinstance(compiled_reduce("cpu"), AheadOfTime)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.15.0"))
    assert isinstance(compiled_step(step, torch.device("cpu")), AheadOfTime)
    assert isinstance(compiled_reduce("cpu"), AheadOfTime)
