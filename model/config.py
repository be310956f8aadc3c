"""What fixes the shape of the network; saved as `config.json` in the artefact."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

QUANTILES = (0.1, 0.5, 0.9)  # of the time to the next event


class NextMoveConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Sizes of the network. Rows count special rows, see `model.vocabulary`."""

    model_type: ClassVar[str] = "nextmove"

    item_rows: int = 4
    item_first: int = 3  # row of the first known item
    category_rows: int = 4
    category_first: int = 3
    behavior_rows: int = 4
    behavior_first: int = 3
    session_gap_ms: int = 30 * 60 * 1000
    width: int = 64
    layers: int = 2
    heads: int = 2
    pointer_width: int = 64
    dropout: float = 0.3
    unknown_items: float = 0.6  # share of known items shown as unknown in training: the unknown rows learn, and
    unknown_categories: float = 0.2  # what a user did is not learned by heart; categories likewise


# One dial: the preset decides width, depth and learning rate together.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"width": 64, "layers": 2, "heads": 2},
    "base": {"width": 128, "layers": 2, "heads": 4},
    "large": {"width": 256, "layers": 4, "heads": 8},
}
