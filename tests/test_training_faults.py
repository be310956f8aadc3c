"""`nextmove train` under faults: killed, on a full disk, in several processes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

from model.artifact import read_manifest
from stream_app.cli import app
from tests.processes import Program

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "shop.jsonl"
    run("simulate", "--out", str(path), "--users", "30", "--items", "100", "--days", "3")
    return path


@pytest.fixture(scope="module")
def version(log: Path) -> str:
    """Of a training that nothing interrupted."""
    run("train", str(log), "--out", str(log.parent / "whole"), "-q")
    return read_manifest(log.parent / "whole").version


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done


def training(log: Path, place: Path) -> list[str]:
    return ["train", str(log), "--out", str(place / "model"), "--checkpoint", str(place / "kept"), "-q"]


def kill_when(arguments: list[str], due: Callable[[], bool]) -> None:
    """Starts the command line, and ends it with SIGKILL as soon as something is the case."""
    with Program(*arguments, "--checkpoint-every", "0") as program:
        deadline = time.monotonic() + LIMIT_S
        while not due():
            assert program.running
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert program.wait() == -signal.SIGKILL  # nothing is said, nothing is tidied up


def kept(place: Path) -> list[Path]:
    return sorted((place / "kept").glob("*.safetensors"))


def phase(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads(file.metadata()["state"])["phase"])
    except (OSError, RuntimeError):  # two newer ones are there already
        return ""


@pytest.fixture(scope="module")
def started(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where a training was killed before its first epoch was over or soon after."""
    place = tmp_path_factory.mktemp("started")
    kill_when(training(log, place), lambda: len(kept(place)) > 1 and kept(place)[-1].stem >= "000000003")
    return place


def test_a_training_killed_twice_gives_the_model_of_one_that_was_not(
    log: Path, version: str, started: Path, tmp_path: Path
) -> None:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    arguments = training(log, tmp_path)
    assert phase(kept(tmp_path)[-1]) == "train"
    begun = int(kept(tmp_path)[-1].stem)
    kill_when(arguments, lambda: any(phase(path) == "refit" for path in kept(tmp_path)))
    assert int(kept(tmp_path)[-1].stem) > begun
    assert not (tmp_path / "model").exists()
    run(*arguments)
    assert read_manifest(tmp_path / "model").version == version
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_another_training_is_one_line(log: Path, started: Path, tmp_path: Path) -> None:
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    arguments = training(log, tmp_path)
    for changed, what in (("--seed=1", "another seed)"), ("--split=0.5", "another log, vocabulary)")):
        done = CliRunner().invoke(app, [*arguments, changed])
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()[1:]  # behind what was read
        assert line.startswith(f"nextmove: {tmp_path}/kept/0")
        assert what in line
        assert "or another directory for checkpoints" in line


def on_a_full_disk(arguments: list[str]) -> str:
    """The one line of a command that can write no file longer than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        done = CliRunner().invoke(app, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.exit_code == 2, done.output
    return done.stderr.strip().splitlines()[-1]


def test_a_disk_that_is_full_when_the_model_is_published(log: Path, version: str, tmp_path: Path) -> None:
    arguments = training(log, tmp_path)
    line = on_a_full_disk(["train", str(log), "--out", str(tmp_path / "model"), "-q"])
    assert line.startswith(f"nextmove: cannot write {tmp_path}/model: ")
    assert list(tmp_path.iterdir()) == []
    run(*arguments)
    on_a_full_disk(["train", str(log), "--out", str(tmp_path / "model"), "-q", "--time-budget", "1"])
    assert read_manifest(tmp_path / "model").version == version


def test_a_disk_that_is_full_when_a_checkpoint_is_written(
    log: Path, version: str, started: Path, tmp_path: Path
) -> None:
    arguments = training(log, tmp_path)
    assert "cannot write a checkpoint" in on_a_full_disk(arguments)
    assert list((tmp_path / "kept").iterdir()) == []
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    before = kept(tmp_path)
    assert "the same command again" in on_a_full_disk(arguments)
    assert kept(tmp_path) == before
    run(*arguments)
    assert read_manifest(tmp_path / "model").version == version


def test_torchrun_trains_one_model(log: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "stream_app.cli", *training(log, tmp_path), "--time-budget", "4"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert f"model {read_manifest(tmp_path / 'model').version}, " in done.stdout
    assert done.stderr.count("cleaning: ") == 1
