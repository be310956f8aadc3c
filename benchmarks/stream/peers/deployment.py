"""What a peer is told, by its environment: broker, topics, consumer group. Imports the standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

PREFIX = "BENCHMARK_"
HISTORY = 50  # events of a user that a peer keeps


@dataclass(frozen=True)
class Deployment:
    """Where a peer reads and writes."""

    broker: str
    group: str
    events: str
    answers: str
    partitions: str
    state_dir: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Deployment:
        """As the harness set it."""
        return cls(**{field.name: environment[PREFIX + field.name.upper()] for field in fields(cls)})

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        return {PREFIX + name.upper(): value for name, value in asdict(self).items()}
