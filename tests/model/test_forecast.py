import pytest
from msgspec.structs import replace

from model.forecast import Forecast, Item, difference


def items(*rows: tuple[str, float, str | None]) -> list[Item]:
    return [Item(item_id=item, probability=probability, behavior=behavior) for item, probability, behavior in rows]


BASE = Forecast(
    next_behaviors=[0.75, 0.25],
    next_items=items(("a", 0.5, "view"), ("b", 0.25, None)),
    next_categories=[{"category": "x", "probability": 0.5}],
    purchase_probability=0.125,
    time_to_next_s=(1.0, 3.0, 7.0),
    churn_probability=0.5,
    fallback=None,
)


def test_equal_answers_do_not_differ():
    assert difference(BASE, BASE) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"next_behaviors": [0.5, 0.5]}, 0.25),
        ({"purchase_probability": 0.25}, 0.125),
        ({"churn_probability": 0.0}, 0.5),
        ({"next_items": items(("b", 0.5, None), ("a", 0.25, None))}, 0.25),
        ({"next_items": items(("a", 0.5, "view"), ("b", 0.125, None))}, 0.125),
        ({"next_items": []}, 1.0),
        ({"next_categories": [{"category": "x", "probability": 0.75}]}, 0.25),
        ({"time_to_next_s": (1.0, 3.0, 15.0)}, 8 / (1 + 15)),
    ],
)
def test_the_largest_difference_counts(change, expected):
    assert difference(BASE, replace(BASE, **change)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"next_items": items(("a", 0.625, "view"), ("b", 0.25, None))}, 0.125 - 0.125 * 0.625),
        ({"next_items": items(("a", 0.5, "view"), ("b", 0.21875, None))}, 0),  # exactly what is spared
        ({"next_categories": [{"category": "x", "probability": 0.75}]}, 0.25 - 0.125 * 0.75),
        ({"purchase_probability": 0.25}, 0.125),
        ({"next_items": []}, 1.0),
    ],
)
def test_of_what_is_listed_a_share_may_be_spared(change, expected):
    assert difference(BASE, replace(BASE, **change), spared=0.125) == pytest.approx(expected)


def test_equal_probabilities_may_change_places():
    one = replace(BASE, next_items=items(("a", 0.25, None), ("b", 0.25, None)))
    other = replace(BASE, next_items=items(("b", 0.25, None), ("a", 0.25, None)))
    assert difference(one, other) == 0
