"""Model directories for tests that need a real one and no good one: nothing is learned, so they cost no time."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from model import artifact, vocabulary
from model.artifact import Artifact, Golden, Manifest, TrainingRange
from model.calibration import Calibration
from model.config import NextMoveConfig, rows_of
from model.engine import GOLDEN_TOP_K, Engine
from model.network import NextMoveModel
from model.window import Window, WindowRule

BEHAVIORS = ("view", "add_to_cart", "purchase")
RULE = WindowRule(events=12)


def untrained(
    seed: int = 0,
    *,
    items: int = 30,
    categories: int = 5,
    behaviors: Sequence[str] = BEHAVIORS,
    goal: str = "purchase",
    window: WindowRule = RULE,
    calibration: Calibration | None = None,
) -> Artifact:
    """The parts of a model with random weights; another seed, other weights. Items are `i0`, `i1`, …, the last the rarest."""
    names = vocabulary.build(
        {f"i{n}": items - n for n in range(items)},
        {f"c{n}": categories - n for n in range(categories)},
        {f"i{n}": f"c{n % categories}" for n in range(items) if categories},
        behaviors,
        goal,
    )
    config = NextMoveConfig(positions=window.events, width=16, pointer_width=16, layers=1, **rows_of(names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NextMoveModel(config).eval()
    manifest = Manifest(
        schema=artifact.SCHEMA, version="", window=window, behaviors=list(behaviors), goal=goal,
        goal_horizon_ms=1000, churn_horizon_ms=1000, metrics={}, popular_items=names.popular_items(), golden=[],
        training=TrainingRange(events=1, users=1, from_ms=0, until_ms=1, preset="small", seed=seed, epochs=0),
        calibration=calibration,
    )  # fmt: skip
    return with_golden(Artifact(model, names, manifest))


def with_golden(parts: Artifact) -> Artifact:
    """The same parts with the answer that they give now."""
    window = Window(["i0", "unknown", None], ["view", "view", parts.manifest.goal], ["c0", None, None], [0, 1000, 2000])
    (answer,) = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict([window])
    golden = [Golden(window, answer)]
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden))


def published(directory: Path, parts: Artifact) -> str:
    """Publish there; the version."""
    return artifact.publish(directory, parts).version
