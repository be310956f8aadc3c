from model.artifact import read_manifest
from model.callbacks import Callback, Callbacks
from model.training import train
from tests.model.conftest import BEHAVIORS, make_log


class Everything(Callback):
    def __init__(self, heard):
        self.heard = heard

    def on_begin(self, options):
        self.heard.append(("begin", options))

    def on_step(self, progress):
        self.heard.append((progress.phase, progress))

    def on_epoch(self, epoch):
        self.heard.append(("epoch", epoch))

    def on_end(self, manifest):
        self.heard.append(("end", manifest))


def test_a_training_tells_its_options_each_step_each_epoch_and_the_model(tmp_path):
    heard = []
    train(
        make_log(users=6, events=15), BEHAVIORS, "purchase", tmp_path / "m",
        epochs=2, device="cpu", seed=4, callbacks=[Everything(heard)],
    )  # fmt: skip
    names = [name for name, _ in heard]
    assert list(dict.fromkeys(names)) == [
        "prepare",
        "begin",
        "train",
        "validate",
        "epoch",
        "refit",
        "save",
        "end",
    ]
    assert dict(heard)["begin"]["seed"] == 4
    manifest = read_manifest(tmp_path / "m")
    assert [one for name, one in heard if name == "epoch"] == manifest.curve
    assert dict(heard)["end"] == manifest
    batches = [one.batches for name, one in heard if name == "train"]
    assert batches == list(range(1, len(batches) + 1))


def test_several_are_told_in_order_and_one_may_be_deaf():
    heard = []
    both = Callbacks([Everything(heard), Callback(), Everything(heard)])
    both.on_begin({"seed": 1})
    assert heard == [("begin", {"seed": 1})] * 2
