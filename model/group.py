"""Several processes that learn one model together: each takes its share of every batch, and gradients are added up.

Started by torchrun, which says in the environment who is who; without it a process is alone, and every method here does
nothing. Sums are plain all-reduces (gloo, NCCL on CUDA) and not torch's DistributedDataParallel, since the losses call
parts of the network outside of its forward, and are means over counts that only all processes together know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)  # one process evaluates and writes while the others wait


class GroupError(Exception):
    """Another process of the group failed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Group:
    """Which process this is, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: float) -> float:
        """The leader's value, for all: clocks differ."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape."""
        if self.size == 1:
            return [tensor]
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor)
        return every

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Each gradient becomes its sum over all processes; None where it is None everywhere."""
        if self.size == 1:
            return
        used = self.add(torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32))
        some = [weight for weight, count in zip(weights, used.tolist(), strict=True) if count]
        flat = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in some]
        total = self.add(torch.cat([gradient.reshape(-1) for gradient in flat]))
        parts = torch.split(total, [weight.numel() for weight in some])
        for weight, gradient in zip(some, parts, strict=True):
            weight.grad = gradient.view_as(weight)

    def lead(self, work: Callable[[], object], *expected: type[Exception]) -> None:
        """Done by the leader alone; where it fails in an expected way, the others raise GroupError."""
        error: Exception | None = None
        if self.leads:
            try:
                work()
            except expected as failure:
                error = failure
        failed = self.agree(float(error is not None))
        if error is not None:
            raise error
        if failed:
            raise GroupError("the first process of the group failed")


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun started this process for; a group of one without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
