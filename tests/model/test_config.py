import pytest

from model.config import PRESETS, NextMoveConfig


def test_a_saved_config_is_the_same_again(tmp_path):
    config = NextMoveConfig(item_rows=77, width=32)
    config.save_pretrained(tmp_path)
    again = NextMoveConfig.from_pretrained(tmp_path)
    assert (again.item_rows, again.width, again.model_type) == (77, 32, "nextmove")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_heads_of_a_preset_divide_its_width(preset):
    config = NextMoveConfig(**PRESETS[preset])
    assert config.width % (2 * config.heads) == 0  # rotary positions need an even width per head
