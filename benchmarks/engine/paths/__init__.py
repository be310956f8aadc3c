"""The paths that are compared, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.engine.paths import incremental
from benchmarks.engine.paths.contract import Missing, Path
from benchmarks.engine.setting import Setting

REFERENCE = "hugging_face"
SIZES = (1, 8, 64, 128, 256, 512, 1_024)  # polls of the incremental path


@dataclass(frozen=True)
class Entry:
    """One way to answer events."""

    name: str
    description: str
    module: str  # its `build` makes the path
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    network: str = "gpt2"  # paths of one network have the same weights

    @property
    def is_incremental(self) -> bool:
        """Whether it keeps something about users."""
        return self.module == "incremental"

    def missing(self, device: str) -> str | None:
        """Why it cannot run here; None if it can."""
        if device not in self.devices:
            return f"it does not run on {device}"
        absent = [package for package in self.packages if find_spec(package) is None]
        return f"`make benchmark-setup` installs {', '.join(absent)}" if absent else None

    def build(self, setting: Setting) -> Path:
        """The path, ready to answer; raises Missing."""
        if reason := self.missing(setting.device):
            raise Missing(reason)
        if self.is_incremental:
            from benchmarks.engine.paths.nextmove import NextMove

            return NextMove(incremental.build(setting, **self.options), {"poll": SIZES})
        made: Path = import_module(f"{__name__}.{self.module}").build(setting, **self.options)
        return made


EXPORT = ("onnx", "onnxscript")
PATHS: Sequence[Entry] = (
    Entry(
        REFERENCE,
        "transformers' GPT-2, eager PyTorch, float32; each window in full",
        "hugging_face",
        {"dtype": "float32"},
        devices=("cpu", "cuda"),
    ),
    Entry(
        "hugging_face_bf16",
        "the same in bfloat16",
        "hugging_face",
        {"dtype": "bfloat16"},
        devices=("cpu", "cuda"),
    ),
    Entry(
        "onnxruntime",
        "the same GPT-2 as an ONNX graph in ONNX Runtime, float32",
        "onnx_runtime",
        {"precision": "float32"},
        (*EXPORT, "onnxruntime"),
    ),
    Entry(
        "onnxruntime_int8",
        "the same, dynamically quantised to int8",
        "onnx_runtime",
        {"precision": "int8"},
        (*EXPORT, "onnxruntime"),
    ),
    Entry("openvino", "the same graph in OpenVINO, float32", "open_vino", {"precision": "f32"}, (*EXPORT, "openvino")),
    Entry("openvino_bf16", "the same in bfloat16", "open_vino", {"precision": "bf16"}, (*EXPORT, "openvino")),
    Entry(
        "openvino_int8",
        "ONNX Runtime's int8 graph in OpenVINO, the rest in bfloat16",
        "open_vino",
        {"precision": "int8"},
        (*EXPORT, "onnxruntime", "openvino"),
    ),
    Entry(
        "nextmove_copy",
        "NextMove's engine, each window in full, all heads, with the copy path",
        "nextmove",
        {"copy": True},
        devices=("cpu", "cuda"),
        network="nextmove_copy",
    ),
    Entry(
        "nextmove",
        "the same without the copy path: a plain Transformer",
        "nextmove",
        {"copy": False},
        devices=("cpu", "cuda"),
        network="nextmove",
    ),
    Entry(
        "nextmove_incremental",
        "the same engine with states that it keeps: one step per event",
        "incremental",
        {"copy": False},
        devices=("cpu", "cuda"),
        network="nextmove",
    ),
    Entry(
        "nextmove_incremental_bf16",
        "the same with states and steps in bfloat16",
        "incremental",
        {"copy": False, "dtype": "bfloat16"},
        devices=("cpu", "cuda"),
        network="nextmove",
    ),
    Entry(
        "nextmove_incremental_copy",
        "states that are kept, with the copy path",
        "incremental",
        {"copy": True},
        devices=("cpu", "cuda"),
        network="nextmove_copy",
    ),
)


def path_named(name: str) -> Entry:
    """The path of that name."""
    return next(path for path in PATHS if path.name == name)
