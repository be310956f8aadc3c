"""What is asked of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model.artifact import read_manifest
from model.cleaning import Cleaning
from model.config import BACKBONES, PRESETS
from model.devices import choose_device, learns_in_bfloat16
from model.group import ALONE, Group
from model.item_text import ItemText
from model.material import Material
from model.recipe import DENSE, NARROW, SPARSE, Augmentation, Narrow, Recipe
from model.targets import Horizons
from model.warm_start import RATE, WarmStart
from model.window import WindowRule


class TrainingError(Exception):
    """Training cannot start or finish; the message is one line."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where checkpoints go, and how often one is written within an epoch; there is one after each epoch anyway."""

    directory: Path
    every_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to learn, from what, how and where; raises TrainingError for an option that makes no sense."""

    behaviors: Sequence[str]
    goal: str
    preset: str = "small"
    backbone: str = "nextmove"
    seed: int = 0
    train_until: float = 0.8  # share of the events, by time, that is learned from
    protocol: str = "time"  # or "leave-one-out": all but the last two events of each user are learned from
    cleaning: Cleaning = field(default_factory=Cleaning)
    window: WindowRule = field(default_factory=WindowRule)
    horizons: Horizons | None = None  # chosen by the length of the log where it is None
    validation: float = 0.1  # share of what is learned from that decides when to stop; 0: learn all epochs
    time_budget_s: float | None = None  # of the whole training, which then depends on the machine's speed
    epochs: int | None = None  # the recipe's where it is None
    bfloat16: Narrow | None = None  # likewise; see `Recipe`
    augmentation: Augmentation = field(default_factory=Augmentation)  # likewise
    recipe: Recipe | None = None  # chosen by the log where it is None
    text: ItemText | None = None  # of the items
    prices: bool = False  # whether items' prices are an input, where the log has any
    warm: WarmStart | None = None  # the older model that is gone on from
    device: str = "auto"
    threads: int | None = None  # half the cores by default: the matrices are small, and waiting for a core costs more
    group: Group = ALONE  # whose processes all make the same call; the first one publishes
    keeping: Keeping | None = None  # with it the same call after a crash goes on where the last checkpoint was

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise TrainingError(f"no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.backbone not in BACKBONES:
            raise TrainingError(f"no backbone {self.backbone!r}; there are {', '.join(BACKBONES)}")
        if not (0 < self.train_until <= 1 and 0 <= self.validation < 1):
            raise TrainingError(
                f"train_until must be in (0, 1] and validation in [0, 1), got {self.train_until}, {self.validation}"
            )
        if self.protocol not in ("time", "leave-one-out"):
            raise TrainingError(f"one cannot train by {self.protocol!r}; the protocol is time or leave-one-out")
        if self.epochs is not None and self.epochs < 1:
            raise TrainingError(f"epochs must be at least 1, got {self.epochs}")
        if self.bfloat16 not in (None, *NARROW):
            raise TrainingError(f"no bfloat16 {self.bfloat16!r}; there are {', '.join(NARROW)}")
        object.__setattr__(self, "device", choose_device(self.device))

    def identity(self) -> dict[str, Any]:
        """All that decides what comes out, but for the log."""
        own = {
            name: getattr(self, name)
            for name in ("behaviors", "goal", "preset", "backbone", "seed", "validation", "protocol")
        }
        parts = {"window": self.window, "horizons": self.horizons, "recipe": self.recipe}
        written = {name: part and asdict(part) for name, part in parts.items()}
        texts: dict[str, Any] = {} if self.text is None else {"item text": self.text.fingerprint()}
        texts |= {"prices": True} if self.prices else {}
        older = {} if self.warm is None else {"older model": read_manifest(self.warm.directory).version}
        return {**own, **written, **texts, **older, "device": self.device, "processes": self.group.size}

    def with_recipe(self, material: Material) -> Order:
        """The same with the recipe that the log wants, or the one given, as far as no other option changes it."""
        recipe = self.augmentation.of(self.recipe or (DENSE if material.is_dense() else SPARSE))
        if self.warm is not None:
            recipe = replace(recipe, learning_rate=RATE * recipe.learning_rate, replay=self.warm.replay)
        epochs = recipe.epochs if self.epochs is None else self.epochs
        recipe = replace(recipe, epochs=epochs, bfloat16=self.bfloat16 or recipe.bfloat16)
        return replace(self, recipe=decided(recipe, self.device, self.group))


def decided(recipe: Recipe, device: str, group: Group = ALONE) -> Recipe:
    """The recipe with what it leaves to the device, the same for all processes of a group."""
    if recipe.bfloat16 != "auto":
        return recipe
    return replace(recipe, bfloat16="blocks" if group.agree(float(learns_in_bfloat16(device))) else "off")
