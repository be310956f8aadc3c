"""OpenVINO on the exported graph, in float32, in bfloat16, or with ONNX Runtime's 8-bit graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import openvino

from benchmarks.engine.paths.exported import exported
from benchmarks.engine.paths.sessions import Matrix, Session, Sessions
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import Ints


def build(setting: Setting, **options: Any) -> Sessions:
    """Options: `precision`, "f32", "bf16" or "int8"."""
    place, precision = exported(setting), options["precision"]
    if precision == "int8":
        from benchmarks.engine.paths.onnx_runtime import quantised

        place, precision = quantised(place), "bf16"
    return Sessions(setting, partial(_session, place, precision))


def _session(place: Path, precision: str, threads: int) -> Session:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(place),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()

    def run(rows: Ints, last: Ints) -> tuple[Matrix, Matrix]:
        request.infer({"rows": rows, "last": last}, share_inputs=True)
        return request.get_output_tensor(0).data, request.get_output_tensor(1).data

    return run
