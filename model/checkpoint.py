"""Checkpoints of a training: one file each, written whole or not at all, and only ever continued by the same training.

    000000012.safetensors   tensors, and the rest as JSON in the header (no pickle)

A file is written beside its place, synced and renamed; the one before it is kept until the next one is there. It knows
nothing of networks or optimisers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import durable

KEPT = 2
_NAME = re.compile(r"\d{9}\.safetensors")


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or continued; the message is one line."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a training was, at one moment."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]  # plain JSON


class Checkpoints:
    """The checkpoints of one training in a directory of their own.

    `identity` is what the training is about, name → value in plain JSON: a checkpoint of another one is never continued.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory = directory
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    def newest(self) -> Checkpoint | None:
        """The newest one, None where there is none; raises CheckpointError for a damaged one or one of another training."""
        files = self._files()
        if not files:
            return None
        path = files[-1]
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            identity, state = json.loads(header["identity"]), json.loads(header["state"])
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged ({_line(error)}); delete it to go on from the one before"
            ) from error
        self._require_same(path, identity)
        return Checkpoint(tensors, state)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the next one and lets go of older ones; raises CheckpointError, and then the older ones are still there."""
        header = {"identity": json.dumps(self.identity), "state": json.dumps(checkpoint.state)}
        files: list[Path] = []
        partial = self.directory / f".{os.getpid()}.partial"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            files = self._files()
            number = int(files[-1].stem) + 1 if files else 1
            durable.write(partial, safetensors.torch.save(checkpoint.tensors, header))
            partial.replace(self.directory / f"{number:09d}.safetensors")
            durable.sync(self.directory)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            advice = "the checkpoints before it are whole: make room, and give the same command again" if files else ""
            raise CheckpointError(
                f"cannot write a checkpoint to {self.directory}: {error.strerror or error}; {advice or 'make room for it'}"
            ) from error
        for old in files[: 1 - KEPT]:
            old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing is left of a training that is over, nor the directory if it held nothing else."""
        with suppress(OSError):
            for path in [*self._files(), *self.directory.glob(".*.partial")]:
                path.unlink(missing_ok=True)
            self.directory.rmdir()

    def _files(self) -> list[Path]:
        """Oldest first; raises CheckpointError where the directory is no directory."""
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(f"{self.directory} is not a directory; name another place for checkpoints")
        return sorted(path for path in self.directory.glob("*.safetensors") if _NAME.fullmatch(path.name))

    def _require_same(self, path: Path, identity: Mapping[str, Any]) -> None:
        names = sorted(self.identity.keys() | identity.keys())
        other = [name for name in names if self.identity.get(name) != identity.get(name)]
        if other:
            raise CheckpointError(
                f"{path} is of another training (of another {', '.join(other)}); "
                f"give that one's log and options, or another directory for checkpoints"
            )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
