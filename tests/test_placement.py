"""Where tensors are put, what the host waits for, and what is computed twice.

The same code runs on a GPU: what stands here holds there by construction. `test_gpu.py` needs one.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import halka
from contract import disturb
from engine_for_tests import Tokenizer
from halka.models.attention.forest import ForestPlan
from halka.models.attention.function import use_attention
from halka.models.quantised import LAYERS, quantise
from halka.util.forest import Forest
from tiny import tiny
from training_for_tests import items

FAMILIES = {"lora": halka.LoRA(rank=4), "bottleneck": halka.Bottleneck(width=8), "ia3": halka.IA3()}
CASES = Path(__file__).with_name("placement_cases.py")


def test_what_holds_on_a_gpu_holds_on_fake_ones():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("form", LAYERS)
def test_a_layer_is_quantised_where_it_goes_before_the_next_goes(form, monkeypatch):
    monkeypatch.setattr("bitsandbytes.functional.name2qmap", {})  # which keeps the first device's table

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and (args[0].device.type, result.device.type) == ("cpu", "meta"):
                moved.append(args[0].numel())
            return result

    moved: list[int] = []
    base = tiny("llama")
    with Sizes():
        quantise(base, form, torch.device("meta"))
    own = [module for module in base.modules() if isinstance(module, LAYERS[form])]
    assert {buffer.device.type for module in own for buffer in module.buffers()} == {"meta"}
    assert sorted(moved)[-len(own) :] == sorted(module.out_features * module.in_features for module in own)


def test_a_base_with_offloaded_layers_is_refused(tmp_path):
    """As accelerate leaves them, with `device_map`, where the devices are too small."""
    dispatch_model = pytest.importorskip("accelerate").dispatch_model
    base, here = tiny("llama"), ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    dispatch_model(base, dict.fromkeys(here, "cpu") | {"model.layers.1": "disk"}, "cpu", offload_dir=tmp_path)
    with pytest.raises(halka.HalkaError, match=r"9 of its 21 weights, such as model\.layers\.1\.\S+, are offloaded"):
        halka.adapt(base)


# ── what is computed once ───────────────────────────────────────────────────────────────────────────────────────────


class Casts(TorchDispatchMode):
    """Counts casts of single fp32 tensors of the sizes of an adapter's parameters, and casts of many at once."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__()
        self.shapes, self.single, self.many = {parameter.shape for parameter in parameters}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copied = func._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)  # the one, or in inference mode
        if copied and args[0].dtype == torch.float32 and args[0].shape in self.shapes:
            self.single += result.dtype == torch.bfloat16
        self.many += func is torch.ops.aten._foreach_copy_.default
        return result


@pytest.mark.parametrize("name", FAMILIES)
def test_operands_are_cast_once_a_step_by_one_operation(name):
    model = halka.adapt(tiny("llama").bfloat16())
    model.add("a", FAMILIES[name])
    config = halka.TrainConfig(lr=1e-2, steps=2, batch_size=2, accumulate=3, checkpointing=True)
    steps = halka.train(model, "a", items(), config)
    next(steps)
    with Casts(model.parameters("a")) as seen:
        next(steps)
    assert (seen.single, seen.many) == (0, 1 + 3)  # and the gradients of each of three passes


def test_full_fine_tuning_casts_its_masters_once_a_step():
    model = halka.adapt(tiny("llama").bfloat16())
    model.add("a", halka.Full())
    config = halka.TrainConfig(lr=1e-3, steps=2, batch_size=2, accumulate=3)
    steps = halka.train(model, "a", items(), config)
    next(steps)
    with Casts(model.parameters("a")) as seen:
        next(steps)
    assert seen.single == len(model.parameters("a"))


def test_the_engine_casts_full_copies_once():
    """As long as its rows are that adapter's; after the block there are no casts of them."""
    model = halka.adapt(tiny("gemma2").bfloat16(), Tokenizer())
    model.add("a", halka.Full())
    with halka.Engine(model, rows=2, ends=frozenset()) as engine, torch.inference_mode():
        engine.submit(halka.Request([5, 6, 7], "a", stopping=halka.Stopping(4)))
        with Casts(model.parameters("a")) as first:
            engine.step()
        with Casts(model.parameters("a")) as later:
            while engine.step():
                pass
    assert (first.single, later.single) == (len(model.parameters("a")), 0)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.base.parameters())


def test_a_block_takes_its_casts_of_full_copies_with_it():
    model = halka.adapt(tiny("llama").bfloat16())
    model.add("a", halka.Full())
    weight = model.base.model.layers[0].mlp.up_proj
    with torch.no_grad(), model.use("a"):
        cast = ref(weight.weight)
    gc.collect()
    assert cast() is None


def test_a_mixed_batch_finds_its_adapters_prepared():
    """Whatever rows other blocks had: of each adapter what is computed with is made once."""
    model, names = halka.adapt(tiny("llama").bfloat16()), ["lora", "bottleneck"]
    for seed, name in enumerate(names):
        model.add(name, FAMILIES[name], seed=seed)
        disturb(model, name, seed=seed)
    parameters = [parameter for name in names for parameter in model.parameters(name)]
    ids = torch.arange(5, 17).expand(3, -1)
    with torch.no_grad():
        with model.use([*names, None]):
            first = model.base(ids).logits
        with Casts(parameters) as seen, model.use([None, *reversed(names)]):
            second = model.base(ids).logits
    assert seen.single == seen.many == 0
    assert torch.equal(first, second[[2, 1, 0]])


def test_a_line_of_unlike_runs_finds_its_adapters_prepared():
    """As where the engine reads a prompt beside rows that it decodes token by token."""
    model, names = halka.adapt(tiny("llama").bfloat16()), ["lora", "bottleneck"]
    for seed, name in enumerate(names):
        model.add(name, FAMILIES[name], seed=seed)
    parameters = [parameter for name in names for parameter in model.parameters(name)]
    plan, ids = ForestPlan(Forest((5, 1, 1), (-1, -1, -1), (5, 1, 1))), torch.arange(5, 12)[None]
    with torch.no_grad(), use_attention(model.base):
        for _ in range(2):
            with Casts(parameters) as seen, model.use([*names, None]):
                model.base(ids, position_ids=plan.positions[None], use_cache=False, **plan.inputs)
    assert seen.single == seen.many == 0
