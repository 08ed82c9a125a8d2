"""What fits, and how, on hardware of every size: a real configuration of one layer, of which only sizes count."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import halka
from halka.advisor import resources
from halka.advisor.evidence import Fit, from_json
from halka.advisor.resources import THIS_MACHINE, Available, Machine, find_hardware
from halka.estimating import Setup, dry_run
from halka.estimating.devices import DEVICES, Device
from halka.estimating.hardware import CONTEXT, PROCESS, gpu_here
from halka.methods import build_method
from halka.util.errors import HalkaError
from tiny import CONFIGS

CONFIG = AutoConfig.for_model(
    "llama",
    **CONFIGS["llama"]
    | {"hidden_size": 2048, "num_hidden_layers": 1, "intermediate_size": 8192, "vocab_size": 9973}
    | {"max_position_embeddings": 1024},
)
SIZES = {"length": 512, "batch_size": 4}
SETUP = Setup(rows=4, length=512)


def fit(
    config: Any,
    *,
    memory: int | None = None,
    device: str | None = None,
    machine: Machine = THIS_MACHINE,
    **options: Any,
) -> Fit:
    return resources.fit(config, hardware=find_hardware("bfloat16", memory, device, machine), **options)


def total(form: str | None, checkpointing: bool, method: str = "lora", rows: int = 4) -> int:
    how = replace(SETUP, quantize=form, checkpointing=checkpointing, rows=rows)
    return dry_run(CONFIG, build_method(method, {}), how, gpu=True).memory.total


def lora_in(room: int, **given):
    (option,) = fit(CONFIG, **{**SIZES, "methods": ["lora"], "memory": CONTEXT + room, **given}).options
    return option


def test_what_fits_as_it_is_stays_as_it_is():
    needs, more = total(None, False), total(None, False, rows=5)
    found = lora_in((needs + more) // 2)
    assert (found.quantize, found.checkpointing, found.fits) == (None, False, True)
    assert found.memory == pytest.approx(needs, rel=1e-3)
    assert found.largest_batch == 4


@pytest.fixture
def without_bitsandbytes(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_a_form_that_cannot_be_tried_is_told():
    found = fit(CONFIG, **SIZES, methods=["lora"], memory=CONTEXT + 1000)
    ((form, reason),) = found.untried.items()
    assert (form, reason.startswith("nf4 needs bitsandbytes")) == ("nf4", True)
    assert from_json(Fit, json.loads(json.dumps(asdict(found)))) == found
    assert not fit(CONFIG, **SIZES, methods=["lora"], memory=CONTEXT + 10**9).untried


def test_a_base_that_is_asked_for_packed_is_judged_packed():
    needs, less = total("int8", False), total("int8", True)
    found = lora_in(2 * needs, quantize="int8")
    assert (found.quantize, found.checkpointing, found.memory) == ("int8", False, pytest.approx(needs, rel=1e-3))
    tight = lora_in((needs + less) // 2, quantize="int8")
    assert (tight.quantize, tight.checkpointing, tight.fits) == ("int8", True, True)


def test_where_only_checkpointing_fits_it_is_with_checkpointing():
    needs, less = total(None, False), total(None, True)
    assert less < 0.95 * needs
    found = lora_in(needs - (needs - less) // 4)
    assert (found.quantize, found.checkpointing, found.fits) == (None, True, True)
    assert found.memory == pytest.approx(less, rel=1e-3)
    assert found.largest_batch >= 4


def test_int8_comes_before_nf4_and_nf4_before_nothing():
    pytest.importorskip("bitsandbytes")
    plain, int8, nf4 = (total(form, True) for form in (None, "int8", "nf4"))
    assert nf4 < 0.98 * int8
    assert int8 < 0.98 * min(plain, total("int8", False))
    ways = [lora_in((more + less) // 2) for more, less in ((plain, int8), (int8, nf4), (nf4, nf4 - nf4 // 10))]
    assert [(each.quantize, each.checkpointing, each.fits) for each in ways] == [
        ("int8", True, True),
        ("nf4", True, True),
        ("nf4", True, False),
    ]
    assert ways[-1].memory == pytest.approx(nf4, rel=1e-3)
    assert ways[-1].largest_batch < 4


def test_a_packed_base_is_without_checkpointing_where_that_fits():
    """A batch of few tokens keeps little, so all that counts is the weights."""
    config = AutoConfig.for_model("llama", **{**CONFIGS["llama"], "hidden_size": 512, "intermediate_size": 1024})
    room = dry_run(config, halka.LoRA(), Setup(rows=1, length=8, quantize="int8"), gpu=True).memory.total * 1.01
    (found,) = fit(config, methods=["lora"], length=8, batch_size=1, memory=CONTEXT + int(room)).options
    assert (found.quantize, found.checkpointing, found.fits) == ("int8", False, True)


def test_full_fine_tuning_is_never_packed_and_nothing_fits_nowhere():
    found = fit(CONFIG, methods=["full", "lora"], memory=CONTEXT + 1000, **SIZES)
    full, lora = found.options
    assert (full.quantize, full.fits, lora.fits) == (None, False, False)
    assert (full.largest_batch, lora.largest_batch) == (0, 0)
    assert full.memory == pytest.approx(min(total(None, each, "full") for each in (False, True)), rel=1e-3)
    assert lora.memory < total(None, True)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_a_form_that_is_not_installed_is_no_way():
    found = fit(CONFIG, methods=["lora", "prompt"], memory=CONTEXT + 1000, **SIZES)
    assert [(each.quantize, each.fits) for each in found.options] == [("int8", False)] * 2


def test_parts_are_of_every_method_as_it_is_and_make_its_memory():
    found = fit(CONFIG, memory=10**12, **SIZES)
    assert [each.method for each in found.options] == ["lora", "bottleneck", "prefix", "prompt", "full"]
    assert list(found.parts) == [each.method for each in found.options]
    for each in found.options:
        assert sum(found.parts[each.method].values()) == each.memory
        assert each.largest_batch == resources.MOST_ROWS
        assert each.step_seconds is None
    assert list(found.parts["lora"]) == ["weights", "gradients", "optimizer", "activations", "allocator"]
    less = fit(CONFIG, methods=["lora"], memory=CONTEXT + 1000, **SIZES)
    assert sum(less.parts["lora"].values()) == pytest.approx(found.options[0].memory, rel=1e-3)
    assert less.options[0].memory < sum(less.parts["lora"].values())


def test_tasks_take_their_storage_each_and_share_the_base():
    one, many = (fit(CONFIG, methods=["lora", "full"], memory=10**10, tasks=each, **SIZES) for each in (1, 20))
    for single, several in zip(one.options, many.options, strict=True):
        assert several.stored == 20 * single.stored
    lora, full = (several.served - single.served for single, several in zip(one.options, many.options, strict=True))
    assert lora == 19 * 4 * one.options[0].trained
    assert full == 19 * 2 * one.options[1].trained
    assert (one.tasks, many.tasks) == (1, 20)


def test_what_the_base_refuses_is_left_out():
    config = AutoConfig.for_model("mixtral", **CONFIGS["mixtral"] | {"max_position_embeddings": 1024})
    told = []
    found = fit(config, methods=["ia3", "lora"], memory=10**10, progress=told.append, **SIZES)
    assert told[:3] == ["ia3", "lora", f"lora, a batch of {resources.MOST_ROWS}"]
    assert [each.method for each in found.options] == list(found.parts) == ["lora"]
    with pytest.raises(HalkaError, match=re.escape("no method can be trained on this base: ia3 wants")):
        fit(config, methods=["ia3"], memory=10**10, **SIZES)


def test_a_device_of_the_table_has_its_memory_and_speed():
    found = fit(CONFIG, methods=["lora"], device="A100", **SIZES)
    assert (found.device, found.memory, found.process) == ("a100", DEVICES["a100"].memory, CONTEXT)
    assert found.options[0].step_seconds > 0
    less = fit(CONFIG, methods=["lora"], device="a100", memory=CONTEXT + 1000, **SIZES)
    assert (less.memory, less.options[0].fits) == (CONTEXT + 1000, False)
    assert from_json(Fit, json.loads(json.dumps(asdict(found)))) == found


def test_without_anything_named_it_is_this_machine():
    slow = Device("here", {"bfloat16": 1e9}, 1e9)
    free = Available(2 * 10**9, 2 * 10**9, gpu=False)
    machine = Machine(gpu=lambda: None, free=lambda: free, processor=lambda dtype: slow)
    found = fit(CONFIG, methods=["prompt"], machine=machine, **SIZES)
    assert (found.device, found.memory, found.process) == ("this machine", 2 * 10**9, PROCESS)
    assert found.options[0].step_seconds > 0
    assert found.options[0].fits
    assert found.parts["prompt"]["allocator"] > 0
    less = fit(CONFIG, methods=["prompt"], device="here", memory=PROCESS + 1000, machine=machine, **SIZES)
    assert (less.device, less.memory, less.options[0].fits) == ("this machine", PROCESS + 1000, False)


def test_what_is_free_is_that_of_the_device_that_the_base_is_loaded_to(monkeypatch):
    on_cpu = Available.at(torch.device("cpu"))
    assert on_cpu.device == pytest.approx(on_cpu.main, rel=0.2)
    assert not on_cpu.gpu
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8, 10))
    on_gpu = Available.at(torch.device("cuda"))
    assert (on_gpu.device, on_gpu.gpu) == (8, True)
    assert on_gpu.main == pytest.approx(on_cpu.main, rel=0.2)
    assert THIS_MACHINE.free().gpu == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("name", "like", "capability"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", (9, 0)),
        ("NVIDIA A100-SXM4-80GB", "a100", (8, 0)),
        ("NVIDIA GeForce RTX 4090", "rtx4090", (8, 9)),
        ("Tesla T4", "t4", (7, 5)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, (8, 9)),
        ("NVIDIA GeForce RTX 3090 Ti", None, (8, 6)),
        ("NVIDIA GeForce RTX 4090 D", None, (8, 9)),
        ("NVIDIA H100 PCIe", None, (9, 0)),
        ("NVIDIA A100-PCIE-40GB", None, (8, 0)),
        ("NVIDIA L40S", None, (8, 9)),
        ("NVIDIA T400 4GB", None, (7, 5)),
        ("Tesla V100-SXM2-16GB", None, (7, 0)),
    ],
)
def test_a_gpu_that_is_here_has_its_own_memory_and_kernels(monkeypatch, name, like, capability):
    class Properties:
        total_memory = 10**10

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    found = gpu_here()
    assert (found.name, found.gpu, found.memory) == (name, True, 10**10)
    assert found.device is (None if like is None else DEVICES[like])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8, 10))
    assert found.flash == Available.at(torch.device("cuda")).flash == (capability >= (8, 0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "rtx409"}, "no device 'rtx409' in the table: did you mean rtx4090"),
        ({"methods": ["lorra"]}, "lorra"),
        ({"length": 2}, "length must be at least 3 tokens"),
        ({"tasks": 0}, "tasks must be at least 1"),
        ({"methods": []}, "methods is empty"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(HalkaError, match=re.escape(message)):
        fit(CONFIG, **{**SIZES, "memory": 10**10, **given})
