import pytest

from model.config import PRESETS, NextMoveConfig, rows_of
from model.vocabulary import FIRST_BUCKET, build


def test_a_saved_config_is_the_same_again(tmp_path):
    config = NextMoveConfig(item_rows=77, width=32)
    config.save_pretrained(tmp_path)
    again = NextMoveConfig.from_pretrained(tmp_path)
    assert (again.item_rows, again.width, again.model_type) == (77, 32, "nextmove")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_heads_of_a_preset_divide_its_width(preset):
    config = NextMoveConfig(**PRESETS[preset])
    assert config.width % (2 * config.heads) == 0  # rotary positions need an even width per head


def test_rows_are_those_of_the_names_behind_the_shared_ones():
    names = build({"a": 2, "b": 1}, {"x": 1}, {}, ("view", "buy"), "buy", item_buckets=5, category_buckets=4)
    config = NextMoveConfig(**rows_of(names))
    first = FIRST_BUCKET + 5, FIRST_BUCKET + 4, FIRST_BUCKET + 1
    assert (config.item_first, config.category_first, config.behavior_first) == first
    rows = first[0] + 2, first[1] + 1, first[2] + 2
    assert (config.item_rows, config.category_rows, config.behavior_rows) == rows
