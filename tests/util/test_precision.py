"""Devices without bfloat16 compute in the precision that is best there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from halka.estimating.hardware import hardware_of
from halka.models import loading
from halka.util.machine import CPU
from halka.util.precision import lacks_bfloat16, slow_in_bfloat16


@pytest.mark.parametrize(("capability", "lacks"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_before_ampere_computes_in_float16(monkeypatch, capability, lacks):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert lacks_bfloat16(torch.device("cuda:0")) == lacks
    stored = AutoConfig.for_model("llama", dtype="bfloat16")
    expected = torch.float16 if lacks else torch.bfloat16
    assert loading.precision_on(torch.device("cuda:0"), "bfloat16", stored) == expected
    assert loading.precision_on(torch.device("cuda:0"), "auto", stored) == (torch.float16 if lacks else "auto")
    assert loading.precision_on(torch.device("cuda:0"), "float32", stored) == torch.float32
    for architecture in ("gemma2", "gemma4"):
        large = AutoConfig.for_model(architecture, dtype="bfloat16")  # whose hidden states float16 does not hold
        expected = torch.float32 if lacks else torch.bfloat16
        assert loading.precision_on(torch.device("cuda:0"), "bfloat16", large) == expected
        assert loading.precision_on(torch.device("cuda:0"), "auto", large) == (torch.float32 if lacks else "auto")
        assert loading.precision_on(torch.device("cuda:0"), "float16", large) == torch.float16


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("has_avx", [False, True])
def test_a_processor_without_products_of_bfloat16_computes_in_float32(monkeypatch, has_avx, has_amx):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    stored, lacks = AutoConfig.for_model("llama", dtype="bfloat16"), not (has_avx or has_amx)
    assert lacks_bfloat16(CPU) == lacks
    assert loading.precision_on(CPU, "bfloat16", stored) == (torch.float32 if lacks else torch.bfloat16)
    assert loading.precision_on(CPU, "float16", stored) == torch.float16
    assert loading.precision_on(CPU, "auto", stored) == "auto"  # as the files have it
    measured: list[str] = []
    measure: Any = measured.append
    hardware_of("here", 10**9, "bfloat16", measure)
    assert measured == ["float32" if lacks else "bfloat16"]


@pytest.mark.parametrize(
    ("vendor", "has_avx", "has_amx", "slow"),
    [
        ("GenuineIntel", True, False, True),
        ("GenuineIntel", True, True, False),
        ("AuthenticAMD", True, False, False),
        ("AuthenticAMD", False, False, True),
    ],
)
def test_the_demo_is_in_the_precision_that_is_faster_here(monkeypatch, tmp_path, vendor, has_avx, has_amx, slow):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert slow_in_bfloat16(CPU, cpuinfo) == slow
    assert not slow_in_bfloat16(torch.device("cuda:0"), cpuinfo)
    cpuinfo.unlink()
    monkeypatch.setattr("platform.processor", lambda: f"Family 6 Model 207 Stepping 2, {vendor}")
    assert slow_in_bfloat16(CPU, cpuinfo) == slow


def test_a_processor_of_another_kind_is_asked_by_torch(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # as in builds for Macs
    assert lacks_bfloat16(CPU)
