"""A small real model for the path that needs one: trained once, kept below `var/`."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from benchmarks.notes import note
from benchmarks.stream.programs import ROOT
from model import artifact
from model.artifact import ArtifactError

CACHE = ROOT / "var" / "benchmarks"
NEXTMOVE = (sys.executable, "-m", "stream_app.cli")


def trained_model(log: Path | None, seconds: float) -> Path:
    """The directory of a model of `log`, or of a simulated shop; trained for at most `seconds` if it is not there, or unreadable."""
    name = log.name if log else "simulated"
    model = CACHE / f"model-{sha256(f'{name} {seconds:g}'.encode()).hexdigest()[:12]}"
    if is_readable(model):
        return model
    CACHE.mkdir(parents=True, exist_ok=True)
    if log is None:
        log = CACHE / "shop.jsonl"
        _nextmove("simulate", "--out", str(log))
    note(f"Training a model of {name} for {seconds:.0f} s …")
    _nextmove("train", str(log), "--out", str(model), "--time-budget", str(seconds), "--quiet")
    return model


def is_readable(model: Path) -> bool:
    """Whether a model is there that this program reads; one that an older program left may be another's."""
    try:
        artifact.read_manifest(model)
    except ArtifactError:
        return False
    return True


def _nextmove(*arguments: str) -> None:
    subprocess.run([*NEXTMOVE, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
