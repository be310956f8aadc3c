import pytest
import torch

from model.snapshot import restore
from tests.model.test_learner import make_learner


@pytest.mark.parametrize("recipe", [{}, {"backbone": "bert", "crop": 0.5, "reorder": 0.5}])
def test_a_run_that_goes_on_from_any_checkpoint_gives_the_same_weights_to_the_bit(recipe):
    kept = []
    whole = make_learner(options={"keep": kept.append, "keep_every_s": 0}, epochs=3, positions=128, **recipe)
    torch.manual_seed(1)
    result = whole.run()
    steps = whole.clock.step
    assert len(kept) == steps + 3  # after each step and after each epoch
    for number in (0, 1, steps // 2, len(kept) - 2, len(kept) - 1):
        again = make_learner(epochs=3, positions=128, **recipe)
        torch.manual_seed(2)  # whatever was drawn since
        restore(again, kept[number])
        assert again.run() == result
        assert again.curve == whole.curve
        assert torch.equal(again.weights.log_variance, whole.weights.log_variance)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


def test_a_checkpoint_is_a_copy():
    kept = []
    make_learner(options={"keep": kept.append, "keep_every_s": 1e9}, epochs=2, positions=128).run()
    first, second = (checkpoint.tensors["model.item_bias"] for checkpoint in kept)
    assert not torch.equal(first, second)
