"""Whether there is a compiler, and what it makes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from model.compiling import can_compile, compiled


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not can_compile("cpu")


def test_nothing_is_compiled_where_somebody_switched_it_off():
    assert can_compile()
    with torch._dynamo.config.patch(disable=True):
        assert not can_compile()


def test_without_a_gpu_nothing_is_compiled_for_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not can_compile("cuda")


def test_a_compiled_program_says_the_same():
    def program(x):
        return (x * x).sum(1)

    x = torch.arange(6.0).view(2, 3)
    assert compiled(program)(x).tolist() == [0 + 1 + 4, 9 + 16 + 25]


def test_as_many_shapes_as_there_are_are_compiled_in_any_thread():
    """torch keeps its settings by thread, and gives up after eight shapes by default."""
    program = compiled(lambda x: x + 1)
    with ThreadPoolExecutor(1) as other:
        found = [other.submit(program, torch.zeros(rows)).result() for rows in range(2, 13)]
    assert [len(one) for one in found] == list(range(2, 13))


def test_one_program_is_for_all_sizes_of_a_batch():
    def program(table, rows, times):
        return table[rows] * times[:, None]

    table, run = torch.arange(20.0).view(10, 2), compiled(program, one_for_all_batches=True)
    before = counters["stats"]["unique_graphs"]
    for size in (9, 7, 2):
        rows, times = torch.arange(size), torch.full((size,), 2.0)
        assert torch.equal(run(table, rows, times), table[:size] * 2.0)
    assert counters["stats"]["unique_graphs"] - before == 1


def test_what_does_not_compile_is_run_as_it_is_where_that_is_wanted(monkeypatch, caplog):
    calls = []

    def broken(*_, **__):
        def run(*_):
            calls.append(1)
            raise TorchDynamoException("no tiles")

        return run

    def program(x):
        return x + 1

    monkeypatch.setattr("torch.compile", broken)
    run = compiled(program, or_plain=True)
    assert [run(torch.tensor(number)).item() for number in (1, 2)] == [1 + 1, 2 + 1]
    assert len(calls) == 1
    assert caplog.text.count("program is not compiled") == 1
    with pytest.raises(TorchDynamoException):
        compiled(program)(torch.tensor(1))
