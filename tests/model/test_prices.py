import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import artifact
from model.engine import Engine
from model.prices import BUCKETS, UNKNOWN, buckets, edges, item_prices
from model.sequences import sequences
from model.training import train
from tests.model.conftest import BEHAVIORS, make_log


def test_an_items_price_is_the_median_of_its_events_and_otherwise_what_is_told():
    rows = np.array([3, 3, 3, 4, 5, 2, 1])
    prices = np.array([1.0, 9.0, 2.0, np.nan, 0.0, 7.0, 7.0])
    found = item_prices(rows, prices, ["a", "b", "c", "d"], 3, {"a": 50.0, "b": 4.0, "d": -1.0})
    np.testing.assert_array_equal(found, [2.0, 4.0, np.nan, np.nan])


def test_edges_are_log_spaced_between_the_outer_quantiles():
    at = edges(np.array([*np.geomspace(1, 10_000, 101), np.nan]))
    ratios = at[1:] / at[:-1]
    assert len(at) == BUCKETS - 1
    np.testing.assert_allclose(ratios, ratios[0])
    assert at[0] == pytest.approx(10_000**0.01)
    assert len(edges(np.array([5.0, 5.0, np.nan]))) == len(edges(np.array([np.nan]))) == 0


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=30, unique=True))
def test_dearer_is_never_in_a_lower_bucket(prices):
    known = np.sort(prices)
    found = buckets(np.append(known, np.nan), edges(known))
    assert found[-1] == UNKNOWN
    assert (np.diff(found[:-1]) >= 0).all()
    assert ((found[:-1] >= 1) & (found[:-1] <= BUCKETS)).all()


@pytest.fixture(scope="module")
def priced(tmp_path_factory):
    """A model of a log where an item's number is its price, but for those of item-0."""
    frame = make_log(users=10, events=20)
    price = pl.col("item_id").str.strip_prefix("item-").cast(pl.Float64)
    place = tmp_path_factory.mktemp("priced") / "model"
    train(frame.with_columns(price=price), BEHAVIORS, "purchase", place, epochs=1, device="cpu", prices=True)
    return artifact.load(place)


def test_the_network_knows_each_items_bucket_and_serves_with_it(priced):
    model, items = priced.model, priced.vocabulary.items
    found = model.item_buckets[items.first :]
    prices = torch.tensor([float(name.removeprefix("item-")) for name in items.names])
    order = prices.argsort()
    assert (found[order].diff() >= 0).all()
    rows = torch.tensor([0, 1, 2, items.first, items.rows - 1])
    torch.testing.assert_close(
        model.of_items(rows), model.item(rows) + model.price(model.item_buckets[rows]), atol=0, rtol=0
    )
    Engine(priced, device="cpu").check_golden()


def test_a_log_without_a_price_has_no_column_of_them(log):
    assert sequences(log).prices is None
    assert sequences(log.with_columns(price=pl.lit(None, pl.Float64))).prices is None


def test_prices_are_part_of_what_a_log_is():
    frame = make_log(users=3, events=5).with_columns(price=pl.lit(2.0))
    other = frame.with_columns(price=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("price"))
    data = sequences(other)
    assert np.isnan(data.prices[data.order == 3]).all()
    assert sequences(frame).fingerprint() != data.fingerprint()
