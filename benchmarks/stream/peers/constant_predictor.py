"""A model that costs nothing: the same full-size forecast for every window, or one of a few. What is left is the stream path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from random import Random

from model.forecast import Category, Forecast, Item
from model.hiding import Hidden
from model.window import Window, WindowRule

BEHAVIORS = ("view", "add_to_cart", "favorite", "purchase")
TOP_K = 10


class ConstantPredictor:
    """Looks at nothing but the number of windows."""

    version = "c0457a4700000000"  # as long as a real one
    device = "cpu"
    behaviors: Sequence[str] = BEHAVIORS
    hidden = Hidden()

    def __init__(self, window: WindowRule, forecasts: int = 1) -> None:
        self.window = window
        self._forecasts = cycle([full_forecast(seed) for seed in range(forecasts)])

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        """One forecast per window."""
        return list(islice(self._forecasts, len(windows)))

    def hide(self, hidden: Hidden) -> int:
        """Nothing is asked to be hidden from it."""
        return len(hidden.banned)


def full_forecast(seed: int = 0) -> Forecast:
    """Ten items and ten categories, and numbers as long as a model's: seven decimals, seconds with six."""
    random = Random(seed)
    items = [str(random.randrange(1_000_000, 6_000_000)) for _ in range(TOP_K)]
    categories = [str(random.randrange(100_000, 5_200_000)) for _ in range(TOP_K)]
    return Forecast(
        next_behaviors=_shares(random, len(BEHAVIORS)),
        next_items=[
            Item(item_id=item, probability=probability, behavior=BEHAVIORS[rank % 2])
            for rank, (item, probability) in enumerate(zip(items, _shares(random, TOP_K), strict=True))
        ],
        next_categories=[
            Category(category=category, probability=probability)
            for category, probability in zip(categories, _shares(random, TOP_K), strict=True)
        ],
        purchase_probability=round(random.random(), 7),
        time_to_next_s=(7.123456, 61.234567, 8123.345678),
        churn_probability=round(random.random(), 7),
        fallback=None,
    )


def _shares(random: Random, count: int) -> list[float]:
    """Probabilities that sum to 1, the largest first."""
    weights = sorted((random.random() for _ in range(count)), reverse=True)
    return [round(weight / sum(weights), 7) for weight in weights]
