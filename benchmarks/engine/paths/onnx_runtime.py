"""ONNX Runtime on the exported graph: as it is, or with 8-bit weights and dynamic quantisation of activations."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks.engine.paths.exported import exported
from benchmarks.engine.paths.sessions import Matrix, Session, Sessions
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import Ints


def build(setting: Setting, **options: Any) -> Sessions:
    """Options: `precision`, "float32" or "int8"."""
    place = exported(setting)
    return Sessions(setting, partial(_session, quantised(place) if options["precision"] == "int8" else place))


def _session(place: Path, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    inner = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])

    def run(rows: Ints, last: Ints) -> tuple[Matrix, Matrix]:
        values, best = inner.run(None, {"rows": rows, "last": last})
        return values, best

    return run


def quantised(place: Path) -> Path:
    """The int8 graph beside the float32 one: symmetric weights by output channel, activations when they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    small = place.with_suffix(".int8.onnx")
    if not small.exists():
        with tempfile.TemporaryDirectory(dir=place.parent) as beside:
            inferred, written = Path(beside) / "inferred.onnx", Path(beside) / small.name
            quant_pre_process(str(place), str(inferred), skip_symbolic_shape=True)
            quantize_dynamic(inferred, written, per_channel=True, weight_type=QuantType.QInt8)
            written.replace(small)
    return small
