"""A small log with something to learn, and one model trained on it."""

import numpy as np
import polars as pl
import pytest

from model.engine import Engine
from model.training import train

BEHAVIORS = ("view", "add_to_cart", "purchase")
HOUR_MS = 3_600_000


def make_log(users=40, events=50, items=60, seed=0):
    """Users go round their own three items, and buy what they put into the cart."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        time = int(random.integers(0, HOUR_MS))
        own = random.choice(items, 3, replace=False)
        for step in range(events):
            time += int(random.integers(1, 2 * HOUR_MS))
            item = own[step % 3] if random.random() < 0.8 else int(random.integers(items))
            behavior = BEHAVIORS[step % 10 - 7] if step % 10 >= 8 else "view"
            rows.append((f"user-{user}", time, behavior, f"item-{item}", f"category-{item % 7}"))
    schema = ["user_id", "timestamp", "behavior", "item_id", "category"]
    return pl.DataFrame(rows, schema=schema, orient="row").sort("timestamp", maintain_order=True)


@pytest.fixture(scope="session")
def log():
    return make_log()


@pytest.fixture(scope="session")
def model_directory(log, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "model"
    train(log, BEHAVIORS, "purchase", directory, epochs=2, device="cpu")
    return directory


@pytest.fixture(scope="session")
def engine(model_directory):
    return Engine.load(model_directory, device="cpu")
