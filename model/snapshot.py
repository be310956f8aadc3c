"""All that a learner is, at one moment, as a checkpoint; and a learner that goes on from one, to the bit."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.course import Course

if TYPE_CHECKING:
    from model.learner import Learner


def snapshot(learner: Learner) -> Checkpoint:
    """A copy of all that `restore` needs to go on from here."""
    tensors = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    tensors |= {f"weights.{name}": value for name, value in learner.weights.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in learner.best.items()}
    tensors |= {f"average.{number}": value for number, value in enumerate(learner.average.means)}
    for number, values in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    generators = learner.group.collect(_generators(learner.device))
    tensors |= {f"generators.{rank}": value for rank, value in enumerate(generators)}
    tensors |= {f"sums.{rank}": value for rank, value in enumerate(learner.group.collect(learner.sums))}
    state = {
        "course": asdict(learner.course),
        "step": learner.clock.step,
        "elapsed_s": time.monotonic() - learner.clock.begun,
        "random": learner.epoch_begun,
        "curve": list(learner.curve),
    }
    return Checkpoint({name: value.cpu().clone() for name, value in tensors.items()}, state)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Lets a learner go on from a checkpoint of an equal one."""
    tensors, state = checkpoint.tensors, checkpoint.state
    learner.model.load_state_dict(_under("model.", tensors))
    learner.weights.load_state_dict(_under("weights.", tensors))
    learner.best = {name: value.to(learner.device) for name, value in _under("best.", tensors).items()}
    learner.average.restore([tensors[f"average.{number}"] for number in range(len(learner.average.means))])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": moments})
    learner.course = Course(**state["course"])
    learner.curve = [(training, validation) for training, validation in state["curve"]]
    learner.sums = tensors[f"sums.{learner.group.rank}"].clone()
    learner.clock.step, learner.clock.begun = state["step"], time.monotonic() - state["elapsed_s"]
    learner.random.bit_generator.state = learner.epoch_begun = state["random"]
    _set_generators(tensors[f"generators.{learner.group.rank}"], learner.device)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _generators(device: torch.device) -> Tensor:
    """The states of torch's random generators, end to end: the CPU's, then the GPU's where that learns, uint8 [S]."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def _set_generators(states: Tensor, device: torch.device) -> None:
    length = len(torch.get_rng_state())
    torch.set_rng_state(states[:length])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[length:], device)
