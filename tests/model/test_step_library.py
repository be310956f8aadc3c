"""What a library of the step is for."""

import pytest
import torch

from model.config import NextMoveConfig
from model.incremental import Step
from model.network import NextMoveModel
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
