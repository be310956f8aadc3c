from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from stream_app.behaviors import load
from stream_app.event_logs import read_log, to_records, write_jsonl
from stream_app.simulation import ShopConfig, simulate

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture(scope="module")
def shop() -> pl.DataFrame:
    return simulate()


def of(frame: pl.DataFrame, behavior: str) -> pl.DataFrame:
    return frame.filter(pl.col("behavior") == behavior)


def day() -> pl.Expr:
    return (pl.col("timestamp") - ShopConfig().start_ms) // DAY_MS


def test_it_is_a_table_of_events(shop: pl.DataFrame) -> None:
    assert shop.schema == {
        "user_id": pl.String(),
        "timestamp": pl.Int64(),
        "behavior": pl.String(),
        "item_id": pl.String(),
        "category": pl.String(),
        "price": pl.Float64(),
    }
    assert shop["timestamp"].is_sorted()
    assert ShopConfig().start_ms <= shop["timestamp"][0]
    assert shop["timestamp"][-1] < ShopConfig().start_ms + 7 * DAY_MS
    assert 20_000 < shop.height < 32_000
    assert shop.select("user_id", "timestamp", "behavior").null_count().sum_horizontal().item() == 0


def test_every_event_fits_the_contract_and_goes_through_a_file(shop: pl.DataFrame, tmp_path: Path) -> None:
    about_item = pl.col("behavior").is_in(sorted(load().about_item))
    assert shop.select((about_item == pl.col("item_id").is_not_null()).all()).item()
    write_jsonl(shop, tmp_path / "shop.jsonl.gz")
    assert read_log(tmp_path / "shop.jsonl.gz").frame.equals(shop)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_shop() -> None:
    small = ShopConfig(users=50, items=200, categories=5, days=2)
    assert list(to_records(simulate(small))) == list(to_records(simulate(small)))
    other = ShopConfig(users=50, items=200, categories=5, days=2, seed=2)
    assert not simulate(small).equals(simulate(other))


def test_the_start_only_shifts_the_times() -> None:
    monday = ShopConfig(users=50, days=2)
    later = ShopConfig(users=50, days=2, start_ms=monday.start_ms + DAY_MS)
    assert simulate(later).equals(simulate(monday).with_columns(pl.col("timestamp") + DAY_MS))


def test_an_item_has_one_category_and_one_price(shop: pl.DataFrame) -> None:
    items = shop.drop_nulls("item_id").select("item_id", "category", "price").unique()
    assert items["item_id"].is_unique().all()
    assert items["price"].min() > 0  # type: ignore[operator]
    assert items["category"].n_unique() == 60


def test_the_funnel_narrows(shop: pl.DataFrame) -> None:
    count = dict(shop["behavior"].value_counts().iter_rows())
    assert count["view"] > 5 * count["add_to_cart"] > 5 * count["purchase"] > 0
    assert count["search"] > 0
    assert count["favorite"] > 0


def test_most_purchases_follow_a_cart_of_the_same_item(shop: pl.DataFrame) -> None:
    carts = of(shop, "add_to_cart").select("user_id", "item_id", cart="timestamp")
    bought = of(shop, "purchase").join(carts, on=["user_id", "item_id"], how="left")
    wait = bought["timestamp"] - bought["cart"]
    assert (wait > 0).sum() > 0.8 * bought.height
    assert (wait > 2 * HOUR_MS).sum() > 0.05 * bought.height  # back in a later session


def test_categories_convert_at_rates_of_their_own(shop: pl.DataFrame) -> None:
    carts = (pl.col("behavior") == "add_to_cart").sum() / (pl.col("behavior") == "view").sum()
    rate = (
        shop.drop_nulls("category").group_by("category").agg(carts.alias("rate"), pl.len()).filter(pl.col("len") > 500)
    )
    low, high = rate.select(pl.quantile("rate", 0.1).alias("low"), pl.quantile("rate", 0.9).alias("high")).row(0)
    assert high > 1.5 * low


def test_users_come_back_to_items(shop: pl.DataFrame) -> None:
    views = of(shop, "view")
    first = views.select(pl.struct("user_id", "item_id").is_first_distinct().mean()).item()
    assert 0.25 < 1 - first < 0.55


def test_users_have_tastes(shop: pl.DataFrame) -> None:
    top = pl.col("category").value_counts(sort=True).struct.field("count").first() / pl.len()
    users = of(shop, "view").group_by("user_id").agg(top.alias("share"), pl.len()).filter(pl.col("len") > 30)
    overall = of(shop, "view")["category"].value_counts(sort=True, normalize=True)["proportion"][0]
    assert users.select(pl.mean("share")).item() > 3 * overall


def test_popularity_has_a_head_and_a_long_tail(shop: pl.DataFrame) -> None:
    count = of(shop, "view")["item_id"].value_counts(sort=True)["count"]
    assert int(count.head(len(count) // 10).sum()) > 0.35 * int(count.sum())
    assert (count <= 3).sum() > 0.25 * len(count)


def test_popularity_drifts_from_day_to_day(shop: pl.DataFrame) -> None:
    def top(number: int) -> set[str]:
        items = of(shop, "view").filter(day() == number)["item_id"]
        return set(items.value_counts(sort=True)["item_id"].head(100))

    assert len(top(0) & top(6)) < 0.75 * len(top(0) & top(1))


def test_traffic_is_even_over_the_days_and_uneven_over_the_hours(shop: pl.DataFrame) -> None:
    days = shop.group_by(day()).len()["len"]
    hours = shop.group_by(pl.col("timestamp") // HOUR_MS % 24).len()["len"]
    assert days.max() < 1.5 * days.min()  # type: ignore[operator]
    assert hours.max() > 4 * hours.min()  # type: ignore[operator]


def test_events_come_in_sessions_with_heavy_tailed_gaps(shop: pl.DataFrame) -> None:
    gaps = shop.select(gap=pl.col("timestamp").diff().over("user_id"))["gap"].drop_nulls()
    assert gaps.median() < 120_000  # type: ignore[operator]
    between = gaps.filter(gaps > HOUR_MS / 2)
    assert 0.1 < len(between) / len(gaps) < 0.35
    assert between.quantile(0.99) > 5 * between.median()  # type: ignore[operator]


@pytest.mark.parametrize("change", [{"users": 0}, {"categories": 0}, {"days": 0}, {"items": 59}])
def test_a_shop_that_cannot_be(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a shop needs at least|cannot fill 60 categories"):
        ShopConfig(**change)


def test_the_smallest_shop_may_be_empty_but_is_a_table() -> None:
    frame = simulate(ShopConfig(users=1, items=1, categories=1, days=1))
    assert frame.columns == simulate(ShopConfig(users=9, days=1)).columns


def test_a_hundred_thousand_events_take_less_than_three_seconds() -> None:
    start = time.perf_counter()
    frame = simulate(ShopConfig(users=2_400))
    assert frame.height > 90_000
    assert time.perf_counter() - start < 3
