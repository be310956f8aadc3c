"""The checkpoints of one training, as its passes use them: what to go on from, what to leave behind, and when to let go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, CheckpointError, Checkpoints
from model.group import Group
from model.learner import Keep, Learner
from model.snapshot import restore


class Saves:
    """The newest checkpoint of an earlier try, and the writing of those to come; nothing of both without a directory.

    Raises CheckpointError where `directory` holds another training's.
    """

    def __init__(self, directory: Path | None, identity: Mapping[str, Any], group: Group) -> None:
        self.group = group
        self.checkpoints = None if directory is None else Checkpoints(directory, identity)
        self.found = None if self.checkpoints is None else self.checkpoints.newest()

    def keeper(self, **state: Any) -> Keep | None:
        """What writes a learner's checkpoints, with `state` beside."""
        checkpoints = self.checkpoints
        if checkpoints is None:
            return None

        def keep(checkpoint: Checkpoint) -> None:
            whole = replace(checkpoint, state={**checkpoint.state, **state})
            self.group.lead(lambda: checkpoints.save(whole), CheckpointError)

        return keep

    def restore(self, learner: Learner) -> None:
        """Lets a learner go on from the newest checkpoint, if that is of its phase; raises CheckpointError."""
        if self.found is None or self.found.state["phase"] != learner.phase:
            return
        try:
            restore(learner, self.found)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "the checkpoint does not fit this program's network; give another directory for checkpoints"
            ) from error

    def clear(self) -> None:
        """Nothing to go on from is needed any more."""
        if self.checkpoints is not None and self.group.leads:
            self.checkpoints.clear()
