"""How weights are learned: the two recipes that a log chooses between, and what of them may be changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

RANKED = "item NDCG@10"

Narrow = Literal["auto", "off", "blocks", "all"]
NARROW: tuple[Narrow, ...] = get_args(Narrow)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are learned; the network's own sizes are in the preset."""

    learning_rate: float = 2e-3
    weight_decay: float = 1.0
    warmup: float = 0.05  # share of the schedule
    epochs: int = 6
    patience: int = 3  # epochs without improvement before the end
    positions: int | None = None  # events per step; by default so many that an epoch has about `learner.STEPS` steps
    overlap: float = 0.5  # share of a stretch that only gives context; 0: all of it learns
    dropout: float = 0.3
    mask_items: float = 0.6  # share of known names shown as unknown
    mask_categories: float = 0.2
    crop: float = 0.0  # share of the stretches that lose their oldest events
    reorder: float = 0.0  # share of the stretches with a shuffled part
    average: float = 0.99  # decay of the weights' average, which is judged and kept; 0: the weights themselves
    hidden: float = 0.2  # share of events that a backbone that looks both ways is not shown, and learns
    # What is computed in bfloat16 while learning, never in answers: nothing; the backbone's products and those with the
    # catalogue; or all of the forward pass that stands it (autocast), for GPUs. An `Order` replaces auto: by blocks where
    # the device multiplies bfloat16 clearly faster, by off where it does not, which may be 75 times slower.
    bfloat16: Narrow = "auto"
    replay: float = (
        1.0  # share of the stretches that hold nothing new, where there is an older model, that is learned from
    )
    best_by: str = "loss"  # on the validation part; or RANKED, where the ranking is what counts


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much of a training's material is made different each time, as shares; what is None is as the recipe has it."""

    crop: float | None = None  # of the stretches
    mask: float | None = None  # of the known items
    reorder: float | None = None  # of the stretches

    def __post_init__(self) -> None:
        for name in ("crop", "mask", "reorder"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be a share in [0, 1], got {share}")

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with it."""
        return replace(
            recipe,
            crop=recipe.crop if self.crop is None else self.crop,
            mask_items=recipe.mask_items if self.mask is None else self.mask,
            reorder=recipe.reorder if self.reorder is None else self.reorder,
        )


# What a log wants: names too rare to be learned by heart, or each name seen so often that little else counts.
SPARSE = Recipe()
DENSE = Recipe(
    weight_decay=0.1,
    epochs=24,
    patience=4,
    positions=8192,
    overlap=0.0,
    dropout=0.2,
    mask_items=0.0,
    mask_categories=0.0,
    average=0.0,
    best_by=RANKED,
)
