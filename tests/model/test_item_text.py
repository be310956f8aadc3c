import numpy as np
import pytest

from model.item_text import ItemText, centred, encoded
from tests.texts import WIDTH, text_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text_encoder(tmp_path_factory.mktemp("texts") / "encoder")


def test_equal_texts_are_encoded_once(encoder):
    done = []
    found = encoded(
        {"a": "red shoe", "b": "lamp", "c": "red shoe"}, encoder, report=lambda n, total: done.append((n, total))
    )
    assert found.vectors.shape == (2, WIDTH)
    assert found.items["a"] == found.items["c"] != found.items["b"]
    assert done == [(2, 2)]
    assert found.encoder.endswith("/encoder")


def test_centred_vectors_have_length_1_and_no_common_part():
    vectors = np.array([[1, 0.1], [1, -0.1]], np.float32)
    np.testing.assert_allclose(centred(vectors), [[0, 1], [0, -1]], atol=1e-6)
    np.testing.assert_array_equal(centred(vectors[:1]), vectors[:1])


def test_a_fingerprint_tells_what_differs():
    vectors = np.eye(2, dtype=np.float32)
    first = ItemText("e", vectors, {"a": 0, "b": 1})
    others = (
        ItemText("e", vectors, {"a": 1, "b": 0}),
        ItemText("e", 2 * vectors, {"a": 0, "b": 1}),
        ItemText("e", vectors, {"a": 0, "b": 1}, catalogue=True),
        ItemText("e", vectors, {"a": 0, "b": 1}, categories={"a": "x"}),
    )
    assert ItemText("e", vectors, {"b": 1, "a": 0}).fingerprint() == first.fingerprint()
    assert len({first.fingerprint(), *(one.fingerprint() for one in others)}) == 5
