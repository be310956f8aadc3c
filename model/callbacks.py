"""What hears of a training: a progress bar, a tracker of experiments, a test. The training itself shows and prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.artifact import Epoch, Manifest


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come."""

    phase: str  # "prepare", "train", "validate", "refit", "save"
    step: int
    total: int
    loss: float | None = None
    found: dict[str, float] = field(default_factory=dict)  # at the end of a validation: its measures
    batches: int = 0  # learned so far in this phase


class Callback:
    """Hears nothing; whoever wants to hear something overrides that method. One training, then it is over.

    In a group of processes only the first one is heard.
    """

    def on_begin(self, options: Mapping[str, object]) -> None:
        """Before anything is learned; options: all that decides what comes out, but for the log, as plain values."""

    def on_step(self, progress: Progress) -> None:
        """After each batch, and whenever something else goes on."""

    def on_epoch(self, epoch: Epoch) -> None:
        """The end of an epoch, with its mean losses."""

    def on_end(self, manifest: Manifest) -> None:
        """The model is published."""

    def on_error(self) -> None:
        """There will be no model: something went wrong, or somebody interrupted it."""


class Callbacks(Callback):
    """Several, in order."""

    def __init__(self, several: Sequence[Callback]) -> None:
        self.several = tuple(several)

    def on_begin(self, options: Mapping[str, object]) -> None:
        """Tells each one."""
        for one in self.several:
            one.on_begin(options)

    def on_step(self, progress: Progress) -> None:
        """Tells each one."""
        for one in self.several:
            one.on_step(progress)

    def on_epoch(self, epoch: Epoch) -> None:
        """Tells each one."""
        for one in self.several:
            one.on_epoch(epoch)

    def on_end(self, manifest: Manifest) -> None:
        """Tells each one."""
        for one in self.several:
            one.on_end(manifest)

    def on_error(self) -> None:
        """Tells each one."""
        for one in self.several:
            one.on_error()
