"""Devices: what is asked for, what is there, what is fastest."""

import pytest
import torch

from model import devices, precision
from model.artifact import ArtifactError
from model.devices import choose_device, fastest_dtype, has_failed, learns_in_bfloat16, scoring_precision
from model.precision import product_of_int8


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ArtifactError, match="device cuda was asked for, but this machine has no usable GPU"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("seconds", "compiled", "wanted"),
    [
        ({torch.float32: 9, torch.bfloat16: 8, torch.int8: 8}, True, "float32"),  # not clearly faster
        ({torch.float32: 9, torch.bfloat16: 3, torch.int8: 1}, False, "bfloat16"),  # int8 wants a compiler
        ({torch.float32: 9, torch.bfloat16: 3, torch.int8: 1}, True, "int8"),
        ({torch.float32: 9, torch.bfloat16: 3, torch.int8: 2.9}, True, "bfloat16"),
    ],
)
def test_a_lower_precision_has_to_be_clearly_faster(monkeypatch, seconds, compiled, wanted):
    monkeypatch.setattr(devices, "_seconds", lambda device, dtype: seconds[dtype])
    scoring_precision.cache_clear()
    assert scoring_precision("cpu", compiled) == wanted
    scoring_precision.cache_clear()


@pytest.mark.parametrize(("seconds", "wanted"), [((9, 8), torch.float32), ((9, 3), torch.bfloat16)])
def test_states_are_narrow_where_that_is_clearly_faster(monkeypatch, seconds, wanted):
    monkeypatch.setattr(
        devices,
        "_seconds",
        lambda device, dtype: dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))[dtype],
    )
    fastest_dtype.cache_clear()
    assert fastest_dtype("cpu") == wanted
    fastest_dtype.cache_clear()


def test_a_gpu_is_asked_whether_it_has_bfloat16_and_a_cpu_is_measured(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, has=has: has)
        assert learns_in_bfloat16("cuda:0") is has
    for fastest, wanted in ((torch.bfloat16, True), (torch.float32, False)):
        monkeypatch.setattr(devices, "fastest_dtype", lambda device, fastest=fastest: fastest)
        assert learns_in_bfloat16("cpu") is wanted


@pytest.mark.parametrize(
    ("vectors", "sums_of_four", "has_onednn", "wanted"),
    [
        ("AVX2", False, True, "qlinear"),
        ("AVX512", False, True, "qlinear"),
        ("AVX512", True, True, "int_mm"),
        ("AVX2", False, False, "int_mm"),
        ("DEFAULT", False, True, "int_mm"),
    ],
)
def test_int8_is_multiplied_as_the_processor_can(monkeypatch, vectors, sums_of_four, has_onednn, wanted):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: vectors)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: sums_of_four)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: has_onednn)
    assert product_of_int8.__wrapped__() == wanted


def test_a_product_that_loses_something_is_not_taken(monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    assert product_of_int8.__wrapped__() == "qlinear"
    exact = precision.by_qlinear
    for limit, wanted in (
        (2 * 63 * 127, "qlinear"),
        (2 * 63 * 127 - 1, "int_mm"),
    ):  # of sums of pairs, as 16 bits have one
        monkeypatch.setattr(precision, "by_qlinear", lambda *of, most=64 * limit: exact(*of).clamp(min=-most, max=most))
        assert product_of_int8.__wrapped__() == wanted


def test_it_is_measured():
    scoring_precision.cache_clear()
    assert scoring_precision("cpu", compiled=True) in ("float32", "bfloat16", "int8")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.AcceleratorError("an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_a_failed_device_is_told_from_what_it_was_given(error, wanted):
    assert has_failed(error) is wanted
