"""What the suite prepares; the measuring itself takes minutes."""

import os
from pathlib import Path

from benchmarks.engine.plan import QUICK
from benchmarks.stream.loads import BEHAVIORS, category_id, item_id
from benchmarks.stream.suites.engine import CACHE, NETWORKS, compile_cache, published
from model.engine import Engine


def test_the_models_know_what_the_load_is_about() -> None:
    with published(QUICK) as models:
        assert models.keys() == NETWORKS.keys()
        for name, place in models.items():
            engine = Engine.load(place, device="cpu")
            assert engine.behaviors == BEHAVIORS
            assert engine.window.stride == QUICK.stride > 1, "or no states are kept"
            assert set(engine.vocabulary.items.names) == {item_id(number) for number in range(QUICK.items)}
            assert category_id(0) in engine.vocabulary.categories.names
            assert engine._model.config.copy == NETWORKS[name]


def test_the_compile_cache_is_gone_afterwards(monkeypatch) -> None:
    monkeypatch.setenv(CACHE, "elsewhere")
    with compile_cache():
        inside = Path(os.environ[CACHE])
        assert inside.is_dir()
    assert os.environ[CACHE] == "elsewhere"
    assert not inside.exists()
    monkeypatch.delenv(CACHE)
    with compile_cache():
        pass
    assert CACHE not in os.environ
