import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from model.group import ALONE, joined
from tests.model.shared_learning import learn
from tests.processes import free_port


def test_one_process_alone_does_nothing_special():
    with joined() as group:
        assert group == ALONE
    weight = torch.zeros(2, requires_grad=True)
    ALONE.add_gradients([weight])
    assert weight.grad is None
    assert ALONE.agree(3.0) == 3.0
    assert ALONE.collect(torch.ones(1)) == [torch.ones(1)]
    assert ALONE.add(torch.ones(1)) == torch.ones(1)
    with pytest.raises(ZeroDivisionError):
        ALONE.lead(lambda: 1 / 0, ZeroDivisionError)


def test_two_processes_learn_what_one_learns_from_the_same_batches(tmp_path):
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.model.shared_learning", str(tmp_path / "weights")]
    both = [
        subprocess.Popen(command, env={**os.environ, **where, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in both:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors
    first, second = (load_file(tmp_path / f"weights.{rank}") for rank in range(2))
    alone, loss = learn(ALONE)
    assert first["loss"].item() == second["loss"].item() == pytest.approx(loss, rel=1e-4)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)
