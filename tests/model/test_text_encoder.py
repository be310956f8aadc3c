import json

import numpy as np
import pytest
import torch

from model import text_encoder
from model.text_encoder import TextError, averaged, default_encoder, encode
from tests.texts import WIDTH
from tests.texts import text_encoder as made


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("texts") / "encoder")


def test_a_text_has_one_vector_of_length_1_whatever_stands_beside_it(encoder):
    texts = ["red shoe", "blue lamp left right", "red shoe", "", "unheard of " * 50]
    done = []
    found = encode(texts, encoder, done.append)
    assert found.shape == (5, WIDTH)
    assert done[-1] == 5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encode(["red shoe"], encoder)[0], found[0], atol=1e-6)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_the_mean_is_over_tokens_alone():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    expected = torch.tensor([[3 / 2, 4 / 2]]) / (1.5**2 + 2**2) ** 0.5
    torch.testing.assert_close(averaged(states, torch.tensor([[1, 1, 0]])), expected)


def test_what_is_no_encoder_is_one_line(encoder, tmp_path, monkeypatch):
    with pytest.raises(TextError, match="is no text encoder: it has no config.json"):
        encode(["red"], tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TextError, match="the text encoder cannot be read") as caught:
        encode(["red"], tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(TextError, match="does not average its tokens"):
        encode(["red"], tmp_path)
    monkeypatch.setattr(text_encoder, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(TextError, match=r"pip install 'nextmove\[text\]', or give --text-encoder DIR"):
        default_encoder()


def test_the_installed_encoder_is_found_without_loading_it(monkeypatch):
    monkeypatch.setattr(text_encoder, "PACKAGE", "tests")
    assert default_encoder().name == "model"
