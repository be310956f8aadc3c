"""Whether there is a compiler, and what it makes."""

from concurrent.futures import ThreadPoolExecutor

import torch

from model.compiling import can_compile, compiled


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not can_compile("cpu")


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
