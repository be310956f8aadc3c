"""The peers' network as an ONNX file, written once per setting below `var/`."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.engine.paths import gpt2
from benchmarks.engine.setting import Setting
from benchmarks.machine import ROOT

FOLDER = ROOT / "var" / "benchmarks" / "engine"


def exported(setting: Setting) -> Path:
    """The float32 graph: encoder, scoring, normalisation and top-k."""
    name = f"gpt2-{setting.network}-torch{version('torch')}-transformers{version('transformers')}.onnx"
    place = FOLDER / name
    if not place.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as beside:
            written = Path(beside) / name
            _export(setting, written)
            written.replace(place)
    return place


def _export(setting: Setting, place: Path) -> None:
    network = gpt2.build(setting)
    rows = torch.ones((2, setting.window - 1), dtype=torch.int64)
    last = torch.tensor([3, 5])
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=1, max=setting.window)
    with torch.inference_mode():
        torch.onnx.export(
            network,
            (rows, last),
            place,
            input_names=["rows", "last"],
            output_names=["probabilities", "best"],
            dynamic_shapes=({0: batch, 1: length}, {0: batch}),
            dynamo=True,
            external_data=False,
        )
