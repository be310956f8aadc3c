"""What a device is and does best: chosen by asking and by measuring, never by its name."""

from __future__ import annotations

import time
from functools import cache

import torch

from model.artifact import ArtifactError
from model.precision import Precision, lay_out, prepare
from model.stages import multiplied

WIDTH, RUNS = 128, 20
SHAPES = {
    "cpu": (64, 16_384),
    "cuda": (256, 1 << 18),
}  # queries and vectors: a GPU is told from its calls by large ones only
FAILURES = (
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "HIP error",
)  # of a RuntimeError's words
PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}
WORTH = 1.3  # times as fast: a lower precision has to be


def choose_device(device: str) -> str:
    """For "auto" the GPU where there is one; raises ArtifactError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ArtifactError("device cuda was asked for, but this machine has no usable GPU")
    return device


def has_failed(error: Exception) -> bool:
    """Whether it is the device that an error is about, not what the device was given; short of memory is something else."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    words = str(error)
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(sign in words for sign in FAILURES)
    )


@cache
def scoring_precision(device: str, compiled: bool) -> Precision:
    """In which precision a long catalogue is gone through: a lower one where the device multiplies it clearly faster.

    int8 pays only where what follows its product is compiled.
    """
    found: Precision = "float32"
    best = _seconds(device, torch.float32)
    for dtype in (torch.bfloat16, torch.int8):
        if dtype == torch.int8 and not (compiled and device == "cpu"):
            continue
        seconds = _seconds(device, dtype)
        if best > WORTH * seconds:
            found, best = PRECISIONS[dtype], seconds
    return found


@cache
def fastest_dtype(device: str) -> torch.dtype:
    """The type in which a network is computed fastest: bfloat16 where the device multiplies it clearly faster."""
    faster = _seconds(device, torch.float32) > WORTH * _seconds(device, torch.bfloat16)
    return torch.bfloat16 if faster else torch.float32


def learns_in_bfloat16(device: str) -> bool:
    """Whether training should: on a GPU that has it, and on a CPU that multiplies it clearly faster."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return fastest_dtype(device) == torch.bfloat16


def _seconds(device: str, dtype: torch.dtype) -> float:
    """The fastest of a few products of the shape that scoring has."""
    queries, rows = SHAPES[torch.device(device).type]
    vectors, bias, asking = (torch.ones(shape, device=device) for shape in ((rows, WIDTH), (rows,), (queries, WIDTH)))
    table = prepare(vectors, bias, PRECISIONS[dtype])
    asked, _ = lay_out(asking, table)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        multiplied(table, asked, queries)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - begun)
    return min(times)
