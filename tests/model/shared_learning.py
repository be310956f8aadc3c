"""What each process of a group does in `test_group.py`: learn together, and leave the weights in the file named."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from model.group import Group, GroupError, joined
from tests.model.test_learner import make_learner


def learn(group: Group) -> tuple[dict[str, torch.Tensor], float]:
    """Weights and validation loss after two epochs without dropout; one process and two see the same batches."""
    learner = make_learner(options={"group": group}, still=True, epochs=2, positions=128)
    return learner.model.state_dict(), learner.run()[1]["loss"]


def talk(group: Group) -> None:
    """All that a group can do, seen from each of its two processes."""
    assert group.size == 2
    assert group.add(torch.tensor([1.0, group.rank])).tolist() == [2.0, 1.0]
    assert group.agree(0.5 + group.rank) == 0.5
    assert [one.tolist() for one in group.collect(torch.tensor([group.rank]))] == [[0], [1]]
    weights = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    weights[0].grad = torch.full((2,), 1.0 + group.rank)
    weights[1].grad = torch.ones(2) if group.rank else None
    group.add_gradients(weights)
    assert weights[0].grad.tolist() == [3.0, 3.0]
    assert weights[1].grad.tolist() == [1.0, 1.0]
    assert weights[2].grad is None
    done: list[int] = []
    group.lead(lambda: done.append(1))
    assert len(done) == 1 - group.rank

    def fail() -> None:
        raise OSError("full")

    with pytest.raises(GroupError if group.rank else OSError, match="first process|full"):
        group.lead(fail, OSError)


if __name__ == "__main__":
    with joined() as ours:
        talk(ours)
        learned, loss = learn(ours)
        save_file({**learned, "loss": torch.tensor(loss)}, f"{sys.argv[1]}.{ours.rank}")
