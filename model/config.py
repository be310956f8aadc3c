"""What fixes the shape of the network; saved as `config.json` in the artefact."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from model.vocabulary import Vocabulary

QUANTILES = (0.1, 0.5, 0.9)  # of the time to the next event
BACKBONES = ("nextmove", "gpt2", "llama", "bert", "gru", "lstm", "rnn")  # ours first, then its peers


class NextMoveConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Sizes of the network. Rows count special rows, see `model.vocabulary`."""

    model_type: ClassVar[str] = "nextmove"

    backbone: str = "nextmove"  # what turns events into states: one of `BACKBONES`
    positions: int = 50  # events of a window: what a backbone with learned positions must know
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
    kv_heads: int = 2  # heads of the keys and values; fewer than `heads`: several queries share one
    pointer_width: int = 64
    texts: int = 0  # distinct texts of items; 0: an item is known by its events alone
    text_width: int = 0  # numbers that the text encoder gives
    price_buckets: int = 0  # with that of the items without a price; 0: no item has one
    copy: bool = True  # off where users repeat nothing: no pointer, no relation between two events but distance
    dropout: float = 0.3
    unknown_items: float = 0.6  # share of known items shown as unknown in training: the unknown rows learn, and
    unknown_categories: float = 0.2  # what a user did is not learned by heart; categories likewise

    @property
    def feed_width(self) -> int:
        """Width inside a gated feed-forward: two thirds of the usual four times, for it has three matrices, not two."""
        return max(32, 8 * self.width // 3 // 32 * 32)


def rows_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """The sizes that follow from the names: how many rows each catalogue has, and which is the first known name's."""
    catalogues = {"item": vocabulary.items, "category": vocabulary.categories, "behavior": vocabulary.behaviors}
    return {f"{kind}_{size}": getattr(one, size) for kind, one in catalogues.items() for size in ("rows", "first")}


# One dial: the preset decides width, depth and learning rate together.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 2},
    "base": {"width": 128, "layers": 2, "heads": 2, "kv_heads": 2},
    "large": {"width": 256, "layers": 3, "heads": 4, "kv_heads": 2},
}
