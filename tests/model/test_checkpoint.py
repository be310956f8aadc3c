import subprocess
import sys

import pytest
import torch

from model.checkpoint import Checkpoint, CheckpointError, Checkpoints


def made(value, **state):
    return Checkpoint(
        {"weights": torch.full((3, 2), float(value)), "bits": torch.tensor([value], dtype=torch.uint8)}, state
    )


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path / "deep" / "er", {"seed": 1, "window": {"events": 50}, "behaviors": ("a",)})
    assert checkpoints.newest() is None
    for value in range(4):
        checkpoints.save(made(value, random={"state": 2**100 + value}, loss=float("inf")))
    found = checkpoints.newest()
    assert found.state == {"random": {"state": 2**100 + 3}, "loss": float("inf")}
    assert torch.equal(found.tensors["weights"], torch.full((3, 2), 3.0))
    assert found.tensors["bits"].dtype == torch.uint8
    assert names(tmp_path / "deep" / "er") == ["000000003.safetensors", "000000004.safetensors"]


def test_another_training_is_refused_and_what_differs_is_named(tmp_path):
    Checkpoints(tmp_path, {"seed": 1, "log": "a", "vocabulary": "x"}).save(made(1))
    with pytest.raises(
        CheckpointError, match="is of another training \\(of another log, vocabulary\\); give"
    ) as caught:
        Checkpoints(tmp_path, {"seed": 1, "log": "b", "vocabulary": "y"}).newest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"x" * 100, lambda data: data[:20]]
)
def test_a_damaged_one_is_refused_and_the_one_before_is_left(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(made(1))
    checkpoints.save(made(2))
    newest = tmp_path / "000000002.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(CheckpointError, match="000000002.safetensors is damaged .*; delete it to go on"):
        checkpoints.newest()
    newest.unlink()
    assert checkpoints.newest().tensors["bits"].item() == 1


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes_in_the_end(tmp_path):
    (tmp_path / ".77.partial").write_bytes(b"half of one")
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.newest() is None
    checkpoints.save(made(1))
    (tmp_path / "letter").write_text("dear")
    checkpoints.clear()
    assert names(tmp_path) == ["letter"]
    (tmp_path / "letter").unlink()
    checkpoints.clear()
    assert not tmp_path.exists()


def test_a_place_that_is_taken(tmp_path):
    (tmp_path / "file").write_text("dear")
    for use in (Checkpoints(tmp_path / "file", {}).newest, lambda: Checkpoints(tmp_path / "file", {}).save(made(1))):
        with pytest.raises(CheckpointError, match="file"):
            use()


FULL = """
import resource, sys, torch
from pathlib import Path
from model.checkpoint import Checkpoint, CheckpointError, Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), {})
checkpoints.save(Checkpoint({"weights": torch.ones(10)}, {}))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    checkpoints.save(Checkpoint({"weights": torch.ones(10_000)}, {}))
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_the_older_one_stays(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write a checkpoint to {tmp_path}: File too large; the checkpoints before it")
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == ["000000001.safetensors"]
    assert torch.equal(Checkpoints(tmp_path, {}).newest().tensors["weights"], torch.ones(10))
